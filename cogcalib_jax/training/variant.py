"""The changes that another way of training makes to an update, and the optimizers by name.

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

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.errors import UserError
from cogcalib_jax.models.lora import Head
from cogcalib_jax.registry import require
from cogcalib_jax.training.config import OPTIMIZERS


@dataclass(frozen=True)
class Variant:
    """Changes nothing: AdamW on the LoRA parameters. Subclass it and replace what differs.

    A training step closes over it, so its fields are hashable. Parameters may have another form
    than those of a model's LoRA; validations, thresholds and adapters take their `mean`.
    """

    def identity(self) -> dict[str, Any]:
        """Return what tells the checkpoints of such a training from those of a plain one."""
        return {}

    def begin(self, lora: nnx.State) -> nnx.State:
        """Return the trained parameters at the LoRA parameters of the start."""
        return lora

    def mean(self, parameters: nnx.State) -> nnx.State:
        """Return the LoRA parameters of one model that stands for all draws."""
        return parameters

    def draw(self, parameters: nnx.State, opt_state: optax.OptState, key: jax.Array) -> nnx.State:
        """Return the LoRA parameters of one draw; an update's gradient passes through it."""
        del opt_state, key
        return self.mean(parameters)

    def losses(
        self,
        head: Head,
        hidden: jax.Array,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
    ) -> jax.Array | None:
        """Return a loss in the place of the method's, `[batch]` float32; None: the method's.

        Args:
            head: gives logits of `hidden`.
            hidden: `[batch, positions, d]` at the scored positions.
            key: for noise.
            dropout_key: of the head's dropout; None: none.
        """
        return None

    def optimizer(
        self, plain: optax.GradientTransformation, schedule: optax.Schedule, peak: float
    ) -> optax.GradientTransformation:
        """Return the transformation of gradients into updates, which gets the draw's `key`.

        Args:
            plain: that of the run's settings.
            schedule: of its learning rate.
            peak: the highest value of the schedule.
        """
        return plain


PLAIN = Variant()


def require_plain_lora(lora: nnx.State, what: str) -> None:
    """Refuse adapters with parameters beside A and B (UserError naming `what`)."""
    more = sorted({path[-1] for path, _ in nnx.to_flat_state(lora)} - {"lora_A", "lora_B"})
    if more:
        raise UserError(
            f"{what}: the adapter has {', '.join(more)} beside A and B; expected plain LoRA. Leave"
            f" {what} out"
        )


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
        for name, value in asdict(self).items():
            if name in ("learning_rate", "ess", "hess_init"):
                require(value > 0, name, value, "a number above 0")
            elif name in ("beta1", "beta2"):
                require(0 <= value < 1, name, value, "at least 0, below 1")
            elif name in ("weight_decay", "clip_radius"):
                require(value >= 0, name, value, "at least 0")


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
