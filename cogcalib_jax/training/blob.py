"""The prior's side of BLoB (Wang et al. 2024, "BLoB: Bayesian Low-Rank Adaptation by
Backpropagation"): what keeps the distribution of LoRA's A near its prior.

The other side is plain: with A drawn anew for every example, the loss of a step is one sample of
the expected one, and its gradient trains A's means and standard deviations together
(`models.lora.UncertainLora`). The two sides meet in the parameters alone, so this one is a part of
the optimizer, as decoupled weight decay is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cogcalib_jax.models.parameters import ROOT
from cogcalib_jax.training.variant import Variant

# As the authors' scripts for language models set them (github.com/Wang-ML-Lab/bayesian-peft).
PRIOR_DEVIATION = 0.2
LEARNING_RATE = 0.01
GAMMA = 8


@dataclass(frozen=True)
class Prior(Variant):
    """Independent normal distributions with mean 0 for every entry of A."""

    rows: int
    """fine-tuning rows; they and the batch say in how many updates the prior counts once"""
    batch_size: int
    peak: float
    """of the run's learning rate, whose schedule the descent follows"""
    rate: float = LEARNING_RATE
    """learning rate of the descent at that peak"""

    def identity(self) -> dict[str, Any]:
        return {"blob": True}

    def optimizer(
        self, plain: optax.GradientTransformation, schedule: optax.Schedule, peak: float
    ) -> optax.GradientTransformation:
        return optax.chain(plain, self.descent(schedule))

    def divergence(self, lora: nnx.State) -> jax.Array:
        """Return the divergence from the prior that is descended, nats."""
        return divergence(lora)

    @property
    def period(self) -> int:
        """Return the updates over which the whole divergence counts once.

        They are `100 n^(pi / gamma) / batch`, as in the authors' code. There the share of an update
        doubles with each of a period; here all have the same, which adds up to the same.
        """
        return max(1, int(100 * self.rows ** (math.pi / GAMMA) / self.batch_size))

    def descent(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Return gradient descent on the divergence, an update beside that of the loss.

        It is plain, with a learning rate of its own, as in the authors' code: Adam would undo its
        scale.
        """

        def init(params: nnx.State) -> optax.ScaleByScheduleState:
            del params
            return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

        def update(
            updates: nnx.State, state: optax.ScaleByScheduleState, params: nnx.State
        ) -> tuple[nnx.State, optax.ScaleByScheduleState]:
            rate = self.rate * schedule(state.count) / self.peak / self.period
            slope = jax.grad(self.divergence)(params)
            updates = jax.tree.map(lambda u, g: u - rate * g, updates, slope)
            return updates, optax.ScaleByScheduleState(count=state.count + 1)

        return optax.GradientTransformation(init, update)


def divergence(lora: nnx.State) -> jax.Array:
    """KL of A's distribution from the prior, summed over all entries, nats (equation 8); what has
    no standard deviations does not count."""
    flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(lora)}
    total = jnp.zeros((), jnp.float32)
    for path, root in flat.items():
        if path[-1] != ROOT:
            continue
        variance = jnp.square(jnp.square(root))
        mean = flat[(*path[:-1], "lora_A")]
        ratio = variance / PRIOR_DEVIATION**2
        shift = jnp.square(mean / PRIOR_DEVIATION)
        total += 0.5 * jnp.sum(ratio + shift - 1 - jnp.log(ratio))
    return total
