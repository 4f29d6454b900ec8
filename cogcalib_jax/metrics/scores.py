"""Accuracy, proper scores, how well confidence ranks right answers, and all metrics of a task."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cogcalib_jax.metrics.bootstrap import (
    bootstrap_intervals,
    ece_noise_floor,
    sorted_for_auroc,
    weighted_auroc,
)
from cogcalib_jax.metrics.calibration import (
    ece,
    ece_classwise,
    ece_debiased,
    ece_equal_mass,
    ece_smooth,
    mce,
)
from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    InvalidRows,
    check_confidence,
    check_correct,
    check_options,
    check_probabilities,
    cluster_numbers,
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


@dataclass(frozen=True)
class ExpectedAccuracy:
    """Accuracy of the held-out answers that are confident enough, with its interval."""

    answered: int
    """of the held-out questions; at least 1"""
    questions: int
    right: int
    low: float
    """lower end of the exact interval (Clopper and Pearson 1934) of level 95 %"""
    high: float

    @property
    def accuracy(self) -> float:
        return self.right / self.answered


def cutoff_for(target: float, confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """Return the lowest confidence [rows] above which answers reach the accuracy `target`.

    The largest share of the rows, most confident first and ties whole, whose accuracy is at least
    `target`; None where not even the most confident ones reach it.
    """
    curve = risk_coverage(confidence, correct)
    # Risk is a ratio of two counts: the slack keeps an accuracy of exactly the target.
    reached = np.flatnonzero(1 - curve.risk >= target - 1e-12)
    return float(curve.threshold[reached[-1]]) if len(reached) else None


def expected_accuracy(
    cutoff: float, confidence: ArrayLike, correct: ArrayLike
) -> ExpectedAccuracy | None:
    """Estimate the accuracy of answers with confidence >= `cutoff`; None if there are none.

    confidence [rows] and correct [rows] of questions that had no part in choosing the cut-off: an
    interval from the questions of the choice would be too high.
    """
    # Imported here: it takes a while, and metrics do without.
    from scipy.stats import binomtest

    sure = np.asarray(confidence) >= cutoff
    answered, right = int(sure.sum()), int(np.asarray(correct)[sure].sum())
    if answered == 0:
        return None
    interval = binomtest(right, answered).proportion_ci(0.95, method="exact")
    return ExpectedAccuracy(answered, len(sure), right, float(interval.low), float(interval.high))


class _Settings(NamedTuple):
    bins: int
    resamples: int
    seed: int
    clusters: IntArray | None


def _calibration(confidence: ArrayLike, correct: ArrayLike, how: _Settings) -> dict[str, Any]:
    floor = ece_noise_floor(
        confidence, bins=how.bins, draws=how.resamples, seed=how.seed, clusters=how.clusters
    )
    observed = ece(confidence, correct, bins=how.bins)
    return {
        "ece": observed,
        "ece_noise_floor": {"mean": floor.mean, "p95": floor.p95},
        "ece_p_value": floor.p_value(observed),
        "auroc": auroc(confidence, correct),
        "confidence": mean_confidence(confidence),
        "accuracy": accuracy(correct),
    }


def _top_label(
    confidence: ArrayLike,
    correct: ArrayLike,
    nll_rows: FloatArray,
    brier_rows: FloatArray,
    how: _Settings,
) -> dict[str, Any]:
    intervals = bootstrap_intervals(
        confidence,
        correct,
        {"nll": nll_rows, "brier": brier_rows},
        clusters=how.clusters,
        resamples=how.resamples,
        seed=how.seed,
    )
    repeats = {} if how.clusters is None else {"n_questions": int(how.clusters.max()) + 1}
    return {
        "n": len(nll_rows),
        **repeats,
        **_calibration(confidence, correct, how),
        "ece_debiased": ece_debiased(confidence, correct, bins=how.bins, clusters=how.clusters),
        "ece_equal_mass": ece_equal_mass(confidence, correct, bins=how.bins),
        "ece_smooth": ece_smooth(confidence, correct),
        "mce": mce(confidence, correct, bins=how.bins),
        "nll": float(nll_rows.mean()),
        "brier": float(brier_rows.mean()),
        "aurc": aurc(confidence, correct),
        "coverage_at_90": coverage_at_accuracy(confidence, correct, 0.9),
        "ci95": {k: intervals[k] for k in ("accuracy", "nll", "brier", "auroc", "confidence")},
    }


def summarize(
    option_probs: ArrayLike,
    option_mask: ArrayLike,
    answers: ArrayLike,
    vocab_option_probs: ArrayLike | None = None,
    *,
    clusters: ArrayLike | None = None,
    bins: int = 15,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return all metrics of one task, ready for JSON: None if undefined, never NaN.

    Args:
        option_probs: [rows, options], each row with the sum 1.
        option_mask: [rows, options] or counts [rows].
        answers: [rows] option indices.
        vocab_option_probs: [rows, options] probabilities under the vocabulary's softmax, or None;
            the confidence there is that of the prediction from `option_probs`.
        clusters: [rows] labels; rows with one label are repeats of a question. Intervals, noise
            floors, p-values and debiasing count it once, and `n_questions` is added to `n`. None,
            or all different: every row by itself.
        bins: number of equal-width bins of the calibration errors.
        seed: of simulation and resampling.
        resamples: bootstrap resamples, and draws of the noise floor.
    """
    probs, mask, answers = check_options(option_probs, option_mask, answers)
    prediction, confidence, correct = top_label(probs, mask, answers)
    nll_rows = nll_per_row(option_probs, mask, answers)
    brier_rows = brier_per_row(option_probs, mask, answers)
    how = _Settings(bins, resamples, seed, cluster_numbers(clusters, len(answers)))
    vocab = None
    if vocab_option_probs is not None:
        in_vocab, _, _ = check_options(vocab_option_probs, mask, answers, complete=False)
        vocab = _calibration(in_vocab[np.arange(len(probs)), prediction], correct, how) | {
            "nll": float(vocab_nll_per_row(vocab_option_probs, mask, answers).mean()),
            "brier": float(vocab_brier_per_row(vocab_option_probs, mask, answers).mean()),
        }
    return {
        **_top_label(confidence, correct, nll_rows, brier_rows, how),
        # The accuracy of guessing.
        "chance": float(np.mean(1 / mask.sum(-1))),
        "ece_classwise": ece_classwise(option_probs, mask, answers, bins=bins),
        "vocab": vocab,
    }


def summarize_confidence(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    bins: int = 15,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return the metrics of answers with a confidence but without options.

    As `summarize`, with the proper scores of a binary forecast of "the answer is correct": Brier is
    the mean of (confidence - correct)^2, from 0 to 1 (half the sum form over two options), and NLL
    the log loss in nats.

    Args:
        confidence: [rows] probabilities.
        correct: [rows] of 0 and 1.
    """
    _, hits = check_confidence(confidence, correct)
    values = np.asarray(confidence)
    right_or_wrong = np.stack([values, 1 - values], axis=1)
    outcome = (1 - hits).astype(np.int64)
    two = np.full(len(hits), 2)
    nll_rows = nll_per_row(right_or_wrong, two, outcome)
    brier_rows = brier_per_row(right_or_wrong, two, outcome) / 2
    how = _Settings(bins, resamples, seed, cluster_numbers(clusters, len(hits)))
    return _top_label(confidence, correct, nll_rows, brier_rows, how)
