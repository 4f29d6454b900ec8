"""A line about what was read, for the person who watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cogcalib_jax.data.example import Example
from cogcalib_jax.data.sources import Stored
from cogcalib_jax.data.split_files import unread_files
from cogcalib_jax.data.tasks.custom import Reader

_MOST = 12
"""names that a line shows"""


def read_line(
    stored: Mapping[str, Stored],
    examples: Sequence[Example],
    reader: Reader | None,
    unread: Sequence[str],
) -> str:
    """Return which files were read as what, how, and what was not read.

    Args:
        stored: our split -> its rows; the name "" is not shown.
        examples: the usable rows of all of them, at least one.
        reader: how the user's own rows were read; None for a task with a schema of its own.
        unread: files in the folder that were not read.
    """
    files = ", ".join(_shown_files(name, split.files) for name, split in stored.items())
    parts = [f"read {files}: {len(examples):,} {_kind(examples)}"]
    parts += dict.fromkeys(note for split in stored.values() for note in split.notes)
    if reader is not None:
        parts += reader.notes
        if reader.unread:
            parts.append(f"columns not used: {_listed(reader.unread)}")
    if unread:
        parts.append(f"files not read: {_listed(unread)}")
    return "; ".join(parts)


def folder_files(folder: Path, stored: Mapping[str, Stored]) -> list[str]:
    """Return the data files in `folder` that hold none of the stored splits."""
    return unread_files(folder, [file for split in stored.values() for file in split.files])


def _kind(examples: Sequence[Example]) -> str:
    plural = "s" if len(examples) != 1 else ""
    if examples[0].is_open:
        return f"open question{plural}"
    sizes = sorted({len(example.choices) for example in examples})
    options = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    return f"question{plural} with {options} options"


def _shown_files(name: str, files: Sequence[Path]) -> str:
    """Return the files of a split; its name only if that of the files does not tell it."""
    first = files[0].name
    shown = first if len(files) == 1 else f"{first} to {files[-1].name}"
    return f"{shown} as {name}" if name and not first.casefold().startswith(name) else shown


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")
