"""Metrics of a split's predictions and of its subgroups, and the files in which they are kept."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.data.example import Encoded
from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import write_whole
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics import summarize

VERSIONED = ("cogcalib-jax", "jax", "flax", "optax", "transformers", "numpy")
MOST_VALUES = 300
"""More than any field that groups questions has; MMLU has 57 subjects."""
LONGEST_VALUE = 100
"""characters of a text that can head a line of a table"""
DRAWS_PER_GROUP = 40
NULL, ABSENT = "(null)", "(absent)"
"""The subgroups of rows in which the field is null (or not a number), and of rows without it."""


def task_metrics(
    predictions: Predictions,
    config: EvaluationConfig,
    seed: int,
    exclusive: bool,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the numbers of one task in eval.json, from its predictions alone.

    exclusive: whether options exclude one another over the vocabulary (`EncodedSplit`); without
    that nothing can be said of them and "all else", and `vocab` is None.
    clusters: [n] which question each row asks (`data.example`); None: each its own.
    """
    metrics = summarize(
        predictions.probs,
        predictions.mask,
        predictions.answers,
        predictions.vocab_probs if exclusive else None,
        clusters=clusters,
        bins=config.bins,
        resamples=config.resamples,
        seed=seed,
    )
    metrics["gold_nll"] = float(predictions.gold_nll.mean())
    metrics["option_score"] = predictions.option_score
    metrics["single_token_options"] = bool(predictions.tokens.max() <= 1)
    if predictions.temperature != 1.0:
        metrics["temperature"] = predictions.temperature
    if predictions.calibrator is not None:
        metrics["calibrator"] = CALIBRATORS.spec(predictions.calibrator)
    if predictions.averaged is not None:
        metrics[predictions.averaged.over] = predictions.averaged.count
    return metrics


def data_hash(encoded: Sequence[Encoded]) -> str:
    """Return the SHA-256 of ids, texts and answers: equal hashes mean the same questions."""
    digest = hashlib.sha256()
    for e in encoded:
        asked = [e.id, e.prompt, e.completions, e.answer, *e.example.aliases]
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()


def provenance(seed: int, data: dict[str, str], protocol: str = "clean") -> dict[str, Any]:
    """Return the origin of numbers: versions, commit, device, data; no times, no names."""
    return {
        "versions": {name: version(name) for name in VERSIONED},
        "python": platform.python_version(),
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "data_hash": data,
        "seed": seed,
        "protocol": protocol,
    }


def _commit() -> str | None:
    """Return the commit of the source tree; None outside a git checkout."""
    result = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


@main_only
def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `path` whole or not at all; NaN is refused (a metric without a value is null)."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def question_fields(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
    """Return the fields that can group each question: its `group`, if any, and `extra`."""
    return [
        ({} if e.example.group is None else {"group": e.example.group}) | e.example.extra
        for e in encoded
    ]


def fields_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the fields that have a value in some row, and in every row one that groups can have.

    Such values are texts, whole numbers (2.0 is one) and true or false.
    """
    seen: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if not _is_null(value):
                seen[name] = seen.get(name, True) and _is_plain(value)
    return [name for name, plain in seen.items() if plain]


def require_fields(wanted: Sequence[str], tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse fields that cannot group questions, naming those that can.

    tasks: task -> the fields of each of its rows.

    Raises:
        UserError: no task has the field; its values are of another kind than `fields_of` takes, or
            more than `MOST_VALUES`, or texts longer than `LONGEST_VALUE`.
    """
    there = {task: fields_of(rows) for task, rows in tasks.items()}
    every = list(dict.fromkeys(name for names in there.values() for name in names))
    good = [name for name in every if not any(_why_not(name, *entry) for entry in tasks.items())]
    others = f"; or choose another field (there are: {', '.join(good)})" if good else ""
    for field in wanted:
        for task, rows in tasks.items():
            if reason := _why_not(field, task, rows):
                raise UserError(f"by = {field}: {reason}{others}")
        if field not in every:
            known = ", ".join(good) or f"none, as {', '.join(tasks)} says nothing of its questions"
            raise UserError(f"by = {field}: no such field of the questions (there are: {known})")


def _why_not(field: str, task: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why `field` cannot group the rows of `task`; None if it can, or no row has it."""
    values = [value for row in rows if not _is_null(value := row.get(field))]
    odd = next((value for value in values if not _is_plain(value)), None)
    if isinstance(odd, float):
        return (
            f"holds numbers with decimals in {task} ({len(set(map(str, values))):,} different"
            f" values, such as {odd:g}); expected texts, whole numbers, or true and false, at most"
            f" {MOST_VALUES} different ones. Give each row a field with the range that its number"
            ' falls in, such as "low" and "high"'
        )
    if odd is not None:
        kind = "lists" if isinstance(odd, list | tuple) else "objects"
        return (
            f"holds {kind} in {task}; expected texts, whole numbers, or true and false, at most"
            f" {MOST_VALUES} different ones"
        )
    names = set(_values(field, rows)) if values else set()
    if len(names) > MOST_VALUES:
        return (
            f"has {len(names):,} different values in {task}, so it names rows and not groups of"
            f" them (at most {MOST_VALUES})"
        )
    longest = max((len(value) for value in values if isinstance(value, str)), default=0)
    if longest > LONGEST_VALUE:
        return (
            f"has texts of up to {longest:,} characters in {task}; expected names of groups, of at"
            f" most {LONGEST_VALUE} characters"
        )
    return None


def subgroups(
    fields: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    config: EvaluationConfig,
    summarize: Callable[[EvaluationConfig, np.ndarray], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Return field -> value -> numbers of the rows with that value, numbers before words.

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


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def _values(field: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_name(row[field]) if field in row else ABSENT for row in rows]


def _name(value: str | float | bool | None) -> str:
    """The name of the subgroup with this value: another one for every text, and for null.

    A text that would look like one of the names made here, or like no text at all, is quoted.
    """
    if _is_null(value):
        return NULL
    if isinstance(value, str):
        quoted = value in ("", NULL, ABSENT) or value.startswith('"')
        return json.dumps(value, ensure_ascii=False) if quoted else value
    return str(value).lower() if isinstance(value, bool) else str(int(value))


def _order(value: str) -> tuple[int, int, str]:
    """Numbers, then texts, then rows that have no value."""
    # More digits than 64 bits need are a text: Python reads no number of thousands of them.
    number = value.removeprefix("-").isdecimal() and len(value) <= 20
    kind = 0 if number else 2 if value in (NULL, ABSENT) else 1
    return (kind, int(value) if number else 0, value)
