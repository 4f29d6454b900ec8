"""Known or unknown: the per-example mask of a training step, and the fit of its threshold."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cogcalib_jax.method.config import Gate


def gate_mask(
    gate: Gate,
    nll: jax.Array,
    threshold: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Which examples of a batch the calibration term applies to; carries no gradient.

    nll `[batch]` nats; threshold scalar; labels `[batch]` 0 or 1, what the gates frozen_labels,
    frozen_random and oracle flag for good; weight `[batch]` 0 for rows that only fill up the batch;
    key for the random gate, which flags exactly as many examples as the adaptive one would have,
    drawn without looking at their NLL. Returns float32 `[batch]` of 0 and 1.
    """
    known = (jax.lax.stop_gradient(nll) <= threshold).astype(jnp.float32)
    if gate == "all":
        mask = jnp.ones_like(known)
    elif gate in ("adaptive", "frozen_threshold"):
        mask = known
    elif gate == "unknown":
        mask = 1.0 - known
    elif gate in ("frozen_labels", "frozen_random", "oracle"):
        mask = labels.astype(jnp.float32)
    elif gate == "random":
        # Real rows first in random order; the first `count` of them are flagged.
        noise = jax.random.uniform(key, known.shape) + (weight == 0)
        rank = jnp.argsort(jnp.argsort(noise))
        mask = (rank < jnp.sum(known * (weight > 0))).astype(jnp.float32)
    else:
        raise ValueError(f"unknown gate {gate!r}")
    return jax.lax.stop_gradient(mask)


@dataclass(frozen=True)
class ThresholdFit:
    """A fitted threshold and what it achieved on the calibration split."""

    threshold: float
    """an example is known when its NLL is at most this, in nats; +inf or -inf for one class"""
    tpr: float
    """share of the correctly answered that are called known (nan when there are none)"""
    tnr: float
    """share of the wrongly answered that are called unknown (nan when there are none)"""
    auroc: float
    """probability that a correct answer has the lower NLL, ties half (nan with one class)"""
    n_known: int
    n: int

    @property
    def note(self) -> str:
        """One sentence where the split had only one class, else empty."""
        if np.isposinf(self.threshold):
            return f"all {self.n} calibration answers are correct: every example counts as known"
        if self.n_known == 0 and np.isneginf(self.threshold):
            return (
                f"none of the {self.n} calibration answers is separable from a wrong one by its"
                " NLL: no example counts as known"
            )
        return ""

    def record(self) -> dict[str, float | int | None]:
        """The fit as JSON values; infinite and undefined numbers become None."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def fit_threshold(nll: np.ndarray, correct: np.ndarray) -> ThresholdFit:
    """The NLL that maximises TPR + TNR for "the model answers correctly".

    nll `[rows]` nats, correct `[rows]` booleans. Every distinct NLL is tried, never a grid; of
    equally good thresholds the smallest is taken (scikit-learn's `roc_curve` on -NLL, argmax of
    tpr - fpr). With one class only, everything (all correct) or nothing (all wrong) is known.
    """
    nll = np.asarray(nll, np.float64)
    correct = np.asarray(correct, bool)
    if nll.ndim != 1 or nll.shape != correct.shape or nll.size == 0:
        raise ValueError(f"need equal, non-empty vectors, got {nll.shape} and {correct.shape}")
    if not np.isfinite(nll).all():
        raise ValueError(f"calibration NLL of row {int(np.argmin(np.isfinite(nll)))} is not finite")
    positives, negatives = int(correct.sum()), int((~correct).sum())
    nan = float("nan")
    if negatives == 0:
        return ThresholdFit(float("inf"), 1.0, nan, nan, nll.size, nll.size)
    if positives == 0:
        return ThresholdFit(float("-inf"), nan, 1.0, nan, 0, nll.size)

    values, index = np.unique(nll, return_inverse=True)
    correct_at = np.bincount(index, weights=correct, minlength=values.size)
    wrong_at = np.bincount(index, weights=~correct, minlength=values.size)
    # The leading zeros are the threshold below every value: nothing is known.
    tpr = np.concatenate([[0.0], np.cumsum(correct_at)]) / positives
    fpr = np.concatenate([[0.0], np.cumsum(wrong_at)]) / negatives
    best = int(np.argmax(tpr - fpr))
    threshold = float("-inf") if best == 0 else float(values[best - 1])
    auroc = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
    return ThresholdFit(
        threshold=threshold,
        tpr=float(tpr[best]),
        tnr=float(1 - fpr[best]),
        auroc=auroc,
        n_known=int((nll <= threshold).sum()),
        n=nll.size,
    )
