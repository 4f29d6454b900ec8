"""Distributions kept near a prior by descent on the divergence: BLoB over A, ScalaBL over scales.

BLoB (Wang et al. 2024, "BLoB: Bayesian Low-Rank Adaptation by Backpropagation") has two sides. With
LoRA's A drawn anew for every example, the loss of a step is one sample of the expected one, and its
gradient trains A's means and standard deviations together (`models.lora.UncertainLora`). The other
keeps them near the prior. They meet in the parameters alone, so it is a part of the optimizer here,
as decoupled weight decay is.

ScalaBL (Samplawski et al. 2025, "Scalable Bayesian Low-Rank Adaptation of Large Language Models via
Stochastic Variational Subspace Inference", arXiv 2506.21408): the update is B diag(s) V with
independent normal s, r numbers for each matrix. Means are exp(log s), so scales stay positive; all
of B, V, log s and the log deviations are trained. One draw of s serves all rows of an update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from cogcalib_jax.models.parameters import ROOT
from cogcalib_jax.training.variant import Variant, require_plain_lora

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
        """KL of A's distribution from the prior, summed over all entries, nats (equation 8); what
        has no standard deviations does not count."""
        flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(lora)}
        total = jnp.zeros((), jnp.float32)
        for path, root in flat.items():
            if path[-1] == ROOT:
                variance = jnp.square(jnp.square(root))
                ratio = variance / PRIOR_DEVIATION**2
                shift = jnp.square(flat[*path[:-1], "lora_A"] / PRIOR_DEVIATION)
                total += 0.5 * jnp.sum(ratio + shift - 1 - jnp.log(ratio))
        return total

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


SCALE, DEVIATION = "lora_scale", "lora_scale_deviation"
"""names of log s and of the logs of its standard deviations, `[*stack, rank]` float32"""
# Of the prior of every scale, as in the authors' code; its deviation is 1.
PRIOR_MEAN = 1e-8
SMALLEST = 1e-8


@dataclass(frozen=True)
class ScalaBl(Prior):
    """The variant of training; the prior is normal, and the same for every scale."""

    rate: float = 0.2
    deviation: float = 0.05
    """first deviations lie between it and it divided by the square root of 2"""
    seed: int = 0
    """of the first deviations"""

    def identity(self) -> dict[str, Any]:
        return {"scalabl": [self.rate, self.deviation, self.seed]}

    def begin(self, lora: nnx.State) -> nnx.State:
        """Return V, B, log s and log deviations: with the thin SVD A = U diag(s) V, B becomes B U,
        which is the same adapter."""
        require_plain_lora(lora, "scalabl")
        flat = dict(nnx.to_flat_state(lora))
        found: dict[tuple[str, ...], nnx.Variable] = {}
        for number, place in enumerate(sorted(path[:-1] for path in flat if path[-1] == "lora_A")):
            a, b = flat[*place, "lora_A"], flat[*place, "lora_B"]
            key = jax.random.fold_in(jax.random.key(self.seed), number)
            everywhere = NamedSharding(a[...].sharding.mesh, PartitionSpec())
            places = (a[...].sharding, b[...].sharding, everywhere, everywhere)
            values = jax.device_put(_factors(a[...], b[...], key, self.deviation), places)
            for name, value in zip(("lora_A", "lora_B", SCALE, DEVIATION), values, strict=True):
                found[*place, name] = a.replace(value)
        return nnx.from_flat_state(list(found.items()))

    def mean(self, parameters: nnx.State) -> nnx.State:
        return _scaled(parameters, lambda place, flat: jnp.exp(flat[*place, SCALE]))

    def draw(self, parameters: nnx.State, opt_state: optax.OptState, key: jax.Array) -> nnx.State:
        del opt_state
        places = sorted(p[:-1] for p, _ in nnx.to_flat_state(parameters) if p[-1] == SCALE)

        def scale(place: tuple[str, ...], flat: dict[Any, jax.Array]) -> jax.Array:
            mean, log_deviation = flat[*place, SCALE], flat[*place, DEVIATION]
            own = jax.random.fold_in(key, places.index(place))
            return jnp.exp(mean) + jnp.exp(log_deviation) * jax.random.normal(own, mean.shape)

        return _scaled(parameters, scale)

    def divergence(self, parameters: nnx.State) -> jax.Array:
        """KL(posterior || prior), summed over all scales, nats.

        The authors' code has the arguments the other way round; the ELBO asks for this order.
        """
        flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(parameters)}
        total = jnp.zeros((), jnp.float32)
        for path, log_scale in flat.items():
            if path[-1] == SCALE:
                log_deviation = flat[*path[:-1], DEVIATION]
                squares = jnp.exp(2 * log_deviation) + (jnp.exp(log_scale) - PRIOR_MEAN) ** 2
                total += jnp.sum(squares / 2 - log_deviation - 0.5)
        return total


@jax.jit
def _factors(
    a: jax.Array, b: jax.Array, key: jax.Array, deviation: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """V, B U, log s and log deviations of A `[*stack, r, in]` and B `[*stack, out, r]`."""
    u, s, v = jnp.linalg.svd(a, full_matrices=False)
    # Fixed signs: devices and meshes agree.
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), -2, keepdims=True), -2)
    sign = jnp.where(largest < 0, -1.0, 1.0)
    rotated = jnp.einsum("...or,...rk->...ok", b, u * sign, precision="highest")
    first = jax.random.uniform(key, s.shape, jnp.float32, deviation / math.sqrt(2), deviation)
    return v * sign.mT, rotated, jnp.log(jnp.maximum(s, SMALLEST)), jnp.log(first)


def _scaled(parameters: nnx.State, scale: Any) -> nnx.State:
    """The LoRA parameters with A = diag(scale) V; scale: (place of a matrix, values) -> `[r]`."""
    leaves = nnx.to_flat_state(parameters)
    flat = {path: leaf[...] for path, leaf in leaves}
    return nnx.from_flat_state(
        [
            (path, leaf.replace(scale(path[:-1], flat)[..., None] * flat[path]))
            if path[-1] == "lora_A"
            else (path, leaf)
            for path, leaf in leaves
            if path[-1] not in (SCALE, DEVIATION)
        ]
    )
