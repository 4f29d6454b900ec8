"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import lock_file, named

SUFFIX = ".partial"
"""Ends the names of files and folders that are half-written; a resumed run removes those in it."""


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without error.

    An interrupted or failed write leaves nothing under the name; what a killed one left beside it
    is removed by the next. Raises UserError when `folder` cannot be written, or when it holds files
    already, or in the end, and `replace` is False.
    """
    if folder.is_symlink() and not replace:
        raise UserError(f"{folder}: is a link; give the folder it stands for, or choose another")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder")
    if not replace and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files already; choose an empty or a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        building = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=SUFFIX, dir=folder.parent)
        )
    except OSError as error:
        raise _unwritable(folder, error) from error
    lock = _lock(building)
    try:
        with named(folder):
            yield building
        # mkdtemp and safetensors make what they write readable for its owner alone.
        umask = os.umask(0)
        os.umask(umask)
        building.chmod(0o777 & ~umask)
        for path in building.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        if replace and folder.is_dir():
            shutil.rmtree(folder)
        try:
            # An empty folder goes first, which Windows would not replace; one that holds something
            # refuses.
            if folder.is_dir():
                folder.rmdir()
            building.rename(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder")


def _sweep(folder: Path) -> None:
    """Remove temporary folders of `folder` whose processes were killed: none holds their lock."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-\w{{8}}{re.escape(SUFFIX)}")
    for path in folder.parent.iterdir():
        if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A lock that ends with this process; None if another one holds it, or there are none.

    Windows locks no folders: what a killed process left there stays.
    """
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            lock_file(file)
            return file
        except OSError:
            os.close(file)
    return None
