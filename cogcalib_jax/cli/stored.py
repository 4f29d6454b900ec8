"""The files of a run's folder, its stored config, and the choice of a free folder; without JAX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.configlib.sources import Arguments, split_arguments
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import command_line, program_words, reason_of, refuse_external_links
from cogcalib_jax.inference.config import OptionScore, stored_option_score
from cogcalib_jax.settings import Role, identity, marked_paths, places
from cogcalib_jax.training.config import require_same_identity

DEFAULT_ROOT = Path("runs")
CONFIG_FILE = "config.yaml"
COMMAND_FILE = "command.txt"
INPUTS_FILE = "inputs.json"
LOCK_FILE = ".lock"
# Files that a program leaves if it is killed before a run begins.
FIRST_FILES = (COMMAND_FILE, INPUTS_FILE, CONFIG_FILE)
NOT_BEGUN = {LOCK_FILE, *FIRST_FILES[:-1], *(f"{name}.partial" for name in FIRST_FILES)}
# The rule that a run with `option_score: auto` chose.
CHOICE_FILE = "option_score.json"
ConfigT = TypeVar("ConfigT")


def run_place(run_dir: str | None, name: str, resume: bool) -> Path:
    """Return the folder of a run as `run_folder.choose_folder` does, in one process alone."""
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
        refuse_external_links(folder, held)
        _require_plain(held)
        return folder
    require_empty(folder)
    return folder


def _require_plain(paths: Iterable[Path]) -> None:
    """Refuse pipes and devices, which a reader would wait for."""
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: is neither a file nor a folder; remove it")


def _holds_something(folder: Path) -> bool:
    if folder.is_dir():
        return any(path.name not in NOT_BEGUN for path in folder.iterdir())
    return folder.exists()


def require_empty(folder: Path) -> None:
    """Refuse a folder with more files than an aborted start without a config leaves (UserError)."""
    if _holds_something(folder):
        begun = (folder / CONFIG_FILE).is_file()
        resume = "add --resume to continue it, or " if begun else ""
        raise UserError(f"{folder}: exists and is not empty; {resume}choose another --run-dir")


def resume_command(program: str, folder: Path) -> str:
    """Return the shell command that continues the run or evaluation in `folder`."""
    return command_line(*program_words(program), "--resume", "--run-dir", str(folder))


def stored_config(argv: Sequence[str], cls: type) -> list[str]:
    """Return `--config FILE` with the stored config of a resumed run or evaluation.

    Empty if `argv` resumes nothing or names a preset, and on a host of several that lacks the
    folder. Raises UserError if there is nothing to resume.
    """
    given = split_arguments(cls, argv)
    ((resume,), (run_dir,)) = (_words(given, cls, role) for role in ("resume", "folder"))
    if resume is None or resume.lower() != "true" or not run_dir or given.preset is not None:
        return []
    file = Path(run_dir) / CONFIG_FILE
    if not file.is_file():
        if all(word is None for word in _words(given, cls, "processes")):
            run_place(run_dir, "", resume=True)
        return []
    refuse_external_links(file.parent, (file,))
    return ["--config", str(file)]


def _words(given: Arguments, cls: type, role: Role) -> list[str | None]:
    return [given.words.get(path) for path in marked_paths(cls, "role", role)]


def read_config(folder: Path, cls: type[ConfigT]) -> ConfigT:
    """Return the stored config of a folder (UserError if it cannot be read)."""
    file = folder / CONFIG_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); start again in another folder") from (
            error
        )
    return from_yaml(cls, text, file)


def read_choice(folder: Path) -> OptionScore:
    """Return the rule that a run with `option_score: auto` chose (UserError if it has none)."""
    file = folder / CHOICE_FILE
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rule = stored_option_score(content)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: cannot be read ({reason_of(error)}); put it back from a copy, or train again"
        ) from error
    if rule is None:
        raise UserError(f"{file}: names no rule; put it back from a copy, or train again")
    return rule


def require_same_config(folder: Path, config: ConfigT, *, places_too: bool = True) -> ConfigT:
    """Refuse to resume the work in `folder` with another config; return the config of the start.

    places_too: whether base, rows and first adapter must have their old paths; False if the caller
    compares hashes.
    """
    stored = read_config(folder, type(config))
    require_same_identity(folder, identity(stored), identity(config))
    if places_too:
        require_same_identity(folder, places(stored), places(config))
    return stored
