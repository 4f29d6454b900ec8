"""Run folders: who may write to them, and what they begin with."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cogcalib_jax.configlib import command_line, program_words, to_yaml
from cogcalib_jax.console import warn
from cogcalib_jax.distributed import from_main, main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import SUFFIX, lock_file, reason_of, with_path_in_errors, write_whole
from cogcalib_jax.preemption import Interrupted, Preempted
from cogcalib_jax.runs.stored import (
    COMMAND_FILE,
    CONFIG_FILE,
    LOCK_FILE,
    choose,
    require_empty,
)

# File systems that have no locks say so with one of these.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def choose_folder(run_dir: str | None, name: str, resume: bool) -> Path:
    """The folder of a run, not yet made: a new one, or on `resume` the one that `run_dir` names.

    Asked for before anything slow. Raises UserError when the folder holds something already and
    `resume` is not set, or when there is nothing to resume.
    """
    return Path(from_main(lambda: str(choose(run_dir, name, resume))))


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
            require_empty(folder)

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
    with with_path_in_errors(folder):
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


@main_only
def write_config(folder: Path, config: Any) -> None:
    """`config.yaml`: every field, resolved; `--config` repeats the run with it.

    With it a run has begun, and can be resumed.
    """
    write_whole(folder / CONFIG_FILE, to_yaml(config))


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
                f"{file}: {reason_of(error)}; remove it, and this command is kept in its place"
            ) from error

    return from_main(kept)
