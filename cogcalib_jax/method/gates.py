"""The gates, which say how strongly the term applies to an example, and the threshold's fit.

A gate is a class with `register_gate` above it, as a term is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogcalib_jax.method.config import GATES
from cogcalib_jax.registry import require


class GateInputs(NamedTuple):
    """The inputs of a gate for a batch; no gradient flows through any of them."""

    nll: jax.Array
    """`[batch]` nats: each example's own cross-entropy"""
    threshold: jax.Array
    """float32 scalar, nats: the fitted threshold"""
    labels: jax.Array
    """`[batch]` 0 or 1: what `Gate.labels` gave for these rows"""
    is_real: jax.Array
    """`[batch]` bool: False for rows that only fill up the batch"""

    @property
    def known(self) -> jax.Array:
        """`[batch]` float32: 1 for examples with NLL at most the threshold."""
        return (self.nll <= self.threshold).astype(jnp.float32)


@dataclass(frozen=True)
class Gate:
    """A weight in [0, 1] of the term for each example. Subclass it and register it.

    A subclass may define `check(self)`, which raises ValueError for settings out of range.
    """

    refits: ClassVar[bool] = True
    """whether the threshold is fitted again while training"""
    needs_nll: ClassVar[bool] = True
    """whether it looks at the batch's NLL"""
    across_rows: ClassVar[bool] = False
    """whether an example's weight depends on the other examples of the batch"""
    labelled_by: ClassVar[Literal["start", "world"] | None] = None
    """what `labels` is made of: the rule applied to the start, or what the rows say of the base"""

    def labels(self, known: np.ndarray, seed: int) -> np.ndarray:
        """Return what `GateInputs.labels` holds while training, `[rows]` float64.

        known: `[rows]` float64, 1 for rows known by the source that `labelled_by` names.
        """
        del seed
        return known

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        """Return `[batch]` float32. key: for gates that draw."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


register_gate = GATES.register


@register_gate("all", label="all data")
@dataclass(frozen=True)
class Everything(Gate):
    """Every example."""

    needs_nll = False

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        return jnp.ones_like(inputs.nll)


@register_gate("adaptive", label="known data")
@dataclass(frozen=True)
class Adaptive(Gate):
    """Examples with NLL at most the fitted threshold: the gate of Wang et al. (ACL 2025)."""

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        return inputs.known


@register_gate("frozen_threshold", label="known data, frozen threshold")
@dataclass(frozen=True)
class FrozenThreshold(Adaptive):
    """Like `adaptive`, but with the first threshold, which is never fitted again."""

    refits = False


@register_gate("soft", label="known data, softly")
@dataclass(frozen=True)
class Soft(Gate):
    """A sigmoid around the fitted threshold instead of a step, `width` nats wide."""

    width: float = 0.5

    def check(self) -> None:
        require(self.width > 0, "width", self.width, "a number above 0")

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        return jax.nn.sigmoid((inputs.threshold - inputs.nll) / self.width)


@register_gate("unknown", label="unknown data")
@dataclass(frozen=True)
class Unknown(Gate):
    """Examples with NLL above the fitted threshold."""

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        return 1.0 - inputs.known


@dataclass(frozen=True)
class _Labelled(Gate):
    """Examples that were flagged once, before the first update."""

    needs_nll = False

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        return inputs.labels.astype(jnp.float32)


@register_gate("frozen_labels", label="known data, frozen labels")
@dataclass(frozen=True)
class FrozenLabels(_Labelled):
    """Examples that the start knows, by the threshold fitted there."""

    labelled_by = "start"


@register_gate("frozen_random", label="a fixed random share")
@dataclass(frozen=True)
class FrozenRandom(_Labelled):
    """A random choice of as many examples as `frozen_labels` flags, drawn once."""

    labelled_by = "start"

    def labels(self, known: np.ndarray, seed: int) -> np.ndarray:
        draw = np.random.SeedSequence([seed, 0xF12ED])
        return np.random.Generator(np.random.Philox(draw)).permutation(known)


@register_gate("oracle", label="known data, true labels")
@dataclass(frozen=True)
class Oracle(_Labelled):
    """Examples whose rows say that the base knows them (column `known`; the world's rows do)."""

    labelled_by = "world"


@register_gate("random", label="a random share")
@dataclass(frozen=True)
class RandomShare(Gate):
    """A random choice of as many examples of a batch as `adaptive` would flag."""

    across_rows = True

    def __call__(self, inputs: GateInputs, key: jax.Array) -> jax.Array:
        # Real rows first in random order; the first `count` of them are flagged.
        noise = jax.random.uniform(key, inputs.nll.shape) + ~inputs.is_real
        rank = jnp.argsort(jnp.argsort(noise))
        return (rank < jnp.sum(inputs.known * inputs.is_real)).astype(jnp.float32)


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
    correct_fraction: float
    """share of the calibration questions that are answered correctly"""

    @property
    def note(self) -> str:
        """A sentence if the split had only one class, else empty."""
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
        return ThresholdFit(float("inf"), 1.0, nan, nan, nll.size, nll.size, 1.0)
    if positives == 0:
        return ThresholdFit(float("-inf"), nan, 1.0, nan, 0, nll.size, 0.0)

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
        correct_fraction=positives / nll.size,
    )
