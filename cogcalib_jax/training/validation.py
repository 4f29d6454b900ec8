"""Accuracy and confidence while training: on the validation split, and on known and unknown data.

The second is the mechanism the paper describes: known examples are absorbed within a few updates,
after which only confidence grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.training.journal import Journal


@dataclass(frozen=True)
class Followed:
    """A set of questions followed over training, and which of them count as known."""

    data: str
    """"train" or "validation" """
    encoded: EncodedSplit
    known: np.ndarray
    """[rows] bool: by the world's exposures, or as the style-adapted model's NLL says"""


class Belief(NamedTuple):
    """The belief of a model in `n` questions, as it is followed over training."""

    correct: np.ndarray
    """[n] 0 or 1"""
    confidence: np.ndarray
    """[n] in [0, 1]"""
    nll: np.ndarray
    """[n] nats, of the right answer"""
    brier: np.ndarray | None
    """[n]; None for open questions, where `confidence` is in another answer than the model's"""
    gold: np.ndarray | None = None
    """[n] nats: NLL of the right option over the vocabulary per token; None for open questions"""


def options_belief(predictions: Predictions) -> Belief:
    """Return the belief in the options of each question."""
    probs, mask, answers = predictions.probs, predictions.mask, predictions.answers
    top = metrics.top_label(probs, mask, answers)
    return Belief(
        top.correct,
        top.confidence,
        metrics.nll_per_row(probs, mask, answers),
        metrics.brier_per_row(probs, mask, answers),
        predictions.gold_nll,
    )


def reference_belief(nll: np.ndarray, correct: np.ndarray) -> Belief:
    """Return the belief in the reference answers of open questions, without generating.

    nll `[n]` nats of the whole reference, its stop included; correct `[n]`: each of its tokens is
    the argmax, so that the model would say just this. The confidence is the reference's
    probability: that of the model's answer where it is correct, and a lower one where it is not.
    """
    return Belief(correct.astype(np.float64), np.exp(-nll), nll, None)


def quick_metrics(belief: Belief, bins: int) -> dict[str, float | None]:
    """The numbers of one validation, without intervals or floors."""
    numbers = _means(belief)
    if belief.gold is not None:
        numbers["gold_nll"] = float(belief.gold.mean())
    if belief.brier is None:
        return numbers | {"brier": None, "ece": None, "auroc": None}
    return numbers | {
        "brier": float(belief.brier.mean()),
        "ece": metrics.ece(belief.confidence, belief.correct, bins=bins),
        "auroc": metrics.auroc(belief.confidence, belief.correct),
    }


def validate(
    believes: Callable[[Sequence[Encoded]], Belief],
    followed: Sequence[Followed],
    bins: int,
    step: int,
    epoch: float,
    journal: Journal,
    dynamics: Journal,
) -> dict[str, float | None]:
    """Follow every set; write metrics.jsonl and dynamics.jsonl.

    Returns:
        The numbers of the validation split; none if it is not followed.
    """
    validation: dict[str, float | None] = {}
    for one in followed:
        belief = believes(one.encoded)
        for group, rows in (("known", one.known), ("unknown", ~one.known)):
            if rows.any():
                of_group = Belief(*(None if x is None else x[rows] for x in belief))
                record = {"n": int(rows.sum())} | _means(of_group)
                dynamics.write(step=step, data=one.data, group=group, **record)
        if one.data == "validation":
            validation = quick_metrics(belief, bins)
            journal.write(step=step, phase="validation", epoch=round(epoch, 4), **validation)
    return validation


def _means(belief: Belief) -> dict[str, Any]:
    return {
        "accuracy": metrics.accuracy(belief.correct),
        "confidence": metrics.mean_confidence(belief.confidence),
        "nll": float(belief.nll.mean()),
    }
