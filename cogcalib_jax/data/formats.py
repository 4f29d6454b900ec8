"""One file of rows: CSV, TSV, JSON, JSON lines, Parquet, and the text formats with gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cogcalib_jax.data.example import BadRow
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of

TABLES = (".csv", ".tsv")
"""suffixes of the formats in which every value is a text"""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# The line that Excel writes and reads before a header.
_DECLARED = re.compile(r'"?sep=([,;\t])"?\r?\n', re.IGNORECASE)
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


class Row(NamedTuple):
    """One stored row. `content` is the reason if it could not even be read."""

    where: str
    """FILE:LINE, or FILE row NUMBER if the format has no lines"""
    number: int
    """the row's line, or its number from 1 if the format has no lines; ids are made from it"""
    content: Mapping[str, Any] | BadRow


class FileRows(NamedTuple):
    """All rows of one file."""

    rows: list[Row]
    note: str = ""
    """how the file was read, if it was not read in the usual way"""


def format_of(file: Path) -> str | None:
    """Return the suffix that decides how `file` is read (".csv" for x.CSV.gz), or None."""
    suffixes = ["", *(suffix.casefold() for suffix in file.suffixes)]
    zipped = suffixes[-1] == ".gz"
    suffix = suffixes[-2 if zipped else -1]
    return suffix if suffix in (_READERS if zipped else FORMATS) else None


def stem_of(file: Path) -> str:
    """Return the name of `file` without the suffixes that name its format."""
    name = file.name[: -len(".gz")] if file.suffix.casefold() == ".gz" else file.name
    return name[: -len(Path(name).suffix)]


def read_file(file: Path) -> FileRows:
    """Read all rows of one file.

    Raises:
        UserError: no such file, a file that cannot be read, or one of another format.
    """
    suffix = format_of(file)
    if suffix is None:
        raise UserError(
            f"{file}: is not a file of rows; expected {', '.join(FORMATS)}, or one of the text"
            " formats with .gz. Save the rows in one of them"
        )
    if file.is_fifo():  # opening one waits for its other end
        raise UserError(f"{file}: is a pipe, not a file; write its rows to a file first")
    try:
        return _read_parquet(file) if suffix == ".parquet" else _READERS[suffix](file, _bytes(file))
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"{file}: cannot be read ({reason}); give another file") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _bytes(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix.casefold() == ".gz":
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{file}: is not a complete gzip file ({first_line(error)}); fetch it again"
            ) from error
    if data.startswith(_UTF_16_OR_32):
        raise UserError(f"{file}: is UTF-16 or UTF-32 text; expected UTF-8. Save it as UTF-8")
    return data


def _text(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}:{line}: is not UTF-8 text (byte {error.start}); save the file as UTF-8"
        ) from error


