"""The parts of an update that another way of training changes: form, draws, loss, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.errors import UserError
from cogcalib_jax.models.lora import Head


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
            batch: the examples.
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
