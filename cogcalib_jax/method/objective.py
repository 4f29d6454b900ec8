"""The gated loss of one batch: `L_i = CE_i + gate_i * weight * L_cal,i`, summed over examples."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.gate import gate_mask


class GateInputs(NamedTuple):
    """What the gate may change between steps without recompiling: all traced."""

    threshold: jax.Array
    """float32 scalar, nats"""
    weight: jax.Array
    """float32 scalar, weight of the calibration term"""


class Faults(NamedTuple):
    """Which examples of a batch have a loss that is not finite, `[batch]` bool."""

    ce: jax.Array
    """the cross-entropy is not"""
    cal: jax.Array
    """the calibration term is not"""


class LossSums(NamedTuple):
    """Sums over the real examples of a batch; divide by `examples` once, after accumulation."""

    loss: jax.Array
    ce: jax.Array
    cal: jax.Array
    """the ungated, unweighted term: its size beside cross-entropy"""
    gated: jax.Array
    """examples the term applied to"""
    known: jax.Array
    """examples with NLL at most the threshold, whatever the gate"""
    examples: jax.Array
    faults: Faults
    """example by example: no sums"""


def gated_loss(
    nll: jax.Array,
    cal: jax.Array | None,
    method: MethodConfig,
    gate_inputs: GateInputs,
    labels: jax.Array,
    example_weight: jax.Array,
    key: jax.Array,
) -> LossSums:
    """METHOD equation over a batch, as sums.

    nll `[batch]`: cross-entropy of each example, which is also what the gate looks at. cal
    `[batch]`: the calibration term, None when `method.term` is "none" (nothing is computed for
    it then). labels `[batch]`: what the gates frozen_labels, frozen_random and oracle flag.
    example_weight `[batch]`: 1, or 0 for rows that only fill up the batch. `method` must be
    resolved.
    """
    known = (jax.lax.stop_gradient(nll) <= gate_inputs.threshold).astype(jnp.float32)
    if cal is None:
        mask = cal = jnp.zeros_like(nll)
        per_example = nll
    else:
        mask = gate_mask(method.gate, nll, gate_inputs.threshold, labels, example_weight, key)
        strength = mask * gate_inputs.weight
        per_example = nll + strength * cal
        if method.normalise:
            per_example = per_example / (1.0 + strength)

    real = example_weight > 0

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(values * example_weight)

    return LossSums(
        loss=total(per_example),
        ce=total(nll),
        cal=total(cal),
        gated=total(mask),
        known=total(known),
        examples=jnp.sum(example_weight),
        faults=Faults(~jnp.isfinite(nll) & real, ~jnp.isfinite(cal) & real),
    )


def example_mean(values: jax.Array, loss_mask: jax.Array, loss: LossConfig) -> jax.Array:
    """Per-position values `[batch, positions]` made into one number an example, `[batch]`."""
    total = jnp.sum(values * loss_mask, -1)
    if loss.tokens == "sum":
        return total
    return total / jnp.maximum(jnp.sum(loss_mask, -1), 1.0)
