"""The manifest of a checkpoint: the run it belongs to, and checksums of its files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import with_path_in_errors, write_whole

# What is in a checkpoint and what it means: to be raised whenever a field of the saved tree or of
# the manifest is added, removed or read in another way. Not the package's version: most versions
# change nothing here, and a checkpoint of theirs is as good.
FORMAT = 2

MANIFEST = "manifest.json"
# What it holds beside `format` and its own checksum.
KINDS = {
    "name": str,
    "best": bool,
    "identity": dict,
    "journals": dict,
    "leaves": dict,
    "files": dict,
}
CHUNK = 1 << 20


class DamageError(Exception):
    """A checkpoint is not what was written; the message says why."""


def write_manifest(place: Path, content: dict[str, Any]) -> None:
    """Write the manifest of the checkpoint in `place`; `content` has what `KINDS` names."""
    text = json.dumps(_sealed({"format": FORMAT} | content))
    write_whole(place / MANIFEST, text + "\n")


def read_manifest(place: Path) -> dict[str, Any]:
    """Return the manifest that `write_manifest` wrote in `place`.

    Raises:
        DamageError: it is not that.
        UserError: it is of another format.
    """
    try:
        stored = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        manifest = {key: value for key, value in stored.items() if key != "sha256"}
    except FileNotFoundError as error:
        raise DamageError(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise DamageError(f"{MANIFEST} cannot be read") from error
    if _sealed(manifest) != stored:
        raise DamageError(f"{MANIFEST} does not match its checksum")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{place}: cannot resume: its format is {manifest.get('format')} and this program's"
            f" {FORMAT}; resume with the version that wrote it, or start another run"
        )
    for key, kind in KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise DamageError(f"{MANIFEST} has no {key}, or one of another kind")
    return manifest


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """With a checksum of itself: a flipped bit in an identity would look like another run."""
    text = json.dumps(manifest, sort_keys=True)
    return manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def file_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder`, by its path in there."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def journal_mark(path: Path, size: int) -> dict[str, Any]:
    """Return the entry of a file that only grows: its first `size` bytes, put on the disk."""
    if size:
        with with_path_in_errors(path), path.open("rb") as file:
            os.fsync(file)
    return {"bytes": size, "sha256": _prefix_checksum(path, size)}


def require_journal(path: Path, mark: Any) -> int:
    """The bytes that a mark is of; DamageError where the file does not begin with them."""
    if not isinstance(mark, dict) or not isinstance(mark.get("bytes"), int):
        raise DamageError(f"{MANIFEST} does not know {path.name}")
    size, there = mark["bytes"], path.stat().st_size if path.is_file() else 0
    if there < size:
        raise DamageError(f"{path.name} has {there} of the {size} bytes that it goes on from")
    if _prefix_checksum(path, size) != mark.get("sha256"):
        raise DamageError(f"{path.name} has changed in the {size} bytes that it goes on from")
    return size


def _prefix_checksum(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    if size:
        with path.open("rb") as file:
            while part := file.read(min(size, CHUNK)):
                digest.update(part)
                size -= len(part)
    return digest.hexdigest()
