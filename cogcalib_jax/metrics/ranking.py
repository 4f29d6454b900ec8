"""How well confidence ranks right answers above wrong ones, and what answering fewer buys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cogcalib_jax.metrics.bootstrap import sorted_for_auroc, weighted_auroc
from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    InvalidRows,
    check_confidence,
    cpu_float64,
    pad_rows,
)


class RiskCoverage(NamedTuple):
    """Selective answering, most confident first; one entry per distinct confidence, descending."""

    threshold: FloatArray
    """[points] rows at least this confident are answered."""
    coverage: FloatArray
    """[points] share of rows answered."""
    risk: FloatArray
    """[points] share of wrong ones among the answered."""


class Roc(NamedTuple):
    """Receiver operating characteristic, from calling nothing positive to calling everything."""

    fpr: FloatArray
    """[points] share of negative rows called positive, ascending from 0 to 1."""
    tpr: FloatArray
    """[points] share of positive rows called positive."""


@cpu_float64
def auroc(confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """Probability that a correct row is more confident than a wrong one, ties counting half.

    None where all rows are correct, or all wrong: there is no pair to compare.
    """
    confidence, correct = check_confidence(confidence, correct)
    if correct.min() == correct.max():
        return None
    _, hits, first, last = sorted_for_auroc(confidence, correct)
    once = pad_rows(np.ones(len(confidence), np.int32))[None]
    return float(weighted_auroc(hits, first, last, once)[0])


def _cumulative_by_confidence(
    confidence: FloatArray, correct: FloatArray
) -> tuple[FloatArray, IntArray, IntArray]:
    """Distinct confidences descending, rows at least as confident, and wrong ones among them."""
    values, group = np.unique(-confidence, return_inverse=True)
    rows = np.bincount(group, minlength=len(values))
    right = np.bincount(group, weights=correct, minlength=len(values)).astype(np.int64)
    return -values, np.cumsum(rows), np.cumsum(rows - right)


def roc(confidence: ArrayLike, correct: ArrayLike) -> Roc | None:
    """The curve `auroc` is the area of, a point for each distinct confidence and one before them.

    None where one class is absent.
    """
    confidence, correct = check_confidence(confidence, correct)
    if correct.min() == correct.max():
        return None
    _, called, wrong = _cumulative_by_confidence(confidence, correct)
    right = called - wrong
    fpr, tpr = wrong / wrong[-1], right / right[-1]
    return Roc(np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr]))


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Risk-coverage curve (El-Yaniv and Wiener 2010); equal confidences are answered together."""
    confidence, correct = check_confidence(confidence, correct)
    threshold, answered, wrong = _cumulative_by_confidence(confidence, correct)
    return RiskCoverage(threshold, answered / len(confidence), wrong / answered)


@jax.jit
def _mean_risk(wrong_share: jax.Array, weight: jax.Array) -> jax.Array:
    answered = jnp.cumsum(weight)
    risk = jnp.cumsum(wrong_share * weight) / answered
    return jnp.sum(risk * weight) / answered[-1]


@cpu_float64
def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean risk over the n coverages (Geifman et al. 2019).

    Rows of equal confidence each carry their group's share of errors: the exact expectation over
    the orders in which they could be answered.
    """
    confidence, correct = check_confidence(confidence, correct)
    _, answered, wrong = _cumulative_by_confidence(confidence, correct)
    size = np.diff(answered, prepend=0)
    share = np.repeat(np.diff(wrong, prepend=0) / size, size)
    return float(_mean_risk(pad_rows(share), pad_rows(np.ones(len(share)))))


def coverage_at_accuracy(confidence: ArrayLike, correct: ArrayLike, target: float = 0.9) -> float:
    """Largest share of rows, most confident first and ties whole, with accuracy >= target.

    0 where no such share exists. Chosen and measured on the same rows, so it flatters; a cut-off
    for use is fitted on held-out rows.
    """
    confidence, correct = check_confidence(confidence, correct)
    if not 0 < target <= 1:
        raise InvalidRows(f"target is {target}: must be an accuracy above 0 and at most 1")
    _, answered, wrong = _cumulative_by_confidence(confidence, correct)
    reached = answered[(answered - wrong) / answered >= target]
    return float(reached[-1] / len(confidence)) if len(reached) else 0.0
