"""The places of a phase's lines and checkpoints: files, or memory.

A run of the programs keeps both in its folder. A fine-tuning from Python without `output_dir`
writes no file: its lines stay in memory, and there is nothing to resume.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of, whole_path, with_path_in_errors
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.settings import with_new_names
from cogcalib_jax.training.checkpoint import Checkpoints
from cogcalib_jax.training.config import CheckpointConfig
from cogcalib_jax.world.base import ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig

CONFIG_FILE = "config.yaml"


class Journal:
    """One file of JSON objects, each with a `step`, one a line."""

    def __init__(self, path: Path):
        self.path = path

    @main_only
    def write(self, **record: Any) -> None:
        finite = {key: _finite(value) for key, value in record.items()}
        line = (json.dumps(finite, allow_nan=False) + "\n").encode()
        with with_path_in_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                whole = file.tell()
                try:
                    while line:  # a disk that fills up takes a part first
                        line = line[file.write(line) :]
                except OSError:
                    file.truncate(whole)
                    raise

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; none where it was never written."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def size(self) -> int:
        """Return its bytes; 0 if it was never written."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @main_only
    def cut_to(self, size: int) -> None:
        """Drop what comes after the first `size` bytes: a resumed run writes it again."""
        if self.size() > size:
            with with_path_in_errors(self.path):
                os.truncate(self.path, size)

    @main_only
    def begin(self, earlier: Journal | None = None) -> None:
        """Start anew, with the lines of an earlier phase or none."""
        content = earlier.path.read_bytes() if earlier is not None and earlier.size() else b""
        with whole_path(self.path) as partial:
            partial.write_bytes(content)


class MemoryJournal(Journal):
    """The same lines in memory; `path` is their name and no file."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.records: list[dict[str, Any]] = []

    def write(self, **record: Any) -> None:
        self.records.append({key: _finite(value) for key, value in record.items()})

    def read(self) -> list[dict[str, Any]]:
        """Return all lines."""
        return list(self.records)

    def size(self) -> int:
        """The number of lines."""
        return len(self.records)

    def cut_to(self, size: int) -> None:
        """Drop what comes after the first `size` lines."""
        del self.records[size:]

    def begin(self, earlier: Journal | None = None) -> None:
        """Start anew, with the lines of an earlier phase in memory or none."""
        self.records = list(earlier.records) if isinstance(earlier, MemoryJournal) else []


def _finite(value: Any) -> Any:
    """Infinite thresholds (a split with one class) are null in JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class NoCheckpoints(Checkpoints):
    """The checkpoints of a phase that cannot be resumed: it has none."""

    def restore(self, like: Any, identity: dict[str, Any], journals: Any = ()) -> None:
        """Return None: there is nothing to go on from."""

    def save(self, step: int, tree: Any, identity: dict[str, Any], *more: Any, **how: Any) -> None:
        """Save nothing."""


class Files:
    """The places of a phase: files at these paths."""

    def journal(self, path: Path) -> Journal:
        """Return the lines of that name; equal paths give the same lines."""
        return Journal(path)

    def checkpoints(self, folder: Path, config: CheckpointConfig) -> Checkpoints:
        """Return the checkpoints of a phase."""
        return Checkpoints(folder, config)

    def scratch(self, folder: Path) -> Path:
        """Return a folder for arrays that are too large for memory."""
        return folder


class Memory(Files):
    """Lines in memory, no checkpoints, and a temporary folder only for what memory cannot hold."""

    def __init__(self) -> None:
        self._journals: dict[Path, MemoryJournal] = {}
        self._folders: list[tempfile.TemporaryDirectory[str]] = []

    def journal(self, path: Path) -> MemoryJournal:
        return self._journals.setdefault(path, MemoryJournal(path))

    def checkpoints(self, folder: Path, config: CheckpointConfig) -> NoCheckpoints:
        return NoCheckpoints(folder, config)

    def scratch(self, folder: Path) -> Path:
        self._folders.append(tempfile.TemporaryDirectory(prefix="cogcalib_jax-"))
        return Path(self._folders[-1].name)


@dataclass(frozen=True)
class StoredRun:
    """The places of a run's base and rows, and the way its questions are asked."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def base(self) -> str | Path:
        """Return the folder or Hub id of the base; the world's is built if it is missing."""
        if self.model.path is not None:
            return self.model.path
        return ensure_base(self.world, self.pretrain, self.seed)


def read_stored_run(folder: Path) -> StoredRun:
    """Read the config of a finished run of one method (UserError: no run, or not finished)."""
    file = folder / CONFIG_FILE
    if not (folder / "adapter").is_dir() or not file.is_file():
        raise UserError(
            f"{folder}: holds no adapter/ and {CONFIG_FILE}; expected the folder of a method that"
            " was trained, such as runs/NAME-N/cols"
        )
    try:
        tree = with_new_names(yaml.safe_load(file.read_text(encoding="utf-8")))
        kept = {f.name: tree[f.name] for f in fields(StoredRun) if f.name in tree}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: damaged ({reason_of(error)}); train again") from error
    return from_yaml(StoredRun, yaml.safe_dump(kept), file)
