"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import named


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without error.

    An interrupted or failed write leaves nothing under the name. Raises UserError when `folder`
    cannot be written, or when it holds files already and `replace` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder")
    if not replace and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files already; choose an empty or a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        with named(folder):
            yield building
        # mkdtemp and safetensors make what they write readable for its owner alone.
        umask = os.umask(0)
        os.umask(umask)
        building.chmod(0o777 & ~umask)
        for path in building.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        if folder.is_dir():
            shutil.rmtree(folder)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
