"""The columns of a row that hold its question, its choices and its answer."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import Any, NamedTuple

from cogcalib_jax.data.example import BadRow
from cogcalib_jax.data.tasks.fields import clean, texts
from cogcalib_jax.errors import UserError

NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "question_stem", "stem"),
    "choices": ("choices", "options", "opts"),
    "answer": ("answer", "answer_key", "correct", "correct_answer", "label", "target"),
    "passage": ("passage", "context", "article"),
    "group": ("group",),
    "id": ("id",),
    "known": ("known",),
}
"""field -> the names of its column, the plain one first; case, spaces, "_" and "-" are ignored"""
PREFIXES = ("", "choice", "option", "opt", "op")
"""columns of choices: one of these and A, B, C, ...; or one but the first and 1, 2, 3, ..."""
OTHERS = ("passage", "group", "id", "known")
"""fields that a row may lack"""
OPEN = "none"
"""in place of a field's columns: the questions have none; without choices they are open"""
Columns = Mapping[str, str]
"""field -> its column, or its columns joined by "+", as `--data.columns` names them"""

_RUN = re.compile(r"(.*?)([a-z]|\d+)")
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ARRAY = re.compile(rf"\[\s*(?:{_QUOTED})(?:\s+(?:{_QUOTED}))+\s*\]", re.DOTALL)
_PAIRS = (("label", "text"), ("key", "value"))


class Choices(NamedTuple):
    """The choices of a row."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """the row's own, else A, B, C, ..."""


class Found(NamedTuple):
    """The columns of a row that are read."""

    question: str | None
    choices: Choices | None
    answers: tuple[str, ...]
    """every column that is not empty and could be the answer by its name"""
    others: Mapping[str, str]
    """those of `OTHERS` that the row has, with their columns"""


def parse_columns(entries: Iterable[str]) -> dict[str, str]:
    """Return `FIELD=COLUMN` and `choices=COLUMN+COLUMN` as a mapping (ValueError: another form; the
    message follows "must be")."""
    asked: dict[str, str] = {}
    for entry in entries:
        field, _, columns = (part.strip() for part in entry.partition("="))
        if field not in NAMES or field in asked or not columns:
            raise ValueError(
                f"FIELD=COLUMN, each field ({', '.join(NAMES)}) once, as in"
                f" question=stem,choices=A+B+C+D,answer=key (got {entry!r})"
            )
        asked[field] = columns
    return asked


def find(row: Mapping[str, Any], where: str, asked: Columns) -> Found:
    """Find the columns of one row.

    Raises:
        BadRow: choices that cannot be read.
        UserError: two columns that could both be the question or the choices; a column that looks
            like choices in a row without any.
    """
    question = _one(row, where, asked, "question")
    answers = _named(row, asked, "answer")
    columns = {field: _one(row, where, asked, field) for field in OTHERS}
    others = {field: column for field, column in columns.items() if column is not None}
    if asked.get("choices") == OPEN:
        return Found(question, None, answers, others)
    found = _choices(row, asked)
    if len({choices.texts for choices in found}) > 1:
        first, second = ("+".join(choices.columns) for choices in found[:2])
        raise two_columns(where, "choices", first, second)
    choices = found[0] if found else None
    if choices is None:
        if "choices" in asked:
            raise BadRow(f"has no choices in column {asked['choices']!r}")
        used = {question, *answers[:1], *others.values()}
        other = _like_choices({name: value for name, value in row.items() if name not in used})
        if other:
            raise UserError(
                f"{where}: column {other!r} looks like choices, and is not read. Name it with"
                f" --data.columns choices={other}, or say that the questions are open with"
                f" --data.columns choices={OPEN}"
            )
    return Found(question, choices, answers, others)


