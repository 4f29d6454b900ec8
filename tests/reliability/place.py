"""A folder with everything a command needs, in which one thing is then damaged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.cli.small_base import arguments

TEXT = Path("rows.jsonl")
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Place:
    """The working directory of one case; every path is relative to it, and so is what a message
    shows."""

    good: Path
    """folders `base`, `adapter` and `run` (finished but for its results) that nothing is wrong
    with"""

    def base(self, **config: Any) -> Path:
        """The base; `config` replaces values of its config.json, None removes them."""
        return self._copy("base", "config.json", config)

    def adapter(self, **config: Any) -> Path:
        """An adapter of the base; `config` replaces values of its adapter_config.json."""
        return self._copy("adapter", "adapter_config.json", config)

    def run(self) -> Path:
        """A run of plain fine-tuning on the base."""
        self.base()
        return self._copy("run", "", {})

    def _copy(self, name: str, file: str, changes: dict[str, Any]) -> Path:
        folder = Path(name)
        if not folder.exists():
            shutil.copytree(self.good / name, folder)
        if changes:
            values = json.loads((folder / file).read_text()) | changes
            kept = {key: value for key, value in values.items() if value is not None}
            write(folder / file, kept)
        return folder

    def train(self, *more: object, base: Path | None = None) -> list[str]:
        """train.py on the world, in a folder `new`."""
        base = self.base() if base is None else base
        return arguments(base, Path("new"), "--method.name", "sft", *map(str, more))

    def custom(self, rows: object, *more: object, path: Path = TEXT) -> list[str]:
        """train.py on questions of one's own: texts, bytes, or rows to be written as JSONL."""
        if rows is not None:
            write(path, rows)
        return self.train(
            "--data.task", "custom", "--data.path", path, "--data.prompt", "cloze", *more
        )

    def evaluate(self, *more: object) -> list[str]:
        """eval.py of the base on the world."""
        argv = self.train()
        kept = ("--model.", "--data.", "--world.", "--evaluation.", "--run-dir")
        pairs = zip(argv[::2], argv[1::2], strict=True)
        return [w for pair in pairs if pair[0].startswith(kept) for w in pair] + [*map(str, more)]


def write(path: Path, content: object) -> Path:
    """Bytes and text as they are, a list as JSON lines, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def question(n: int = 0, **fields: Any) -> dict[str, Any]:
    """A row of one's own that nothing is wrong with, but for `fields`; None leaves one out."""
    row = {
        "question": f"What is {n} and {n}?",
        "choices": ["Ada", "Alan"],
        "answer": "Ada",
    } | fields
    return {name: value for name, value in row.items() if value is not None}


def questions(n: int = 40, **last: Any) -> list[dict[str, Any]]:
    """`n` rows, the last one with other `fields`."""
    return [*(question(i) for i in range(n - 1)), question(n - 1, **last)]


def tensors(file: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    """Replace the tensors of a safetensors file by `change` of them."""
    save_file(change(load_file(file)), file)
    return file


def cut(file: Path, share: float = 0.5) -> Path:
    """Keep only the first part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


def link_out(file: Path) -> Path:
    """Move a file out of its folder, and leave a link to it there."""
    Path("elsewhere").mkdir()
    file.rename(Path("elsewhere") / file.name)
    file.symlink_to(Path("..") / "elsewhere" / file.name)
    return file


class Pickle:
    """Writes a file when it is loaded."""

    def __reduce__(self):
        return (open, ("pwned", "w"))
