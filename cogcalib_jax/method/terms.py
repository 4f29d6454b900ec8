"""The three calibration terms of the paper as functions of one row of logits.

Each takes float32 logits `[..., classes]` over the scored space (the vocabulary, or a question's
options) and returns one value per row, in nats. `mask` marks the classes that exist: questions of
one batch may have three, four or five options; a vocabulary has no mask.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cogcalib_jax.method.config import Reduction

# Masked classes get this logit: exp underflows to an exact zero while, unlike with -inf, every
# product and gradient stays finite.
MASKED_LOGIT = -1e30


def mask_logits(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Logits `[..., classes]` with the classes that do not exist pushed to probability 0."""
    return logits if mask is None else jnp.where(mask > 0, logits, MASKED_LOGIT)


def _reduce(values: jax.Array, mask: jax.Array | None, reduction: Reduction) -> jax.Array:
    if mask is None:
        return jnp.mean(values, -1) if reduction == "mean" else jnp.sum(values, -1)
    total = jnp.sum(jnp.where(mask > 0, values, 0.0), -1)
    # A row that only fills up a batch has no classes at all.
    return total / jnp.maximum(jnp.sum(mask, -1), 1) if reduction == "mean" else total


def label_smoothing(
    logits: jax.Array, mask: jax.Array | None, reduction: Reduction, margin: float
) -> jax.Array:
    """`mean_k(-log p_k)`: with `(1 - eps) CE + eps LS` it is torch's `label_smoothing=eps`."""
    del margin
    masked = mask_logits(logits, mask)
    return _reduce(jax.nn.logsumexp(masked, -1, keepdims=True) - logits, mask, reduction)


def margin_label_smoothing(
    logits: jax.Array, mask: jax.Array | None, reduction: Reduction, margin: float
) -> jax.Array:
    """`mean_k relu(max_j z_j - z_k - m)` (Liu et al. 2022, logit_margin_l1.py)."""
    highest = jnp.max(mask_logits(logits, mask), -1, keepdims=True)
    return _reduce(jax.nn.relu(highest - logits - margin), mask, reduction)


def confidence_penalty(
    logits: jax.Array, mask: jax.Array | None, reduction: Reduction, margin: float
) -> jax.Array:
    """Negative entropy `sum_k p_k log p_k` (Pereyra et al. 2017)."""
    del margin
    log_p = jax.nn.log_softmax(mask_logits(logits, mask), -1)
    return _reduce(jnp.exp(log_p) * log_p, mask, reduction)


TermFunction = Callable[[jax.Array, jax.Array | None, Reduction, float], jax.Array]

TERMS: dict[str, TermFunction] = {
    "ls": label_smoothing,
    "mbls": margin_label_smoothing,
    "ecp": confidence_penalty,
}
