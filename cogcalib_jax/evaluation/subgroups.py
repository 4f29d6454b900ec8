"""Calibration of the parts of a task: all questions with one value of a field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cogcalib_jax.data.example import Encoded
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.config import EvaluationConfig

MOST_VALUES = 300
"""More than any field that groups questions has; MMLU has 57 subjects."""
DRAWS_PER_GROUP = 40
ABSENT = "none"
"""The subgroup of rows in which the field is absent or null."""


def question_fields(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
    """What the questions can be grouped by: `group` where there is one, and what `extra` holds."""
    return [{"group": e.example.group} | e.example.extra for e in encoded]


def fields_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the fields that have a value in some row, and in every row one of a plain kind."""
    seen: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                seen[name] = seen.get(name, True) and isinstance(value, str | int | bool)
    return [name for name, plain in seen.items() if plain]


def require_fields(wanted: Sequence[str], tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse a field that no task has, with those there are; and one with a value for every row.

    tasks: task -> the fields of each of its rows.
    """
    there = {task: fields_of(rows) for task, rows in tasks.items()}
    every = list(dict.fromkeys(name for names in there.values() for name in names))
    for field in wanted:
        if field not in every:
            known = ", ".join(every) or f"none, as {', '.join(tasks)} says nothing of its questions"
            raise UserError(f"by = {field}: no such field of the questions (there are: {known})")
        for task, rows in tasks.items():
            values = len(set(_values(field, rows))) if field in there[task] else 0
            if values > MOST_VALUES:
                raise UserError(
                    f"by = {field}: has {values:,} different values in {task}, so it names rows and"
                    f" not groups of them (at most {MOST_VALUES}); choose another field"
                )


def subgroups(
    fields: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    config: EvaluationConfig,
    summarize: Callable[[EvaluationConfig, np.ndarray], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Field -> value -> numbers of the rows with that value; numbers before words, each in order.

    fields: those that `rows` lack are left out. rows: the fields of each row. summarize: the
    numbers of the rows with these indices.
    """
    results: dict[str, dict[str, Any]] = {}
    there = fields_of(rows)
    for field in fields:
        if field in there:
            values = np.array(_values(field, rows))
            groups = sorted(set(values.tolist()), key=_order)
            # The smallest p-value is 1 / (1 + draws): with fewer draws, no group could pass Holm's
            # correction over all of them.
            draws = max(config.resamples, DRAWS_PER_GROUP * len(groups))
            enough = replace(config, resamples=draws)
            results[field] = {
                value: summarize(enough, np.flatnonzero(values == value)) for value in groups
            }
    return results


def _values(field: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_text(row.get(field)) for row in rows]


def _text(value: str | int | bool | None) -> str:
    if value is None:
        return ABSENT
    return str(value).lower() if isinstance(value, bool) else str(value)


def _order(value: str) -> tuple[bool, int, str]:
    # More digits than 64 bits need are a text: Python reads no number of thousands of them.
    number = value.removeprefix("-").isdecimal() and len(value) <= 20
    return (not number, int(value) if number else 0, value)
