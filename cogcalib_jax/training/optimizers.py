"""The optimizers by name: AdamW, and IVON, which trains a distribution over LoRA parameters.

IVON (Shen et al. 2024, "Variational Learning is Effective for Large Deep Networks", algorithm 1;
for LoRA: Cong et al. 2024, arXiv 2411.04421) keeps an independent normal distribution over every
parameter, with mean m and variance 1 / (ess (h + delta)). An update takes the gradient g at one
draw m + n and estimates the diagonal Hessian by n g / variance, without a second pass. Written from
the formulas; public code was not ported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cogcalib_jax.training.config import OPTIMIZERS
from cogcalib_jax.training.variant import Variant

register_optimizer = OPTIMIZERS.register


@register_optimizer("adamw", label="AdamW")
@dataclass(frozen=True)
class AdamW(Variant):
    """AdamW on gradients clipped at `training.clip_norm` (Loshchilov and Hutter 2019)."""


class IvonState(NamedTuple):
    """The state beside the mean; trees like the parameters."""

    count: jax.Array
    """int32 scalar: updates made"""
    momentum: Any
    hessian: Any
    """h, the moving average of the Hessian's diagonal"""


@dataclass(frozen=True)
class IvonSettings:
    """The hyperparameters of IVON; defaults from the authors' script for OpenBookQA."""

    learning_rate: float = 0.03
    ess: float = 1e6
    hess_init: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99999
    weight_decay: float = 1e-6
    clip_radius: float = 0.0

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        for name in ("learning_rate", "ess", "hess_init"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; expected a number above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; expected at least 0, below 1")
        for name in ("weight_decay", "clip_radius"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; expected at least 0")


@register_optimizer("ivon", label="IVON")
@dataclass(frozen=True)
class Ivon(IvonSettings, Variant):
    """A normal distribution over all LoRA parameters, drawn from in every update (Shen et al. 2024;
    Cong et al. 2024); the adapter is its mean.

    With momentum u, m <- m - rate (u / (1 - beta1^t) + delta m) / (h + delta), where the rate is
    `learning_rate` times the run's schedule and `hess_init` + delta: first steps are those of plain
    descent. A positive `clip_radius` bounds the quotient. The run's clip_norm has no effect.
    """

    def identity(self) -> dict[str, Any]:
        return {"ivon": asdict(self)}

    def draw(self, parameters: nnx.State, opt_state: IvonState, key: jax.Array) -> nnx.State:
        return jax.tree.map(jnp.add, parameters, self._noise(opt_state, key))

    def _noise(self, state: IvonState, key: jax.Array) -> Any:
        leaves, structure = jax.tree.flatten(state.hessian)
        keys = jax.random.split(key, len(leaves))
        deviations = [jax.lax.rsqrt(self.ess * (h + self.weight_decay)) for h in leaves]
        draws = [s * jax.random.normal(k, s.shape) for k, s in zip(keys, deviations, strict=True)]
        return jax.tree.unflatten(structure, draws)

    def optimizer(
        self, plain: optax.GradientTransformation, schedule: optax.Schedule, peak: float
    ) -> optax.GradientTransformationExtraArgs:
        del plain
        delta = self.weight_decay

        def init(parameters: Any) -> IvonState:
            return IvonState(
                jnp.zeros((), jnp.int32),
                jax.tree.map(jnp.zeros_like, parameters),
                jax.tree.map(lambda x: jnp.full_like(x, self.hess_init), parameters),
            )

        def update(
            gradient: Any, state: IvonState, parameters: Any, *, key: jax.Array
        ) -> tuple[Any, IvonState]:
            count = state.count + 1
            rate = self.learning_rate * schedule(state.count) / peak * (self.hess_init + delta)
            debias = 1 - self.beta1**count

            def momentum(u: jax.Array, g: jax.Array) -> jax.Array:
                return self.beta1 * u + (1 - self.beta1) * g

            def hessian(h: jax.Array, n: jax.Array, g: jax.Array) -> jax.Array:
                estimate, part = self.ess * (h + delta) * n * g, 1 - self.beta2
                correction = 0.5 * part**2 * (h - estimate) ** 2 / (h + delta)
                return self.beta2 * h + part * estimate + correction

            def move(u: jax.Array, h: jax.Array, m: jax.Array) -> jax.Array:
                step = (u / debias + delta * m) / (h + delta)
                if self.clip_radius > 0:
                    step = jnp.clip(step, -self.clip_radius, self.clip_radius)
                return -rate * step

            us = jax.tree.map(momentum, state.momentum, gradient)
            hs = jax.tree.map(hessian, state.hessian, self._noise(state, key), gradient)
            return jax.tree.map(move, us, hs, parameters), IvonState(count, us, hs)

        return optax.GradientTransformationExtraArgs(init, update)


def variant_of(optimizer: str) -> Variant:
    """Return what the optimizer of `training.optimizer` changes in an update."""
    return OPTIMIZERS.make(optimizer)