def _read_json(file: Path, data: bytes) -> FileRows:
    """Read an array of objects, or one object a line, whatever the file's suffix is."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[":
        try:
            values = _json(_text(file, data))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}: is not a JSON array of objects ({reason_of(error)}); write it again"
            ) from error
        return FileRows(
            [Row(f"{file} row {n}", n, _object(value)) for n, value in enumerate(values, start=1)]
        )
    # Split at "\n" alone: JSON text may hold U+2028, at which str.splitlines splits.
    lines = enumerate(data.split(b"\n"), start=1)
    rows = [Row(f"{file}:{number}", number, _parse(line)) for number, line in lines if line.strip()]
    if start == b"{" and len(rows) != 1 and isinstance(rows[0].content, BadRow):
        # The first line alone is no JSON: an object that was written over several lines.
        try:
            return FileRows([Row(f"{file}:1", 1, _json(data.decode("utf-8-sig")))])
        except (ValueError, RecursionError):
            return FileRows(rows)
    return FileRows(rows)


def _parse(line: bytes) -> Mapping[str, Any] | BadRow:
    try:
        return _object(_json(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return BadRow("is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({reason_of(error)})")


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.60} occurs twice in an object")
    return found


def _object(content: Any) -> Mapping[str, Any] | BadRow:
    if not isinstance(content, dict):
        return BadRow(f"must be a JSON object, is a {type(content).__name__}")
    return content


def _read_table(file: Path, data: bytes, usual: str) -> FileRows:
    """Read a table of texts with a header. No cell is taken for a number; an empty one is None."""
    text = _text(file, data)
    if not text.strip():
        return FileRows([])
    if "\0" in text:
        raise UserError(f"{file}: holds NUL characters and is not text; save it as UTF-8")
    separator = _separator(file, text)
    # A passage may be longer than the module's limit of 131,072 characters.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    cells = _cells(text, separator)
    rows: list[Row] = []
    line = 1
    try:
        if _DECLARED.match(text):
            next(cells)
        header = [cell.strip() or f"column {i}" for i, cell in enumerate(next(cells), start=1)]
        require_distinct(file, header)
        line = cells.line_num + 1
        for record in cells:
            if any(cell.strip() for cell in record):
                rows.append(Row(f"{file}:{line}", line, _record(header, record)))
            line = cells.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}:{line}: is not a row of a table with {_SEPARATORS[separator]} ({error}); a"
            " quotation mark inside a cell is written twice"
        ) from error
    if separator == usual:
        return FileRows(rows)
    return FileRows(rows, f"columns of {file.name} separated by {_SEPARATORS[separator]}")


def _cells(text: str, separator: str) -> Any:
    # strict: an open quotation mark would swallow the rows after it. Behind a space, a quotation
    # mark would be a part of the text.
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)


def _separator(file: Path, text: str) -> str:
    """Return the separator that the file declares, or that cuts the header into most columns."""
    if declared := _DECLARED.match(text):
        return declared[1]
    counts = {}
    for separator in _SEPARATORS:
        try:
            counts[separator] = len(next(_cells(text, separator)))
        except csv.Error:
            counts[separator] = 0
    most = max(counts.values())
    best = [separator for separator, count in counts.items() if count == most]
    if most < 2:
        header = text.lstrip().splitlines()[0]
        raise UserError(
            f"{file}:1: header {header!r:.60} has one column; expected several, with commas,"
            " semicolons or tabs between them. Write the header with its separators"
        )
    if len(best) > 1:
        words = " or ".join(_SEPARATORS[separator] for separator in best)
        raise UserError(
            f"{file}:1: header may be separated by {words}; expected one of them. Put column names"
            " that hold the other into quotation marks"
        )
    return best[0]


def require_distinct(file: Path | str, names: list[str]) -> None:
    """Refuse a table in which two columns have one name; raises UserError."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{file}: column {twice[0]!r} occurs twice; expected every name once. Rename one"
        )


def _record(header: list[str], cells: list[str]) -> Mapping[str, Any] | BadRow:
    if len(cells) > len(header) and not any(cell.strip() for cell in cells[len(header) :]):
        cells = cells[: len(header)]
    if len(cells) != len(header):
        return BadRow(f"has {len(cells)} cells; the header has {len(header)}")
    return {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}


def _read_parquet(file: Path) -> FileRows:
    # Imported here, as `datasets` is: it takes a while, and text files do without.
    import pyarrow
    import pyarrow.parquet

    try:
        # A plain file and no data set: folder names such as `x=1` must not become columns.
        table = pyarrow.parquet.ParquetFile(file).read()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{file}: is not a readable Parquet file ({first_line(error)}); write it again"
        ) from error
    require_distinct(file, table.column_names)
    columns = [_values(file, name, table[name]) for name in table.column_names]
    rows = zip(*columns, strict=True) if columns else iter([()] * table.num_rows)
    return FileRows(
        [
            Row(f"{file} row {n}", n, dict(zip(table.column_names, values, strict=True)))
            for n, values in enumerate(rows, start=1)
        ]
    )


def _values(file: Path, name: str, column: Any) -> list[Any]:
    import pyarrow

    try:
        try:
            return column.to_pylist(maps_as_pydicts="strict")
        except KeyError:  # a map with the same key twice: its pairs
            return column.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UserError(
            f"{file}: column {name!r} of type {column.type} holds a value that Python has no form"
            f" for ({first_line(error)}); leave the column out, or write it as text"
        ) from error


_READERS: dict[str, Callable[[Path, bytes], FileRows]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": partial(_read_table, usual=","),
    ".tsv": partial(_read_table, usual="\t"),
}
FORMATS = (*_READERS, ".parquet")
"""suffixes of the files that can be read"""
