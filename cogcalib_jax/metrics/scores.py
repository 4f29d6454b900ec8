"""Accuracy, proper scores, and how well confidence ranks right answers above wrong ones."""

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
    check_correct,
    check_options,
    check_probabilities,
    cpu_float64,
    pad_rows,
)


class TopLabel(NamedTuple):
    """The most probable option of each row."""

    prediction: IntArray
    """[rows] option index; the first of several equally probable ones"""
    confidence: FloatArray
    """[rows] its probability"""
    correct: FloatArray
    """[rows] 1 if it is the answer, else 0"""


def top_label(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> TopLabel:
    """Return the prediction, confidence and correctness of each row."""
    probs, mask, answers = check_options(option_probs, option_mask, answers)
    # -1 for absent options, so that they do not win in a row of zeros.
    prediction = np.where(mask, probs, -1.0).argmax(axis=1)
    confidence = probs[np.arange(len(probs)), prediction]
    return TopLabel(prediction, confidence, (prediction == answers).astype(np.float64))


@cpu_float64
def accuracy(correct: ArrayLike) -> float:
    """Return the share of correct rows."""
    return float(jnp.mean(check_correct(correct)))


@cpu_float64
def mean_confidence(confidence: ArrayLike) -> float:
    """Return the mean confidence; above the accuracy the model is overconfident on average."""
    return float(jnp.mean(check_probabilities(confidence, "confidence", 1)))


def nll_per_row(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> FloatArray:
    """Return -log of the answer's probability [rows], in nats; finite, see `docs/metrics.md`."""
    return _nll(option_probs, option_mask, answers, complete=True)


def brier_per_row(
    option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike
) -> FloatArray:
    """Return the multiclass Brier score [rows] in the sum form, from 0 to 2 (Brier 1950)."""
    return _brier(check_options(option_probs, option_mask, answers)[0], answers)


def vocab_nll_per_row(
    vocab_option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike
) -> FloatArray:
    """Return the NLL [rows] of the answer among all strings of the vocabulary, in nats.

    vocab_option_probs: [rows, options] with sums of at most 1. The rest is the probability of one
    more class, "other", which is never the answer.
    """
    return _nll(vocab_option_probs, option_mask, answers, complete=False)


def vocab_brier_per_row(
    vocab_option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike
) -> FloatArray:
    """Return the multiclass Brier score [rows] over the options and "other"."""
    probs, _, answers = check_options(vocab_option_probs, option_mask, answers, complete=False)
    other = np.maximum(1 - probs.sum(axis=1, keepdims=True), 0.0)
    return _brier(np.concatenate([probs, other], axis=1), answers)


def nll(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> float:
    """Return the mean of `nll_per_row`."""
    return float(nll_per_row(option_probs, option_mask, answers).mean())


def brier(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> float:
    """Return the mean of `brier_per_row`."""
    return float(brier_per_row(option_probs, option_mask, answers).mean())


@cpu_float64
def _nll(
    option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike, *, complete: bool
) -> FloatArray:
    probs, _, answers = check_options(option_probs, option_mask, answers, complete=complete)
    # A probability of 0 counts as the smallest normal number of its type. JAX tells which: NumPy
    # does not know that bfloat16 is a float.
    dtype = np.asarray(option_probs).dtype
    smallest = jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64).tiny
    padded = _nll_rows(pad_rows(probs), pad_rows(answers), float(smallest))
    return np.asarray(padded)[: len(probs)]


@jax.jit
def _nll_rows(probs: jax.Array, answers: jax.Array, smallest: jax.Array) -> jax.Array:
    of_answer = jnp.take_along_axis(probs, answers[:, None], axis=1)[:, 0]
    return -jnp.log(jnp.maximum(of_answer, smallest))


@cpu_float64
def _brier(probs: FloatArray, answers: ArrayLike) -> FloatArray:
    answers = np.asarray(answers, np.int64)
    return np.asarray(_brier_rows(pad_rows(probs), pad_rows(answers)))[: len(probs)]


@jax.jit
def _brier_rows(probs: jax.Array, answers: jax.Array) -> jax.Array:
    return jnp.sum(
        (probs - jax.nn.one_hot(answers, probs.shape[1], dtype=probs.dtype)) ** 2, axis=1
    )


class RiskCoverage(NamedTuple):
    """Selective answering, most confident first; one entry per distinct confidence, descending."""

    threshold: FloatArray
    """[points] rows with at least this confidence are answered"""
    coverage: FloatArray
    """[points] share of rows that are answered"""
    risk: FloatArray
    """[points] share of wrong answers among them"""


class Roc(NamedTuple):
    """The receiver operating characteristic."""

    fpr: FloatArray
    """[points] share of wrong rows above the threshold, ascending from 0 to 1"""
    tpr: FloatArray
    """[points] share of right rows above the threshold"""


@cpu_float64
def auroc(confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """Return the probability that a correct row is more confident than a wrong one.

    Ties count half. None if all rows are correct, or all wrong.
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
    """Distinct confidences, descending; rows with at least these; and wrong ones among them."""
    values, group = np.unique(-confidence, return_inverse=True)
    rows = np.bincount(group, minlength=len(values))
    right = np.bincount(group, weights=correct, minlength=len(values)).astype(np.int64)
    return -values, np.cumsum(rows), np.cumsum(rows - right)


def roc(confidence: ArrayLike, correct: ArrayLike) -> Roc | None:
    """Return the curve under which `auroc` is the area; None if all rows are correct, or all wrong.

    It has a point for each distinct confidence, and (0, 0).
    """
    confidence, correct = check_confidence(confidence, correct)
    if correct.min() == correct.max():
        return None
    _, called, wrong = _cumulative_by_confidence(confidence, correct)
    right = called - wrong
    fpr, tpr = wrong / wrong[-1], right / right[-1]
    return Roc(np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr]))


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve (El-Yaniv and Wiener 2010); ties are answered together."""
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
    """Return the area under the risk-coverage curve (Geifman et al. 2019).

    The mean risk over the n coverages, in expectation over the orders of equal confidences.
    """
    confidence, correct = check_confidence(confidence, correct)
    _, answered, wrong = _cumulative_by_confidence(confidence, correct)
    size = np.diff(answered, prepend=0)
    share = np.repeat(np.diff(wrong, prepend=0) / size, size)
    return float(_mean_risk(pad_rows(share), pad_rows(np.ones(len(share)))))


def coverage_at_accuracy(confidence: ArrayLike, correct: ArrayLike, target: float = 0.9) -> float:
    """Return the largest share of rows, most confident first, with accuracy >= target; else 0.

    Equal confidences stay together. The share is chosen on the rows it is measured on, so it is
    optimistic; fit a cut-off for use on held-out rows.
    """
    confidence, correct = check_confidence(confidence, correct)
    if not 0 < target <= 1:
        raise InvalidRows(f"target is {target}: must be an accuracy above 0 and at most 1")
    _, answered, wrong = _cumulative_by_confidence(confidence, correct)
    reached = answered[(answered - wrong) / answered >= target]
    return float(reached[-1] / len(confidence)) if len(reached) else 0.0
