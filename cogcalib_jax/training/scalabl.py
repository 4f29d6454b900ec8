"""ScalaBL: a distribution over the scales of LoRA's rank directions, r numbers for each matrix.

Samplawski et al. 2025, "Scalable Bayesian Low-Rank Adaptation of Large Language Models via
Stochastic Variational Subspace Inference" (arXiv 2506.21408): the update is B diag(s) V with
independent normal s. Means are exp(log s), so scales stay positive; all of B, V, log s and the log
deviations are trained. One draw of s serves all rows of an update.
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

from cogcalib_jax.training.blob import Prior
from cogcalib_jax.training.variant import require_plain_lora

SCALE, DEVIATION = "lora_scale", "lora_scale_deviation"
"""names of log s and of the logs of its standard deviations, `[*stack, rank]` float32"""
# Of the prior of every scale, as in the authors' code.
PRIOR_MEAN, PRIOR_DEVIATION = 1e-8, 1.0
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
            if path[-1] != SCALE:
                continue
            log_deviation = flat[*path[:-1], DEVIATION]
            squares = jnp.exp(2 * log_deviation) + (jnp.exp(log_scale) - PRIOR_MEAN) ** 2
            kl = squares / (2 * PRIOR_DEVIATION**2) - log_deviation
            total += jnp.sum(kl + math.log(PRIOR_DEVIATION) - 0.5)
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
