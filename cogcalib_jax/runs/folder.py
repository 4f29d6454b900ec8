"""Run folders: where they lie, who may write to them, and what they begin with."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from cogcalib_jax.configlib import command_line, from_yaml, program_words, to_yaml
from cogcalib_jax.configlib.command_line import split_arguments
from cogcalib_jax.console import warn
from cogcalib_jax.distributed import from_main, main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import lock_file, named, write_whole
from cogcalib_jax.preemption import Interrupted, Preempted
from cogcalib_jax.weights.folders import SUFFIX
from cogcalib_jax.weights.foreign import damage, require_no_way_out

DEFAULT_ROOT = Path("runs")
CONFIG_FILE = "config.yaml"
COMMAND_FILE = "command.txt"
INPUTS_FILE = "inputs.json"
LOCK_FILE = ".lock"
# What a program that was killed in its first moment leaves: nothing was begun.
FIRST_FILES = (COMMAND_FILE, INPUTS_FILE, CONFIG_FILE)
NOT_BEGUN = {LOCK_FILE, *FIRST_FILES[:-1], *(f"{name}.partial" for name in FIRST_FILES)}
# File systems that have no locks say so with one of these.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
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
            if _holds_something(folder):
                raise UserError(
                    f"{folder}: cannot be resumed without its config.yaml; put that back from a"
                    " copy, or choose another --run-dir"
                )
            raise UserError(
                f"{folder}: nothing to resume (no config.yaml); leave out --resume to start there"
            )
        held = list(folder.rglob("*"))
        require_no_way_out(folder, held)
        _require_plain(held)
        return folder
    _require_empty(folder)
    return folder


def _require_plain(paths: Iterable[Path]) -> None:
    """Whoever opens a pipe waits for its other end, which may never come."""
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: is neither a file nor a folder; remove it")


def _holds_something(folder: Path) -> bool:
    if folder.is_dir():
        return any(path.name not in NOT_BEGUN for path in folder.iterdir())
    return folder.exists()


def _require_empty(folder: Path) -> None:
    if _holds_something(folder):
        begun = (folder / CONFIG_FILE).is_file()
        resume = "add --resume to continue it, or " if begun else ""
        raise UserError(f"{folder}: exists and is not empty; {resume}choose another --run-dir")


def make_folder(folder: Path) -> None:
    """Make a chosen folder and lock it; UserError where it cannot be written, or another process
    was faster."""

    def make() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be created ({error.strerror}); choose another"
            ) from error
        if _lock(folder):
            _require_empty(folder)

    from_main(make)


_locks: dict[Path, int] = {}


def lock_folder(folder: Path) -> None:
    """Refuse a folder that another process works in; it is made where it is missing."""

    def lock() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)

    from_main(lock)


def take_up(folder: Path) -> None:
    """Lock a folder that is resumed, and remove what a killed process left half-written there.

    UserError where another process works in it.
    """

    def take() -> None:
        _lock(folder)
        for path in [*folder.rglob(f"*{SUFFIX}")]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    from_main(take)


def _lock(folder: Path) -> bool:
    """Lock until `holding_locks` ends; False where this process has it already.

    The lock is the kernel's (`lock_file`): it is gone with the process, however that ends.
    """
    place = folder.resolve()
    if place in _locks:
        return False
    with named(folder):
        file = os.open(place / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_file(file)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warn(f"{folder}: this file system has no locks; start no second process there")
        else:
            os.close(file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise UserError(
                f"{folder}: another process is at work in this folder; wait for its end, or choose"
                " another --run-dir"
            ) from error
    _locks[place] = file
    return True


@contextmanager
def holding_locks() -> Iterator[None]:
    """Folders that are locked within the block are free after it."""
    before = set(_locks)
    try:
        yield
    finally:
        for place in _locks.keys() - before:
            os.close(_locks.pop(place))


def resume_command(program: str, folder: Path) -> str:
    """The command that goes on with the run or evaluation in `folder`, as a shell takes it."""
    return command_line(*program_words(program), "--resume", "--run-dir", str(folder))


@contextmanager
def resumable(folder: Path, command: str, begun: str = CONFIG_FILE) -> Iterator[None]:
    """SIGTERM and Ctrl-C within the block are told with the command that goes on.

    begun: the file or folder in `folder` without which there is nothing to resume; nothing is
    advised then.
    """
    try:
        yield
    except (Preempted, KeyboardInterrupt) as stopped:
        if not (folder / begun).exists():
            raise
        known = stopped if isinstance(stopped, Preempted) else Interrupted()
        raise known.with_words(str(stopped), command) from None


def stored_config(argv: Sequence[str], cls: type) -> list[str]:
    """`--config` with the file that a resumed run or evaluation stored, as words before `argv`.

    Empty if `argv` resumes nothing or names a file itself; also for one of several processes whose
    host lacks the folder. Raises UserError if there is nothing to resume.
    """
    given = split_arguments(cls, argv)
    resume, run_dir = (given.words.get(name) for name in ("resume", "run_dir"))
    if resume is None or resume.lower() != "true" or not run_dir or given.preset is not None:
        return []
    file = Path(run_dir) / CONFIG_FILE
    if not file.is_file():
        if not any(name.startswith("distributed.") for name in given.words):
            _choose(run_dir, "", resume=True)
        return []
    require_no_way_out(file.parent, (file,))
    return ["--config", str(file)]


@main_only
def write_config(folder: Path, config: Any) -> None:
    """`config.yaml`: every field, resolved; `--config` repeats the run with it.

    With it a run has begun, and can be resumed.
    """
    write_whole(folder / CONFIG_FILE, to_yaml(config))


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
    """The command that started the run in `folder`, kept there so that a resumed run reports it.

    To be asked for before `write_config`.
    """
    file = folder / COMMAND_FILE

    def kept() -> str:
        if not ((folder / CONFIG_FILE).is_file() and file.is_file()):
            write_whole(file, command_line(*program_words(program), *argv) + "\n")
        try:
            return file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}: {damage(error)}; remove it, and this command is kept in its place"
            ) from error

    return from_main(kept)
