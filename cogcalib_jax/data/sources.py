"""Rows as they are stored: on the Hub, or in local JSONL and Parquet files of the same schema."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cogcalib_jax.console import quiet_downloads
from cogcalib_jax.data.example import BadRow
from cogcalib_jax.errors import UserError
from cogcalib_jax.weights.foreign import damage

_SUFFIXES = (".jsonl", ".parquet")


class Hub(NamedTuple):
    """A data set on the Hugging Face Hub."""

    name: str
    config: str | None = None


class Row(NamedTuple):
    """One stored row. `content` is the reason where it could not even be read."""

    where: str
    number: int
    content: Mapping[str, Any] | BadRow


def read_hub(hub: Hub, split: str) -> list[Row]:
    """All rows of one split of the Hub (or of the cache `datasets` keeps of it).

    Raises:
        UserError: no network, or no such data set, config or split.
    """
    # Imported here: it takes about a second, and the world and local files do without.
    import datasets

    quiet_downloads(datasets)
    source = f"{hub.name}{f' ({hub.config})' if hub.config else ''} on the Hugging Face Hub"
    try:
        rows = datasets.load_dataset(hub.name, hub.config, split=split)
    except ConnectionError as error:
        raise UserError(
            f"{source} cannot be reached and is not in the local cache: check the network (and "
            f"HF_HUB_OFFLINE), or pass its files with --data.path FOLDER ({_line(error)})"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{source}: cannot read split {split!r}: {_line(error)}; "
            "or pass its files with --data.path FOLDER"
        ) from error
    where = f"{hub.name} {split} row"
    return [Row(f"{where} {n}", n, content) for n, content in enumerate(rows, start=1)]


def split_files(folder: Path, split: str, config: str | None = None) -> list[Path]:
    """Files in `folder` that hold `split`; empty where there are none.

    Recognised: `winogrande_s.train.jsonl` (config and split), `train.jsonl`, either also as
    `.parquet` or in a subfolder named after the config, and the Hub's own Parquet shards,
    `train-00000-of-00002.parquet`, there or in `data/`.

    Raises:
        UserError: the same split is there both as JSONL and as Parquet.
    """
    names = [f"{config}.{split}", split] if config else [split]
    folders = [folder / config, folder] if config else [folder]
    for place in folders:
        for name in names:
            found = [f for suffix in _SUFFIXES if (f := place / f"{name}{suffix}").is_file()]
            if len(found) > 1:
                raise UserError(
                    f"{place}: both {found[0].name} and {found[1].name} are there; remove one"
                )
            if found:
                return found
    for place in (*folders, folder / "data"):
        if shards := sorted(place.glob(f"{split}-*-of-*.parquet")):
            return shards
    return []


def read_files(folder: Path, split: str, config: str | None = None) -> list[Row]:
    """All rows of one split of a local folder; see `split_files`.

    Raises:
        UserError: no such folder, no file for the split, or a file that is no JSONL or Parquet.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder or file; --data.path names the folder of the splits, or one"
            " file of rows"
        )
    files = split_files(folder, split, config)
    if not files:
        present = ", ".join(sorted(f.name for f in folder.iterdir())[:12]) or "nothing"
        wanted = f"{config}.{split}.jsonl or {split}.jsonl" if config else f"{split}.jsonl"
        raise UserError(
            f"{folder}: no file for split {split!r}: expected {wanted} (or .parquet); "
            f"found {present}"
        )
    return [row for file in files for row in read_file(file)]


def read_file(file: Path) -> list[Row]:
    """All rows of one JSONL or Parquet file.

    Raises:
        UserError: no such file, not readable, or of another kind.
    """
    if file.suffix not in _SUFFIXES:
        raise UserError(f"{file}: must be a .jsonl or .parquet file")
    if file.is_fifo():  # who opens one waits for its other end
        raise UserError(f"{file}: is a pipe, no file; write its rows to a file first")
    try:
        return list(_read_jsonl(file) if file.suffix == ".jsonl" else _read_parquet(file))
    except OSError as error:
        reason = error.strerror or _line(error)
        raise UserError(f"{file}: cannot be read ({reason}); give another file") from error


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        # Bytes are cut at "\n" alone: JSON text may hold U+2028, at which str.splitlines cuts.
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(f"{file}:{number}", number, _parse(line))


def _parse(line: bytes) -> Mapping[str, Any] | BadRow:
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow("is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({damage(error)})")
    if not isinstance(content, dict):
        return BadRow(f"must be a JSON object, is a {type(content).__name__}")
    return content


def _read_parquet(file: Path) -> Iterator[Row]:
    # Imported here for the same reason as `datasets`, which brings it.
    import pyarrow
    import pyarrow.parquet

    try:
        # A plain file and no data set: folder names such as `x=1` must not become columns.
        table = pyarrow.parquet.ParquetFile(file).read()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{file}: is no readable Parquet file ({_line(error)}); write it again"
        ) from error
    for number, content in enumerate(table.to_pylist(), start=1):
        yield Row(f"{file} row {number}", number, content)


def _line(error: BaseException) -> str:
    """The first line of a library's message, which may run over many."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