def is_absent(value: Any) -> bool:
    """Return whether a value is missing: null, or the NaN that tables have in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(row: Mapping[str, Any], asked: Columns, field: str) -> bool:
    """Return whether a column of a field is there and holds nothing."""
    names = [asked[field]] if field in asked else [n for n in row if _plain(n) in _PLAIN[field]]
    return any(name in row and is_absent(row[name]) for name in names)


def two_columns(where: str, field: str, first: str, second: str) -> UserError:
    """Return the error for a row in which two columns could be the same field."""
    return UserError(
        f"{where}: columns {first!r} and {second!r} could both be the {field}; expected one of"
        f" them. Name it with --data.columns {field}={first} or {field}={second}"
    )


def _one(row: Mapping[str, Any], where: str, asked: Columns, field: str) -> str | None:
    # An empty text beside a filled one holds nothing, like an empty cell of a table.
    named = _named(row, asked, field)
    found = [name for name in named if row[name] != ""] or named
    if len({row[name] if isinstance(row[name], str) else name for name in found}) > 1:
        raise two_columns(where, field, *found[:2])
    return found[0] if found else None


def _named(row: Mapping[str, Any], asked: Columns, field: str) -> tuple[str, ...]:
    """Return the columns of a field that hold something, in the order of `NAMES`."""
    if field in asked:
        return () if is_absent(row.get(asked[field])) else (asked[field],)
    taken = set(asked.values())
    return in_order(
        [
            name
            for name, value in row.items()
            if _plain(name) in _PLAIN[field] and not is_absent(value) and name not in taken
        ],
        field,
    )


def in_order(names: Iterable[str], field: str) -> tuple[str, ...]:
    """Return the columns of a field, each once, the plainest name first."""
    wanted = _PLAIN[field]
    rank = {name: i for i, name in enumerate(wanted)}
    return tuple(sorted(dict.fromkeys(names), key=lambda n: rank.get(_plain(n), len(rank))))


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


_PLAIN = {field: [_plain(name) for name in names] for field, names in NAMES.items()}


def _choices(row: Mapping[str, Any], asked: Columns) -> list[Choices]:
    """Return all choices of a row by the names of its columns."""
    found = []
    if "choices" in asked:
        columns = tuple(part.strip() for part in asked["choices"].split("+"))
        if asked["choices"] not in row and len(columns) > 1:
            return _run(row, columns, ascii_uppercase[: len(columns)])
    else:
        for prefix, columns, ends in _runs(row):
            if prefix in PREFIXES and (prefix or ends[0] == "a"):
                found += _run(row, columns, tuple(end.upper() for end in ends))
    for name in _named(row, asked, "choices"):
        # Beside columns A, B, C, ... a plain text is a remark.
        if not (found and isinstance(row[name], str) and parsed(row[name]) is None):
            found.append(Choices((name,), *_read_choices(row[name], name)))
    return found


def _runs(row: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return runs of columns: the beginning of their names, the columns, the ends of their names.

    A run is at least the first two of a, b, c, ..., of 0, 1, 2, ... or of 1, 2, 3, ...
    """
    names: dict[str, dict[str, str]] = {}
    for name in row:
        if match := _RUN.fullmatch(_plain(name)):
            names.setdefault(match[1], {}).setdefault(match[2], name)
    runs = []
    for prefix, ends in names.items():
        starts = [ascii_uppercase.lower(), *(map(str, range(s, 1000)) for s in (0, 1))]
        for start in starts:
            run = []
            for end in start:
                if end not in ends:
                    break
                run.append(end)
            if len(run) > 1:
                runs.append((prefix, tuple(ends[end] for end in run), tuple(run)))
                break
    return runs


def _run(row: Mapping[str, Any], columns: Sequence[str], labels: Sequence[str]) -> list[Choices]:
    """Return the choices of a run of columns; the last ones may be empty, or all of them."""
    held = [not is_absent(row.get(column)) for column in columns]
    if not any(held):
        return []
    size = len(held) - held[::-1].index(True)
    if not all(held[:size]):
        empty = columns[held.index(False)]
        raise BadRow(f"column {empty!r} is empty, and {columns[size - 1]!r} behind it is not")
    read = tuple(clean(row[column], column) for column in columns[:size])
    return [Choices(tuple(columns[:size]), read, tuple(labels[:size]))]


