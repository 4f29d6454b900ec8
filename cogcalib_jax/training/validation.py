"""Accuracy and confidence while training: on the validation split, and on known and unknown data.

The second is the mechanism the paper describes: known examples are absorbed within a few updates,
after which only confidence grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from cogcalib_jax import metrics
from cogcalib_jax.data.example import Encoded
from cogcalib_jax.evaluation.predict import Predictor
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.training.journal import Journal


@dataclass(frozen=True)
class Followed:
    """A set of questions followed over training, and which of them count as known."""

    data: str
    """"train" or "validation" """
    encoded: tuple[Encoded, ...]
    known: np.ndarray
    """[rows] bool: by the world's exposures, or as the style-adapted model's NLL says"""


def quick_metrics(predictions: Predictions, bins: int) -> dict[str, float | None]:
    """The numbers of one validation, without intervals or floors."""
    probs, mask, answers = predictions.probs, predictions.mask, predictions.answers
    top = metrics.top_label(probs, mask, answers)
    return {
        "accuracy": metrics.accuracy(top.correct),
        "confidence": metrics.mean_confidence(top.confidence),
        "nll": metrics.nll(probs, mask, answers),
        "brier": metrics.brier(probs, mask, answers),
        "ece": metrics.ece(top.confidence, top.correct, bins=bins),
        "auroc": metrics.auroc(top.confidence, top.correct),
    }


def validate(
    predictor: Predictor,
    lora: nnx.State,
    followed: Sequence[Followed],
    bins: int,
    step: int,
    epoch: float,
    journal: Journal,
    dynamics: Journal,
) -> float:
    """Follow every set; write metrics.jsonl and dynamics.jsonl; return the validation NLL."""
    validation_nll = float("nan")
    for one in followed:
        predictions = predictor(lora, one.encoded)
        for group, rows in (("known", one.known), ("unknown", ~one.known)):
            if rows.any():
                dynamics.write(
                    step=step, data=one.data, group=group, **_group_metrics(predictions, rows)
                )
        if one.data == "validation":
            record = quick_metrics(predictions, bins)
            journal.write(step=step, phase="validation", epoch=round(epoch, 4), **record)
            validation_nll = record["nll"]
    return validation_nll


def _group_metrics(predictions: Predictions, rows: np.ndarray) -> dict[str, Any]:
    probs, mask = predictions.probs[rows], predictions.mask[rows]
    answers = predictions.answers[rows]
    top = metrics.top_label(probs, mask, answers)
    return {
        "n": int(rows.sum()),
        "accuracy": metrics.accuracy(top.correct),
        "confidence": metrics.mean_confidence(top.confidence),
        "nll": metrics.nll(probs, mask, answers),
    }
