"""A method as the training step takes it, and its loss: `L_i = CE_i + gate_i * weight * term_i`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogcalib_jax.method.config import LossConfig, Space
from cogcalib_jax.method.gates import Gate, GateInputs
from cogcalib_jax.method.terms import Term


@dataclass(frozen=True)
class Anchor:
    """The term on anchor rows as the training step takes it: a pytree whose numbers are leaves."""

    term: Term
    weight: float | jax.Array


jax.tree_util.register_dataclass(Anchor, data_fields=["term", "weight"], meta_fields=[])


@dataclass(frozen=True)
class Objective:
    """A term, its gate and its weight for the training step: a pytree whose numbers are leaves.

    Methods that differ in numbers only share one compiled step.
    """

    term: Term | None
    """None: plain cross-entropy"""
    gate: Gate
    weight: float | jax.Array
    """weight of the term beside cross-entropy"""
    space: Space
    """the classes the term sees: the whole vocabulary, or the question's options"""
    normalise: bool
    """whether an added term's loss is divided by one plus the weight that the example received"""
    anchor: Anchor | None = None
    """the term on anchor rows, in the same space; None without such rows"""

    @property
    def term_space(self) -> Space | None:
        """The space of the term; None without a term."""
        return None if self.term is None else self.space


jax.tree_util.register_dataclass(
    Objective, data_fields=["term", "gate", "weight", "anchor"], meta_fields=["space", "normalise"]
)


class Faults(NamedTuple):
    """The examples of a batch with a loss that is not finite, `[batch]` bool."""

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
    """the gate's values: for a gate of 0 and 1 the examples that the term applied to"""
    known: jax.Array
    """examples with NLL at most the threshold, whatever the gate"""
    examples: jax.Array
    gold: jax.Array
    """NLL of the right options over the vocabulary, nats per token; 0 if it was not computed"""
    active: jax.Array
    """examples of a term that `may_be_idle` for which it is not 0; 0 for other terms"""
    faults: Faults
    """example by example: no sums"""


def gate_values(method: Objective, inputs: GateInputs, key: jax.Array) -> jax.Array:
    """Return the gate's value for each example, `[batch]` float32 in [0, 1], without gradient;
    `key` is for gates that draw."""
    inputs = jax.lax.stop_gradient(inputs)
    return jax.lax.stop_gradient(method.gate(inputs, key))


def gated_loss(
    nll: jax.Array,
    cal: jax.Array | None,
    method: Objective,
    threshold: jax.Array,
    gate_labels: jax.Array,
    example_weight: jax.Array,
    key: jax.Array,
    gold: jax.Array | None = None,
    lm_weight: float = 0.0,
) -> LossSums:
    """Return the method's equation over a batch, as sums.

    Args:
        nll: `[batch]` nats, the cross-entropy of each example; the gate looks at it, too.
        cal: `[batch]`, the term; None without one (nothing is computed for it then).
        threshold: float32 scalar, nats.
        gate_labels: `[batch]`, `Gate.labels` of these rows; only `frozen_labels`, `frozen_random`
            and `oracle` look at them.
        example_weight: `[batch]`, 1, or 0 for rows that only fill up the batch.
        key: for gates that draw.
        gold: `[batch]` nats, the right option's NLL per token over the vocabulary; None if it is
            not known.
        lm_weight: weight at which `gold` is added to every example's loss.
    """
    real = example_weight > 0
    inputs = GateInputs(nll, threshold, gate_labels, real)
    if cal is None:
        gate = cal = jnp.zeros_like(nll)
        per_example = nll
    else:
        gate = gate_values(method, inputs, key)
        strength = gate * method.weight
        if method.term.combine == "replace":
            per_example = nll + strength * (cal - nll)
        else:
            per_example = nll + strength * cal
            if method.normalise:
                per_example = per_example / (1.0 + strength)

    if lm_weight:
        per_example = per_example + lm_weight * gold

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(values * example_weight)

    may_be_idle = method.term is not None and method.term.may_be_idle
    nothing = jnp.zeros((), jnp.float32)
    return LossSums(
        loss=total(per_example),
        ce=total(nll),
        cal=total(cal),
        gated=total(gate),
        known=total(jax.lax.stop_gradient(inputs).known),
        examples=jnp.sum(example_weight),
        gold=nothing if gold is None else total(jax.lax.stop_gradient(gold)),
        active=total(cal > 0) if may_be_idle else nothing,
        faults=Faults(~jnp.isfinite(nll) & real, ~jnp.isfinite(cal) & real),
    )


def example_mean(values: jax.Array, loss_mask: jax.Array, loss: LossConfig) -> jax.Array:
    """Return one number an example, `[batch]`, from values by position `[batch, positions]`."""
    total = jnp.sum(values * loss_mask, -1)
    if loss.tokens == "sum":
        return total
    return total / jnp.maximum(jnp.sum(loss_mask, -1), 1.0)
