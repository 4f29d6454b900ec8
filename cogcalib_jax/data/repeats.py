"""Rows that ask the same question: within a split, and in files of predictions.

Repeats are one unit in intervals, paired differences, noise floors and p-values: a model that knows
the question is right in all of them, so they say no more than one row does.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cogcalib_jax.data.example import Example
from cogcalib_jax.data.tasks.fields import as_read

HASH = "question_hash"
"""The field of a prediction row that `question_hash` fills."""
_OPTIONS = ("choices", "options", "completions")


def question_key(example: Example) -> tuple[str, ...]:
    """Return a key that is equal for two rows that ask the same, as a reader sees it.

    Unicode form, white space and the order of choices do not count; case does (`fields.as_read`).
    Two references do not make an open question two.
    """
    return _key(example.passage, example.question, () if example.is_open else example.choices)


def question_hash(example: Example) -> str:
    """Return 16 hexadecimal digits of a hash of `question_key`."""
    return hashlib.sha256("\x1f".join(question_key(example)).encode()).hexdigest()[:16]


def question_clusters(rows: Iterable[Example]) -> np.ndarray:
    """Return [rows] int64: which question each row asks, numbered by first appearance."""
    return _numbers(map(question_key, rows))


def clusters_of_predictions(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return [rows] int64: which question each row of a file of predictions is about.

    Rows are about one question if they have the same `question_hash`, as files of this project
    have; else the same passage, question and options; else the same prompt and options; else the
    same id. A row with none of these is a question of its own.
    """
    return _numbers(_prediction_key(row, place) for place, row in enumerate(rows))


def repeats_note(name: str, clusters: np.ndarray) -> tuple[str, ...]:
    """Return a note on the repeated questions of the rows `name`; () if there are none.

    clusters: [rows], as the functions above give them.
    """
    questions = len(np.unique(clusters))
    if questions == len(clusters):
        return ()
    return (
        f"{name}: {len(clusters):,} rows, {questions:,} different questions; repeats of a question"
        " count as one in intervals, noise floors and p-values",
    )


def _key(passage: str, question: str, options: Iterable[str]) -> tuple[str, ...]:
    return (as_read(passage), as_read(question), *sorted(map(as_read, options)))


def _numbers(keys: Iterable[Hashable]) -> np.ndarray:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)


def _prediction_key(row: Mapping[str, Any], place: int) -> Hashable:
    if isinstance(row.get(HASH), str):
        return (HASH, row[HASH])
    passage = row["passage"] if isinstance(row.get("passage"), str) else ""
    options = next((texts for name in _OPTIONS if (texts := _texts(row.get(name)))), ())
    for name in ("question", "prompt"):
        if isinstance(row.get(name), str):
            return (name, _key(passage, row[name], options))
    if isinstance(row.get("id"), str | int):
        return ("id", str(row["id"]))
    return ("place", place)


def _texts(value: Any) -> tuple[str, ...]:
    """`value` if it is a list of texts, else ()."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return ()