def _read_choices(value: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts and labels of choices in one column (BadRow if it holds none).

    Accepted are a list of texts, that list written as JSON (or by Python) in a text, the Hub's
    {"text": [...], "label": [...]}, {"A": ..., "B": ...}, and a list of {"label": ..., "text": ...}
    or {"key": ..., "value": ...}.
    """
    if isinstance(value, str):
        value = parsed(value)
        if value is None:
            raise BadRow(
                f"{name!r} must be a list of texts, is a text; write it as JSON,"
                ' as in ["red", "green"], or give each choice a column (A, B, C, ...)'
            )
    if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
        read = texts(value["text"], f"{name}.text")
        labels = value.get("label")
        return read, _letters(len(read)) if labels is None else _labels(labels, len(read), name)
    if isinstance(value, Mapping):
        held = {key: item for key, item in value.items() if not is_absent(item)}
        read = tuple(clean(item, f"{name}.{key}") for key, item in held.items())
        return read, _labels(list(held), len(read), name)
    for key, text in _PAIRS:
        if _is_list(value, Mapping) and all({key, text} <= set(item) for item in value):
            read = tuple(clean(item[text], f"{name}[{i}].{text}") for i, item in enumerate(value))
            return read, _labels([item[key] for item in value], len(read), name)
    read = texts(value, name)
    return read, _letters(len(read))


def _letters(size: int) -> tuple[str, ...]:
    return tuple(ascii_uppercase[:size]) + ("",) * (size - len(ascii_uppercase))


def _labels(labels: Any, size: int, name: str) -> tuple[str, ...]:
    labels = texts([str(x) if isinstance(x, int) else x for x in labels], f"{name} labels")
    if len(labels) != size or len(set(labels)) != size:
        raise BadRow(f"{name!r} has {size} choices, which do not match its {len(labels)} labels")
    return labels


def parsed(value: str) -> Any:
    """Return the list or object that a text notates, or None.

    A table that pandas wrote may hold lists as numpy shows them: ['red' 'green'], or array([...])
    within an object.
    """
    value = value.strip()
    if value[:1] not in ("[", "{"):
        return None
    if _ARRAY.fullmatch(value):  # to Python, texts beside each other are one
        return [ast.literal_eval(text) for text in re.findall(_QUOTED, value, re.DOTALL)]
    for parse in (json.loads, _python):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _python(value: str) -> Any:
    return ast.literal_eval(_Lists().visit(ast.parse(value, mode="eval")))


class _Lists(ast.NodeTransformer):
    """Puts the list in the place of array([...], dtype=object)."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and node.args
        return node.args[0] if is_array else node


def _is_list(value: Any, kind: type) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 1
        and all(isinstance(item, kind) for item in value)
    )


def _like_choices(row: Mapping[str, Any]) -> str | None:
    """Return a column, or columns joined by "+", whose values look like choices; or None."""
    for name, value in row.items():
        value = parsed(value) if isinstance(value, str) else value
        if _is_list(value, str) or (_is_list(value, Mapping) and _reads(value, name)):
            return name
        if isinstance(value, Mapping) and len(value) > 1 and _is_lettered(value):
            return name
    for _, columns, _ in _runs(row):
        held = [name for name in columns if isinstance(row[name], str) and row[name].strip()]
        if len(held) > 1 and held == list(columns[: len(held)]):
            return "+".join(held)
    return None


def _reads(value: Any, name: str) -> bool:
    try:
        return len(_read_choices(value, name)[0]) > 1
    except BadRow:
        return False


def _is_lettered(value: Mapping[str, Any]) -> bool:
    return ({"text", "label"} <= set(value) or bool(_runs(value))) and _reads(value, "")
