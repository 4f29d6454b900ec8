"""Every metric of one task in one dictionary: what `eval.json` holds."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cogcalib_jax.metrics.bootstrap import bootstrap_intervals
from cogcalib_jax.metrics.calibration import (
    ece,
    ece_classwise,
    ece_debiased,
    ece_equal_mass,
    ece_noise_floor,
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
from cogcalib_jax.metrics.ranking import aurc, auroc, coverage_at_accuracy
from cogcalib_jax.metrics.scores import (
    accuracy,
    brier_per_row,
    mean_confidence,
    nll_per_row,
    top_label,
    vocab_brier_per_row,
    vocab_nll_per_row,
)


def _calibration_summary(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int,
    draws: int,
    seed: int,
    clusters: IntArray | None,
) -> dict[str, Any]:
    floor = ece_noise_floor(confidence, bins=bins, draws=draws, seed=seed, clusters=clusters)
    observed = ece(confidence, correct, bins=bins)
    return {
        "ece": observed,
        "ece_noise_floor": {"mean": floor.mean, "p95": floor.p95},
        "ece_p_value": floor.p_value(observed),
        "auroc": auroc(confidence, correct),
        "confidence": mean_confidence(confidence),
        "accuracy": accuracy(correct),
    }


def _vocab_summary(
    vocab_option_probs: ArrayLike,
    option_mask: NDArray[np.bool_],
    answers: IntArray,
    prediction: IntArray,
    bins: int,
    draws: int,
    seed: int,
    clusters: IntArray | None,
) -> dict[str, Any]:
    probs, _, _ = check_options(vocab_option_probs, option_mask, answers, complete=False)
    correct = (prediction == answers).astype(np.float64)
    confidence = probs[np.arange(len(probs)), prediction]
    scores = {
        "nll": float(vocab_nll_per_row(vocab_option_probs, option_mask, answers).mean()),
        "brier": float(vocab_brier_per_row(vocab_option_probs, option_mask, answers).mean()),
    }
    return _calibration_summary(confidence, correct, bins, draws, seed, clusters) | scores


def _top_label_summary(
    confidence: ArrayLike,
    correct: ArrayLike,
    nll_rows: FloatArray,
    brier_rows: FloatArray,
    bins: int,
    resamples: int,
    seed: int,
    clusters: IntArray | None,
) -> dict[str, Any]:
    """What follows from confidence and correctness [rows], and the rows' proper scores [rows]."""
    intervals = bootstrap_intervals(
        confidence,
        correct,
        {"nll": nll_rows, "brier": brier_rows},
        clusters=clusters,
        resamples=resamples,
        seed=seed,
    )
    repeats = {} if clusters is None else {"n_questions": int(clusters.max()) + 1}
    return {
        "n": len(nll_rows),
        **repeats,
        **_calibration_summary(confidence, correct, bins, resamples, seed, clusters),
        "ece_debiased": ece_debiased(confidence, correct, bins=bins, clusters=clusters),
        "ece_equal_mass": ece_equal_mass(confidence, correct, bins=bins),
        "ece_smooth": ece_smooth(confidence, correct),
        "mce": mce(confidence, correct, bins=bins),
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
    """All metrics of one task, as written to `eval.json`: JSON-able, None where undefined, no NaN.

    Args:
        option_probs: [rows, options], each row summing to 1.
        option_mask: [rows, options] or counts [rows]. answers: [rows].
        vocab_option_probs: [rows, options] probabilities under the vocabulary's softmax, or None;
            the confidence there is that of the prediction made from `option_probs`.
        clusters: [rows] labels; rows that share one are repeats of a question. Intervals, noise
            floors, p-values and debiasing count it once, and `n_questions` stands beside `n`. None,
            or all different: every row by itself.
        bins: equal-width bins of the calibration errors. seed: of simulation and resampling.
        resamples: bootstrap resamples, and draws of the noise floor.
    """
    probs, mask, answers = check_options(option_probs, option_mask, answers)
    prediction, confidence, correct = top_label(probs, mask, answers)
    nll_rows = nll_per_row(option_probs, mask, answers)
    brier_rows = brier_per_row(option_probs, mask, answers)
    numbers = cluster_numbers(clusters, len(answers))
    settings = (bins, resamples, seed, numbers)
    vocab = None
    if vocab_option_probs is not None:
        vocab = _vocab_summary(vocab_option_probs, mask, answers, prediction, *settings)
    return {
        **_top_label_summary(confidence, correct, nll_rows, brier_rows, *settings),
        # Accuracy of guessing, where every option of a question is equally likely to be chosen.
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
    """The metrics of answers of which only the confidence is known: no options, no classes.

    As `summarize`, with the proper scores of a binary forecast of "the answer is correct": Brier is
    the mean of (confidence - correct)^2, from 0 to 1 (half the sum form over two options), NLL the
    log loss in nats. JSON-able, None where undefined, no NaN.

    Args:
        confidence: [rows]. correct: [rows] of 0 and 1.
        clusters, bins, seed, resamples: as for `summarize`.
    """
    _, hits = check_confidence(confidence, correct)
    values = np.asarray(confidence)
    right_or_wrong = np.stack([values, 1 - values], axis=1)
    outcome = (1 - hits).astype(np.int64)
    two = np.full(len(hits), 2)
    nll_rows = nll_per_row(right_or_wrong, two, outcome)
    brier_rows = brier_per_row(right_or_wrong, two, outcome) / 2
    numbers = cluster_numbers(clusters, len(hits))
    return _top_label_summary(
        confidence, correct, nll_rows, brier_rows, bins, resamples, seed, numbers
    )
