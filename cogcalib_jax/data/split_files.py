"""The files of a folder: which of them holds which split, and which are not read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cogcalib_jax.data.formats import FORMATS, format_of, stem_of
from cogcalib_jax.errors import UserError

SPLIT_NAMES = {"validation": ("validation", "val", "valid", "dev", "eval")}
"""stored split -> the names that its file may have; other splits have one name, their own"""

# Data that is not read: a file of one of these kinds is named, so that nobody waits for its rows.
_OTHER_DATA = (".arrow", ".bz2", ".feather", ".gz", ".orc", ".pkl", ".txt", ".xls", ".xlsx", ".xz")
_OTHER_DATA += (".zip", ".zst")
# The Hub's names of shards; old ones end in a hash.
_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d+)-of-(?P<total>\d+)(-[0-9a-f]{8,})?")


def split_files(
    folder: Path, split: str, config: str | None = None, *, usual_names: bool = False
) -> list[Path]:
    """Return the files in `folder` that hold `split`, in their order; [] if there are none.

    A split is one file, `train.csv` or `winogrande_s.train.jsonl` (config and split), or shards,
    `train-00000-of-00002.parquet`; in a subfolder named after the config, in the folder itself, or
    in its subfolder `data`, whichever comes first. A validation split may have any of
    `SPLIT_NAMES`. Case is ignored.

    Raises:
        UserError: two files for the same split, or shards of which one is missing.
    """
    wanted = SPLIT_NAMES.get(split, (split,)) if usual_names else (split,)
    if config:
        wanted += tuple(f"{config}.{name}" for name in wanted)
    places = [folder / config] if config else []
    for place in (*places, folder, folder / "data"):
        found: dict[str, list[Path]] = {}
        for file in _readable(place):
            shard = _SHARD.fullmatch(stem_of(file))
            name = shard["split"] if shard else stem_of(file)
            if name.casefold() in wanted:
                found.setdefault(f"{name} in shards" if shard else file.name, []).append(file)
        if len(found) > 1:
            names = [files[0].name for files in found.values()]
            raise UserError(
                f"{place}: {names[0]} and {names[1]} are both {split} rows; expected one of them."
                " Remove the other, or move it to another folder"
            )
        for files in found.values():
            return _whole(files)
    return []


def unread_files(folder: Path, read: Iterable[Path]) -> list[str]:
    """Return the names of the data files in `folder` and its `data` that are not among `read`."""
    known = {file.resolve() for file in read}
    return [
        str(file.relative_to(folder))
        for place in (folder, folder / "data")
        for file in _files(place)
        if (format_of(file) or file.suffix.casefold() in _OTHER_DATA)
        and file.resolve() not in known
    ]


def refuse_missing_split(folder: Path, split: str) -> UserError:
    """Return the error that says which file was expected and which files there are."""
    present = ", ".join(sorted(f.name for f in folder.iterdir())[:12]) or "nothing"
    others = [file.name for file in _readable(folder)]
    hint = ""
    if len(others) == 1 and split == "train":
        hint = f". Rename {others[0]}, or name the file itself with --data.path"
    return UserError(
        f"{folder}: no file for split {split!r}: expected {split}.jsonl"
        f" (or {', '.join(FORMATS[1:])}, .gz); found {present}{hint}"
    )


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(f for f in place.iterdir() if not f.name.startswith(".") and f.is_file())


def _readable(place: Path) -> list[Path]:
    return [file for file in _files(place) if format_of(file)]


def _whole(files: list[Path]) -> list[Path]:
    """Return `files` by their numbers.

    Raises:
        UserError: shards of which one is missing or there twice, or that belong to two sets.
    """
    first = _SHARD.fullmatch(stem_of(files[0]))
    if first is None:
        return files
    place, shards = files[0].parent, {}
    for file in files:
        shard = _SHARD.fullmatch(stem_of(file))
        assert shard is not None
        index, total = int(shard["index"]), int(shard["total"])
        if total != int(first["total"]) or index in shards:
            raise UserError(
                f"{place}: {files[0].name} and {file.name} belong to different sets of shards;"
                " expected one set. Move the other to another folder"
            )
        shards[index] = file
    total = int(first["total"])
    # Most tools count shards from 0, some from 1.
    start = 1 if total in shards and 0 not in shards else 0
    absent = [i for i in range(start, start + total) if i not in shards]
    if absent or len(shards) != total:
        begin, end = first.span("index")
        missing = [
            f"{files[0].name[:begin]}{i:0{end - begin}d}{_behind(files[0].name, first)}"
            for i in absent
        ]
        raise UserError(
            f"{place}: {', '.join(missing[:3]) or 'a shard'} is missing: {len(shards)} of {total}"
            f" {first['split']} shards are there; fetch the others, or join the rows in one file"
        )
    return [shards[i] for i in sorted(shards)]


def _behind(name: str, shard: re.Match[str]) -> str:
    """Return the part of a shard's name behind its number, without the hash of its content."""
    rest = name[shard.end("index") :]
    return rest if shard[4] is None else rest.replace(shard[4], "", 1)
