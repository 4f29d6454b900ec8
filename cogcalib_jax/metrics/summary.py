"""All metrics of one task in one dictionary, as in `eval.json`."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cogcalib_jax.metrics.bootstrap import bootstrap_intervals
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
    check_confidence,
    check_options,
    cluster_numbers,
)
from cogcalib_jax.metrics.noise_floor import ece_noise_floor
from cogcalib_jax.metrics.scores import (
    accuracy,
    aurc,
    auroc,
    brier_per_row,
    coverage_at_accuracy,
    mean_confidence,
    nll_per_row,
    top_label,
    vocab_brier_per_row,
    vocab_nll_per_row,
)


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
        clusters: as for `summarize`.
        bins: as for `summarize`.
        seed: as for `summarize`.
        resamples: as for `summarize`.
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
