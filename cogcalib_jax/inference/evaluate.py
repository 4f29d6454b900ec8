"""Metrics of a split's predictions and of its subgroups, and the files in which they are kept."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogcalib_jax.calibration import CALIBRATORS, Calibrator
from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.data.example import Encoded
from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import write_whole
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.open_ended import Answers, OpenPredictions
from cogcalib_jax.inference.predictions import Predictions, held_as, row_identity, write_rows
from cogcalib_jax.metrics import bootstrap_intervals, summarize, summarize_confidence

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
        **config.of_metrics(seed),
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
    for asked in wanted:
        for task, rows in tasks.items():
            if reason := _why_not(asked, task, rows):
                raise UserError(f"by = {asked}: {reason}{others}")
        if asked not in every:
            known = ", ".join(good) or f"none, because {', '.join(tasks)} has no such fields"
            raise UserError(f"by = {asked}: no such field of the questions (there are: {known})")


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
    for name in fields:
        if name in there:
            values = np.array(_values(name, rows))
            groups = sorted(set(values.tolist()), key=_order)
            # The smallest p-value is 1 / (1 + draws): with fewer draws, no group could pass Holm's
            # correction over all of them.
            draws = max(config.resamples, DRAWS_PER_GROUP * len(groups))
            enough = replace(config, resamples=draws)
            results[name] = {
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


# Confidences of open answers beside the raw ones, each of the calibrator of that name.
FITTED = ("platt", "isotonic")
# The confidence whose numbers stand for the task: it costs nothing beside the answer itself.
MAIN = "sequence"


@dataclass(frozen=True)
class Calibrators:
    """Maps from an answer's log-probability to the probability that it is right."""

    maps: Mapping[str, Calibrator] = field(default_factory=dict)
    """by the name of the confidence"""
    notes: tuple[str, ...] = ()
    """which are missing and why, a line each"""

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `calibration.json`."""
        maps = {name: one.to_json() for name, one in self.maps.items()}
        return {"maps": maps, "notes": list(self.notes)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Calibrators:
        """Return the maps of an entry that `to_json` made, also of earlier releases.

        Raises UserError, KeyError, TypeError, ValueError or AttributeError for damaged content.
        """
        maps = {}
        for name, content in stored["maps"].items():
            if KIND not in content:
                # Earlier releases kept the fitted numbers alone, without `_`.
                numbers = {f"{key}_": value for key, value in content.items()}
                content = {KIND: name, **numbers, "converged_": True, "n_rows_": 0}
            maps[name] = Calibrator.from_json(content)
        return Calibrators(maps, tuple(stored["notes"]))


def fit_calibrators(calibration: Answers) -> Calibrators:
    """Fit Platt and isotonic maps on answers to the calibration split, by exact match.

    Where those answers are all right or all wrong there is nothing to fit: the notes say so.
    """
    fitted, notes = {}, []
    for name in FITTED:
        try:
            one = CALIBRATORS.make(name)
            fitted[name] = one.fit(calibration.logprobs, calibration.exact_match)
        except UserError as error:
            notes.append(f"no confidence {error}")
    return Calibrators(fitted, tuple(notes))


def calibrated(predictions: OpenPredictions, calibrators: Calibrators) -> OpenPredictions:
    """Return `predictions` with calibrated confidences beside the raw ones; NaN stays NaN."""
    logprobs = predictions.answers.logprobs
    known = np.isfinite(logprobs)
    made = {}
    for name, one in calibrators.maps.items():
        made[name] = np.full(len(logprobs), np.nan)
        if known.any():
            made[name][known] = one(logprobs[known])
    return replace(
        predictions,
        confidences=predictions.confidences | made,
        notes=(*predictions.notes, *calibrators.notes),
    )


def open_metrics(
    predictions: OpenPredictions,
    config: EvaluationConfig,
    seed: int,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the numbers of a task of open questions in eval.json, from its predictions alone.

    `accuracy` is the exact match, and numbers about confidence are those of `sequence`;
    `confidences` holds those of each. `vocab` is null: there are no options to tell it from.

    clusters: [n] which question each row asks (`data.example`); None: each its own.
    """
    answers = predictions.answers
    confidences = {}
    for name, values in predictions.confidences.items():
        # P(True) of a question it could not ask is missing; its own n says how many there are.
        known = np.isfinite(values)
        if not known.any():
            continue
        confidences[name] = summarize_confidence(
            values[known],
            answers.exact_match[known],
            clusters=None if clusters is None else clusters[known],
            **config.of_metrics(seed),
        )
    main = confidences[MAIN]
    f1 = bootstrap_intervals(
        predictions.confidences[MAIN],
        answers.exact_match,
        {"f1": answers.f1},
        clusters=clusters,
        resamples=config.resamples,
        seed=seed,
    )["f1"]
    notes = {"notes": list(predictions.notes)} if predictions.notes else {}
    more = {"exact_match": main["ci95"]["accuracy"], "f1": f1}
    return {
        **main,
        "exact_match": main["accuracy"],
        "f1": float(answers.f1.mean()),
        "reference_nll": float(-predictions.reference_logprobs.mean()),
        "ci95": main["ci95"] | more,
        "vocab": None,
        "confidences": confidences,
        **notes,
    }


def open_prediction_rows(
    predictions: OpenPredictions, encoded: Sequence[Encoded]
) -> list[dict[str, Any]]:
    """Return one JSON object a question; docs/architecture.md lists the fields."""
    answers = predictions.answers
    rows = []
    for i, e in enumerate(encoded):
        confidences = {name: float(values[i]) for name, values in predictions.confidences.items()}
        rows.append(
            {
                "id": e.id,
                "question": e.example.question,
                "prompt": e.prompt,
                "prompt_ids": list(e.prompt_ids),
                "answers": list(e.example.aliases),
                "text": answers.texts[i],
                "tokens": list(answers.tokens[i]),
                "exact_match": bool(answers.exact_match[i]),
                "f1": float(answers.f1[i]),
                # The same again under the names that every scorer of confidences reads.
                "correct": bool(answers.exact_match[i]),
                "confidence": confidences[MAIN],
                "confidences": {k: v if np.isfinite(v) else None for k, v in confidences.items()},
                "reference": e.completions[e.answer],
                "reference_ids": list(e.completion_ids[e.answer]),
                "reference_nll": float(-predictions.reference_logprobs[i]),
                **held_as(predictions.quantise),
                **row_identity(e.example),
            }
        )
    return rows


def write_open_predictions(
    path: Path, predictions: OpenPredictions, encoded: Sequence[Encoded]
) -> None:
    """Write `path` whole or not at all."""
    write_rows(path, open_prediction_rows(predictions, encoded))
