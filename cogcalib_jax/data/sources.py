"""Rows as they are stored: on the Hub, or in local files of the same schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cogcalib_jax.data.formats import FileRows, Row, first_line, read_file
from cogcalib_jax.data.split_files import refuse_missing_split
from cogcalib_jax.errors import UserError


class Hub(NamedTuple):
    """A data set on the Hugging Face Hub."""

    name: str
    config: str | None = None


class Stored(NamedTuple):
    """All rows of one stored split, and where they were read."""

    rows: list[Row]
    source: str
    """where they are, for messages"""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    """how files were read, if not in the plain way"""


def read_hub(
    hub: Hub, split: str, load: Callable[..., Iterable[Mapping[str, Any]]] | None = None
) -> Stored:
    """Read all rows of one split of the Hub (or of the cache that `datasets` keeps of it).

    load: called as `datasets.load_dataset`, which is the default.

    Raises:
        UserError: no network, a download that breaks off, or no such data set, config or split.
    """
    if load is None:
        # Imported here: it takes about a second, and the world and local files do without.
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
    # Every class: `datasets` passes on whatever its HTTP client of the day, its JSON and Parquet
    # readers and its checks raise, and they share no base.
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
    """Read all rows of one split of a local folder from `files`, as `split_files` found them.

    Raises:
        UserError: no such folder, no file for the split, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder or file; --data.path names the folder of the splits, or one"
            " file of rows"
        )
    if not files:
        raise refuse_missing_split(folder, split)
    return stored_rows(files, f"{folder} {split}")


def stored_rows(files: Iterable[Path], source: str) -> Stored:
    """Read all rows of these files, in their order; `source` says where they are."""
    read: dict[Path, FileRows] = {file: read_file(file) for file in files}
    return Stored(
        [row for content in read.values() for row in content.rows],
        source,
        tuple(read),
        tuple(dict.fromkeys(content.note for content in read.values() if content.note)),
    )
