"""Stored rows: the Hub, or files of a local folder, each of which holds a split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cogcalib_jax.data.formats import FORMATS, Row, first_line, format_of, read_file, stem_of
from cogcalib_jax.errors import UserError

SPLIT_NAMES = {"validation": ("validation", "val", "valid", "dev", "eval")}
"""stored split -> the names that its file may have; other splits have one name, their own"""

# Kinds of data that are not read; such files are named in a note.
_OTHER_DATA = (".arrow", ".bz2", ".feather", ".gz", ".orc", ".pkl", ".txt", ".xls", ".xlsx", ".xz")
_OTHER_DATA += (".zip", ".zst")
# The Hub's names of shards; old ones end in a hash.
_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d+)-of-(?P<total>\d+)(-[0-9a-f]{8,})?")


class Hub(NamedTuple):
    """A data set on the Hugging Face Hub."""

    name: str
    config: str | None = None


class Stored(NamedTuple):
    """All rows of one stored split, and their place."""

    rows: list[Row]
    source: str
    """their place, for messages"""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    """how files were read, if not in the usual way"""


def read_hub(
    hub: Hub, split: str, load: Callable[..., Iterable[Mapping[str, Any]]] | None = None
) -> Stored:
    """Read all rows of one split of the Hub (or of the cache that `datasets` keeps of it).

    load: called as `datasets.load_dataset`, which is the default.

    Raises:
        UserError: no network, a download that breaks off, or no such data set, config or split.
    """
    if load is None:
        # Imported here: it takes about a second, and local files do without.
        import datasets

        from cogcalib_jax.console import quiet_downloads

        quiet_downloads(datasets)
        load = datasets.load_dataset
    source = f"{hub.name}{f' ({hub.config})' if hub.config else ''} on the Hugging Face Hub"
    try:
        rows = list(load(hub.name, hub.config, split=split))
    except ConnectionError as error:
        raise UserError(
            f"{source} cannot be reached and is not in the local cache: check the network (and "
            f"HF_HUB_OFFLINE), or pass its files with --data.path FOLDER ({first_line(error)})"
        ) from error
    except MemoryError:
        raise
    # `datasets` passes on the errors of its HTTP client and of its readers, which share no base.
    except Exception as error:
        raise UserError(
            f"{source}: cannot read split {split!r}: {_reason(error, hub)}; "
            "or pass its files with --data.path FOLDER"
        ) from error
    where = f"{hub.name} {split} row"
    numbered = [Row(f"{where} {n}", n, content) for n, content in enumerate(rows, start=1)]
    return Stored(numbered, f"{hub.name} {split}")


def _reason(error: Exception, hub: Hub) -> str:
    text = first_line(error)
    if isinstance(error, RuntimeError) and "script" in text:
        return f"{text}: the folder {hub.name} here is read in place of the Hub; rename it"
    if type(error).__module__.partition(".")[0] in ("builtins", "datasets", "huggingface_hub"):
        return text
    return f"the download broke off ({type(error).__name__}: {text}); start again"


def read_files(folder: Path, split: str, files: Sequence[Path]) -> Stored:
    """Read all rows of one split of a local folder from `files`, as `split_files` found them
    (UserError: no such folder, no file for the split, or a file that cannot be read)."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder or file; --data.path names the folder of the splits, or one"
            " file of rows"
        )
    if not files:
        present = ", ".join(sorted(f.name for f in folder.iterdir())[:12]) or "nothing"
        others = [file.name for file in _readable(folder)]
        hint = ""
        if len(others) == 1 and split == "train":
            hint = f". Rename {others[0]}, or name the file itself with --data.path"
        raise UserError(
            f"{folder}: no file for split {split!r}: expected {split}.jsonl"
            f" (or {', '.join(FORMATS[1:])}, .gz); found {present}{hint}"
        )
    return stored_rows(files, f"{folder} {split}")


def stored_rows(files: Iterable[Path], source: str) -> Stored:
    """Read all rows of these files, in their order; `source` is their place in messages."""
    read = {file: read_file(file) for file in files}
    return Stored(
        [row for content in read.values() for row in content.rows],
        source,
        tuple(read),
        tuple(dict.fromkeys(content.note for content in read.values() if content.note)),
    )


def split_files(
    folder: Path, split: str, config: str | None = None, *, usual_names: bool = False
) -> list[Path]:
    """Return the files in `folder` that hold `split`, in their order; [] if there are none.

    A split is one file, `train.csv` or `winogrande_s.train.jsonl` (config and split), or shards,
    `train-00000-of-00002.parquet`; in a subfolder named after the config, in the folder itself, or
    in its subfolder `data`, whichever comes first. Case is ignored.

    usual_names: accept `SPLIT_NAMES` of the split.

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


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(f for f in place.iterdir() if not f.name.startswith(".") and f.is_file())


def _readable(place: Path) -> list[Path]:
    return [file for file in _files(place) if format_of(file)]


def _whole(files: list[Path]) -> list[Path]:
    """Return `files` by their shard numbers (UserError if one is missing or twice there)."""
    shards: dict[int, Path] = {}
    place = files[0].parent
    first = _SHARD.fullmatch(stem_of(files[0]))
    if first is None:
        return files
    total = int(first["total"])
    for file in files:
        shard = _SHARD.fullmatch(stem_of(file))
        assert shard is not None
        if int(shard["total"]) != total or int(shard["index"]) in shards:
            raise UserError(
                f"{place}: {files[0].name} and {file.name} belong to different sets of shards;"
                " expected one set. Move the other to another folder"
            )
        shards[int(shard["index"])] = file
    # Most tools count shards from 0, some from 1.
    start = 1 if total in shards and 0 not in shards else 0
    absent = [i for i in range(start, start + total) if i not in shards]
    if absent or len(shards) != total:
        name, (begin, end) = files[0].name, first.span("index")
        rest = name[end:] if first[4] is None else name[end:].replace(first[4], "", 1)
        missing = [f"{name[:begin]}{i:0{end - begin}d}{rest}" for i in absent]
        raise UserError(
            f"{place}: {', '.join(missing[:3]) or 'a shard'} is missing: {len(shards)} of {total}"
            f" {first['split']} shards are there; fetch the others, or join the rows in one file"
        )
    return [shards[i] for i in sorted(shards)]
