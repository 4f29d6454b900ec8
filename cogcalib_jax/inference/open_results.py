"""The results of a task of open questions: calibrated confidences, metrics, rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.calibration import CALIBRATORS, Calibrator
from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.data.example import Encoded
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.open_ended import Answers, OpenPredictions
from cogcalib_jax.inference.predictions import held_as, row_identity, write_rows
from cogcalib_jax.metrics import bootstrap_intervals, summarize_confidence

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


def to_json(calibrators: Calibrators) -> dict[str, Any]:
    """Return the entry of `calibration.json`."""
    maps = {name: one.to_json() for name, one in calibrators.maps.items()}
    return {"maps": maps, "notes": list(calibrators.notes)}


def from_json(stored: Mapping[str, Any]) -> Calibrators:
    """Return the maps of an entry that `to_json` made, also of earlier releases.

    Raises UserError, KeyError, TypeError, ValueError or AttributeError for damaged content.
    """
    maps = {name: _map(name, content) for name, content in stored["maps"].items()}
    return Calibrators(maps, tuple(stored["notes"]))


def _map(name: str, content: Mapping[str, Any]) -> Calibrator:
    if KIND not in content:
        # Earlier releases kept the fitted numbers alone, without `_`.
        numbers = {f"{key}_": value for key, value in content.items()}
        content = {KIND: name, **numbers, "converged_": True, "n_rows_": 0}
    return Calibrator.from_json(content)


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
            bins=config.bins,
            resamples=config.resamples,
            seed=seed,
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
