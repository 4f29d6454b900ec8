"""Run folders: where they lie, when they may be written to, and what they begin with."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from cogcalib_jax.configlib import command_line, from_yaml, to_yaml
from cogcalib_jax.distributed import from_main, main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.weights.foreign import require_no_way_out

DEFAULT_ROOT = Path("runs")
CONFIG_FILE = "config.yaml"
ConfigT = TypeVar("ConfigT")


def choose_folder(run_dir: str | None, name: str, resume: bool) -> Path:
    """The folder of a run, not yet made: a new one, or on `resume` the one that `run_dir` names.

    Asked for before anything slow. Raises UserError when the folder holds something already and
    `resume` is not set, or when there is nothing to resume.
    """
    return Path(from_main(lambda: str(_choose(run_dir, name, resume))))


def _choose(run_dir: str | None, name: str, resume: bool) -> Path:
    if run_dir is None:
        folder = next(path for n in count() if not (path := DEFAULT_ROOT / f"{name}-{n}").exists())
    else:
        folder = Path(run_dir)
    if resume:
        if not (folder / CONFIG_FILE).is_file():
            raise UserError(
                f"{folder}: nothing to resume (no config.yaml); leave out --resume to start there"
            )
        require_no_way_out(folder, folder.rglob("*"))
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: exists and is not empty; add --resume to continue it, or choose another"
            " --run-dir"
        )
    return folder


def make_folder(folder: Path) -> None:
    """Make a chosen folder; UserError where it cannot be written."""

    def make() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be created ({error.strerror}); choose another"
            ) from error

    from_main(make)


@main_only
def write_config(folder: Path, config: Any) -> None:
    """`config.yaml`: every field, resolved; `--config` repeats the run with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")


def read_config(folder: Path, cls: type[ConfigT]) -> ConfigT:
    """What `write_config` wrote; UserError where that cannot be read."""
    file = folder / CONFIG_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); start again in another folder") from (
            error
        )
    return from_yaml(cls, text, file)


def original_command(folder: Path, program: str, argv: list[str]) -> str:
    """The command that started the run in `folder`, kept there so that a resumed run reports it."""
    file = folder / "command.txt"

    def kept() -> str:
        if not file.is_file():
            file.write_text(command_line("python", program, *argv) + "\n", encoding="utf-8")
        return file.read_text(encoding="utf-8").strip()

    return from_main(kept)
