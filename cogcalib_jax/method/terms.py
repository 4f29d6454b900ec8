"""The terms that a method adds to cross-entropy, or puts in its place: one class each.

A term sees rows of float32 logits over the scored space (the vocabulary, or a question's options)
and returns one number a row, in nats. Its fields are its hyperparameters. A new term is a class
with `register_term` above it; it is then known by its name in configs, comparisons, tuning and
reports. `cogcalib` marks the paper's terms: reports cite it for their form on known data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cogcalib_jax.method.config import TERMS
from cogcalib_jax.registry import require

# Absent classes get this logit: exp underflows to an exact zero while, unlike with -inf, every
# product and gradient stays finite.
MASKED_LOGIT = -1e30


def mask_logits(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return logits `[..., classes]` in which absent classes have probability 0."""
    return logits if mask is None else jnp.where(mask > 0, logits, MASKED_LOGIT)


class Rows(NamedTuple):
    """The rows that a term sees: scored positions, or questions in options space."""

    logits: jax.Array
    """`[..., classes]` float32, as the head gave them"""
    target: jax.Array | None
    """`[...]` int32: the class of the right answer; None for rows without one (anchors), of which
    only terms without `needs_target` are asked"""
    mask: jax.Array | None = None
    """`[..., classes]`: 1 for classes that exist; None if all do"""
    gate: jax.Array | None = None
    """`[...]` float32 in [0, 1]: the gate's value, without gradient; only if `needs_gate`"""
    start: jax.Array | None = None
    """`[..., classes]` float32: the start's logits, without gradient; only if `needs_start`"""

    @property
    def masked(self) -> jax.Array:
        """`[..., classes]`: the logits, absent classes with probability 0."""
        return mask_logits(self.logits, self.mask)

    @property
    def log_p(self) -> jax.Array:
        """`[..., classes]`: log-probabilities in nats."""
        return jax.nn.log_softmax(self.masked, -1)

    @property
    def log_p_target(self) -> jax.Array:
        """`[...]`: the target's log-probability in nats."""
        return self.of_target(self.log_p)

    @property
    def start_log_p(self) -> jax.Array:
        """`[..., classes]`: the start's log-probabilities in nats."""
        return jax.nn.log_softmax(mask_logits(self.start, self.mask), -1)

    @property
    def is_target(self) -> jax.Array:
        """`[..., classes]` bool. A comparison and no gather: a vocabulary that is cut over devices
        stays cut. Raises ValueError for rows without targets."""
        if self.target is None:
            raise ValueError("these rows have no target; expected a term without needs_target")
        return jnp.arange(self.logits.shape[-1]) == self.target[..., None]

    def of_target(self, values: jax.Array) -> jax.Array:
        """Return `[...]`: the target's entry of `values` `[..., classes]`."""
        return jnp.sum(jnp.where(self.is_target, values, 0.0), -1)

    def reduce(self, values: jax.Array, how: Literal["mean", "sum"]) -> jax.Array:
        """Return `[...]`: the mean or sum of `values` `[..., classes]` over existing classes."""
        if self.mask is None:
            return jnp.mean(values, -1) if how == "mean" else jnp.sum(values, -1)
        total = jnp.sum(jnp.where(self.mask > 0, values, 0.0), -1)
        # A row that only fills up a batch has no classes at all.
        return total / jnp.maximum(jnp.sum(self.mask, -1), 1) if how == "mean" else total


@dataclass(frozen=True)
class Term:
    """A number for each row, in nats. Subclass it, add fields with defaults, register it.

    A subclass may define `check(self)`, which raises ValueError for settings out of range.
    """

    combine: ClassVar[Literal["add", "replace"]] = "add"
    """add: nll + g w t; replace: nll + g w (t - nll), for gate g and weight w"""
    per: ClassVar[Literal["row", "batch"]] = "row"
    """row: numbers `[...]`, each from its own row; batch: one number from all rows"""
    default_weight: ClassVar[float] = 0.1
    needs_target: ClassVar[bool] = True
    """whether it looks at `Rows.target`; one that does not can hold anchor rows"""
    needs_gate: ClassVar[bool] = False
    """whether it looks at `Rows.gate`"""
    needs_start: ClassVar[bool] = False
    """whether it looks at `Rows.start`. Over the vocabulary such a term sees `top` + 1 classes: the
    start's likeliest tokens, and all others as one"""
    top: ClassVar[int] = 128
    may_be_idle: ClassVar[bool] = False
    """whether it is 0 where logits lie close together; the share of the other rows is logged"""
    needs_classes: ClassVar[bool] = False
    """whether a class must mean the same in every row: one list of options for all questions"""

    def __call__(self, rows: Rows) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


register_term = TERMS.register


_REDUCTIONS = ("mean", "sum")


@register_term("ls", label="LS", cogcalib="label smoothing")
@dataclass(frozen=True)
class LabelSmoothing(Term):
    """Label smoothing: the mean over classes of -log p.

    (1 - eps) CE + eps LS is torch's `label_smoothing=eps` (the MbLS authors' `label_smoothing.py`),
    so a weight w beside CE equals eps = w / (1 + w): the default 0.1 is eps = 0.09.
    """

    reduction: str = "mean"
    needs_target = False

    def check(self) -> None:
        require(self.reduction in _REDUCTIONS, "reduction", self.reduction, "mean or sum")

    def __call__(self, rows: Rows) -> jax.Array:
        log_z = jax.nn.logsumexp(rows.masked, -1, keepdims=True)
        return rows.reduce(log_z - rows.logits, self.reduction)


