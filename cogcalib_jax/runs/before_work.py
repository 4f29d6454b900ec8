"""Mistakes of a command that are to be told before hours of work, not after."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogcalib_jax.configlib import Loaded
from cogcalib_jax.errors import UserError


def refuse_meaningless(loaded: Loaded[Any], refused: Mapping[str, str], command: str) -> None:
    """Options of a run that mean nothing for `command`, each with what to write instead."""
    for path in sorted(loaded.explicit & refused.keys()):
        option = "--" + path.replace("_", "-")
        raise UserError(f"command line: {option} has no meaning for {command}; {refused[path]}")


def refuse_choice_of_rule(option_score: str, command: str) -> None:
    """Refuse `option_score: auto` for `command`, which compares runs that would each choose."""
    if option_score == "auto":
        raise UserError(
            f"option_score = auto: {command} compares runs with starts of their own, which must be"
            " scored alike; give mean, sum or chars"
        )


def require_writable(file: Path, option: str) -> None:
    """A file given with `option`; the folder it is to lie in is made."""
    _make(file, file.parent)
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"{file}: cannot be written; choose another file for {option}")


def require_folder(folder: Path, option: str) -> None:
    """A folder given with `option`, which is made."""
    _make(folder, folder)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written; choose another folder for {option}")


def _make(path: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another") from error
