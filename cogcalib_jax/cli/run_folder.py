"""The folder of a run: choosing and locking it, its first files, and checks before long work."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cogcalib_jax import files
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.stored import (
    COMMAND_FILE,
    CONFIG_FILE,
    INPUTS_FILE,
    LOCK_FILE,
    require_empty,
    run_place,
)
from cogcalib_jax.configlib.loading import Loaded
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.console import warn
from cogcalib_jax.distributed import from_main, in_main, main_only
from cogcalib_jax.errors import Interrupted, Preempted, UserError, any_of
from cogcalib_jax.hf.adapter import base_hash
from cogcalib_jax.hf.adapter_config import WEIGHTS_FILE
from cogcalib_jax.hf.files import model_folder
from cogcalib_jax.inference.config import WITHOUT_PRIOR
from cogcalib_jax.settings import Role, by_path

# File systems that have no locks say so with one of these.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def choose_folder(run_dir: str | None, name: str, resume: bool) -> Path:
    """Return the folder of a run: a new one that is not made yet, or on `resume` that of `run_dir`.

    Raises:
        UserError: a folder that holds something, or on `resume` one with nothing to resume.
    """
    return Path(from_main(lambda: str(run_place(run_dir, name, resume))))


@in_main
def make_folder(folder: Path) -> None:
    """Make a chosen folder and lock it (UserError: not writable, or another process was faster)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}); choose another"
        ) from error
    if _lock(folder):
        require_empty(folder)


_locks: dict[Path, int] = {}


@in_main
def lock_folder(folder: Path) -> None:
    """Lock a folder, which is made if it is missing (UserError if another process has it)."""
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)


@in_main
def take_up(folder: Path) -> None:
    """Lock the folder of a resumed run (UserError: another process works in it) and remove
    half-written files of a killed process."""
    _lock(folder)
    for path in [*folder.rglob(f"*{files.SUFFIX}")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lock(folder: Path) -> bool:
    """Lock `folder` until `holding_locks` ends; return False if this process has locked it before.

    The kernel frees the lock with the process, however that ends.
    """
    place = folder.resolve()
    if place in _locks:
        return False
    with files.with_path_in_errors(folder):
        file = os.open(place / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        files.lock_file(file)
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
    """Free the folders after the block that were locked within it."""
    before = set(_locks)
    try:
        yield
    finally:
        for place in _locks.keys() - before:
            os.close(_locks.pop(place))


@contextmanager
def resumable(folder: Path, command: str, begun: str = CONFIG_FILE) -> Iterator[None]:
    """Add the resume command to a Preempted error or KeyboardInterrupt raised inside the block.

    begun: the file in `folder` without which there is nothing to resume, and so no advice.
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
    """Write every field of `config`, resolved, to `config.yaml`; from then on a run can be
    resumed."""
    files.write_whole(folder / CONFIG_FILE, to_yaml(config))


@in_main
def original_command(folder: Path, program: str, argv: list[str]) -> str:
    """Return the command that started the run in `folder`, and keep it there for resumed runs.

    Call this before `write_config`.
    """
    file = folder / COMMAND_FILE
    if not ((folder / CONFIG_FILE).is_file() and file.is_file()):
        files.write_whole(file, files.command_line(*files.program_words(program), *argv) + "\n")
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: {files.reason_of(error)}; remove it; this command is then stored instead"
        ) from error


@in_main
def hash_inputs(config: RunConfig, base: str | Path, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the hashes of base, adapter and rows, as JSON.

    base: folder or Hub id, of which a thousandth of every tensor is read. data: split -> hash of
    its rows.
    """
    adapter = None
    if config.adapter is not None:
        weights = (Path(config.adapter) / WEIGHTS_FILE).read_bytes()
        adapter = hashlib.sha256(weights).hexdigest()
    return {"base": base_hash(model_folder(base)), "adapter": adapter, "data": dict(data)}


@in_main
def require_same_inputs(folder: Path, config: RunConfig, inputs: Mapping[str, Any]) -> None:
    """Refuse to resume with another base, adapter or other rows than the run was started with."""
    file = folder / INPUTS_FILE
    stored = files.read_object(file, "put it back from a copy")
    if not isinstance(stored.get("data"), dict) or not {"base", "adapter"} <= set(stored):
        raise UserError(
            f"{file}: damaged (it must hold base, adapter and data); put it back from a copy"
        )
    changed = [
        split for split, value in stored["data"].items() if inputs["data"].get(split) != value
    ]
    if stored["base"] != inputs["base"]:
        what, given, option = "weights of the base differ", config.model.path, "--model.path"
    elif stored["adapter"] != inputs["adapter"]:
        what, given, option = "weights of the adapter differ", config.adapter, "--adapter"
    elif changed:
        what = f"rows differ (split {changed[0]})"
        given, option = config.data.path, "--data.path"
        if changed[0] == "anchor":
            what, given, option = "anchor rows differ", config.anchor.path, "--anchor.path"
    else:
        return
    where = f"{option[2:]} = {given}" if given is not None else f"data.task = {config.data.task}"
    remedy = f"give the same one's place with {option}, or" if given is not None else ""
    raise UserError(
        f"{folder}: cannot resume: {where}: the {what} from what the run was started with;"
        f" {remedy} choose another --run-dir"
    )


@contextmanager
def may_have_moved(place: str | Path | None, option: str, resume: bool) -> Iterator[None]:
    """Add to the error of a missing path on `resume` the option that gives its new path."""
    try:
        yield
    except UserError as error:
        if not resume or place is None or Path(place).exists():
            raise
        raise UserError(f"{error}; if it was moved, give its new place with {option}") from error


def refuse_meaningless(loaded: Loaded[Any], advice: Mapping[Role, str], command: str) -> None:
    """Refuse options of a run that mean nothing for `command`; `advice` has, for the role of a
    field, what to write instead."""
    refused = by_path(type(loaded.config), advice)
    for path in sorted(loaded.explicit & refused.keys()):
        option = "--" + path.replace("_", "-")
        raise UserError(f"command line: {option} has no meaning for {command}; {refused[path]}")


def refuse_choice_of_rule(option_score: str, command: str) -> None:
    """Refuse `option_score: auto` for a command that compares runs: each would choose its own."""
    if option_score == "auto":
        raise UserError(
            f"option_score = auto: {command} compares runs with starts of their own, which must be"
            f" scored alike; give {any_of(WITHOUT_PRIOR)}"
        )


def require_writable(file: Path, option: str) -> None:
    """Refuse a file that cannot be written; its folder is made."""
    _make(file, file.parent)
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"{file}: cannot be written; choose another file for {option}")


def require_folder(folder: Path, option: str) -> None:
    """Make a folder; refuse one that cannot be written."""
    _make(folder, folder)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written; choose another folder for {option}")


def _make(path: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another") from error