@register_term("mbls", label="MbLS", cogcalib="margin-based label smoothing")
@dataclass(frozen=True)
class MarginSmoothing(Term):
    """Margin-based label smoothing: the mean over classes of relu(max z - z - margin).

    Liu et al., CVPR 2022 (`logit_margin_l1.py`), with their margin and weight.
    """

    margin: float = 10.0
    reduction: str = "mean"
    needs_target = False
    may_be_idle = True

    def check(self) -> None:
        require(self.margin >= 0, "margin", self.margin, "a number of at least 0")
        require(self.reduction in _REDUCTIONS, "reduction", self.reduction, "mean or sum")

    def __call__(self, rows: Rows) -> jax.Array:
        top = jnp.max(rows.masked, -1, keepdims=True)
        return rows.reduce(jax.nn.relu(top - rows.logits - self.margin), self.reduction)


@register_term("ecp", label="ECP", cogcalib="confidence penalty")
@dataclass(frozen=True)
class ConfidencePenalty(Term):
    """Entropy confidence penalty: the negative entropy, the sum over classes of p log p.

    Pereyra et al., 2017; the default weight is the middle of their range. A mean over 128,256
    classes would turn an entropy of 1.26 nats into 9.8e-6, hence the sum.
    """

    reduction: str = "sum"
    needs_target = False

    def check(self) -> None:
        require(self.reduction in _REDUCTIONS, "reduction", self.reduction, "mean or sum")

    def __call__(self, rows: Rows) -> jax.Array:
        log_p = rows.log_p
        return rows.reduce(jnp.exp(log_p) * log_p, self.reduction)


@register_term("focal", label="Focal")
@dataclass(frozen=True)
class Focal(Term):
    """Focal loss in place of cross-entropy: -(1 - p_y)^gamma log p_y.

    Lin et al., ICCV 2017; Mukhoti et al., NeurIPS 2020 for calibration.
    """

    gamma: float = 2.0
    combine = "replace"
    default_weight = 1.0

    def check(self) -> None:
        require(self.gamma >= 0, "gamma", self.gamma, "a number of at least 0")

    def __call__(self, rows: Rows) -> jax.Array:
        log_p = rows.log_p_target
        return -_power(-jnp.expm1(log_p), self.gamma) * log_p


@register_term("dual_focal", label="Dual focal")
@dataclass(frozen=True)
class DualFocal(Term):
    """Dual focal loss in place of cross-entropy: -(1 - p_y + p_j)^gamma log p_y.

    p_j is the largest probability below p_y, 0 if there is none (Tao et al., ICML 2023); the
    gradient passes through it.
    """

    gamma: float = 5.0
    combine = "replace"
    default_weight = 1.0

    def check(self) -> None:
        require(self.gamma >= 0, "gamma", self.gamma, "a number of at least 0")

    def __call__(self, rows: Rows) -> jax.Array:
        log_p = rows.log_p
        target = rows.of_target(log_p)
        below = jnp.where(log_p < target[..., None], log_p, MASKED_LOGIT)
        rival = jnp.exp(jnp.max(below, -1))
        return -_power(-jnp.expm1(target) + rival, self.gamma) * target


@register_term("brier", label="Brier")
@dataclass(frozen=True)
class Brier(Term):
    """Brier score: the sum over classes of (p - 1[class is the target])^2 (Brier, 1950)."""

    default_weight = 1.0

    def __call__(self, rows: Rows) -> jax.Array:
        return rows.reduce((jnp.exp(rows.log_p) - rows.is_target) ** 2, "sum")


@register_term("mdca", label="MDCA")
@dataclass(frozen=True)
class MDCA(Term):
    """Mean over classes of the gap between mean probability and frequency in a micro-batch.

    Hebbalaguppe et al., CVPR 2022. The means are over the rows that the gate lets through, and
    over the questions of one micro-batch (batch size divided by accumulation steps).
    """

    per = "batch"
    default_weight = 1.0
    needs_gate = True
    needs_classes = True

    def __call__(self, rows: Rows) -> jax.Array:
        share = rows.gate / jnp.maximum(jnp.sum(rows.gate), 1e-9)
        gap = jnp.sum(share[:, None] * (jnp.exp(rows.log_p) - rows.is_target), 0)
        return jnp.mean(jnp.abs(gap))


@register_term("kl", label="KL to the start")
@dataclass(frozen=True)
class StartKL(Term):
    """KL(start || model); the start is the model at the beginning of the gated phase.

    Over the vocabulary it is the divergence of coarsened distributions: the start's `top` likeliest
    tokens, and all others as one class. That is at most the full divergence.
    """

    top: int = 128
    default_weight = 1.0
    needs_target = False
    needs_start = True

    def check(self) -> None:
        require(self.top >= 1, "top", self.top, "a whole number of at least 1")

    def __call__(self, rows: Rows) -> jax.Array:
        log_q = rows.start_log_p
        return rows.reduce(jnp.exp(log_q) * (log_q - rows.log_p), "sum")


@register_term("uniform", label="KL to uniform")
@dataclass(frozen=True)
class UniformKL(Term):
    """KL(uniform || model) over the classes: for questions known to have no answer (anchors).

    It differs from `ls` with a mean by the entropy of the uniform distribution, so it is 0 where
    the model's probabilities are uniform.
    """

    default_weight = 1.0
    needs_target = False

    def __call__(self, rows: Rows) -> jax.Array:
        classes = rows.logits.shape[-1] if rows.mask is None else jnp.sum(rows.mask, -1)
        return -rows.reduce(rows.log_p, "mean") - jnp.log(jnp.maximum(classes, 1.0))


def _power(base: jax.Array, exponent: jax.Array | float) -> jax.Array:
    """Return base ** exponent for base >= 0 with finite gradients.

    The derivative of 0 ** gamma is infinite for gamma below 1, and that of the exponent is 0 log 0.
    """
    return jnp.exp(exponent * jnp.log(jnp.maximum(base, 1e-12)))
