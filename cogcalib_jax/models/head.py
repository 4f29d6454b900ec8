"""The output head: hidden states to logits, over the whole vocabulary or for a few tokens.

Taken out of the decoder once and used many times: whatever a mesh must do to bring the weight where
it is needed then happens once, and not in every turn of a loop over chunks of positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from cogcalib_jax.models.lora import lora_input


@struct.dataclass
class Head:
    """Weight and adapter of the head, a pytree."""

    weight: jax.Array
    """`[vocab, hidden]` in the model's dtype: the embedding's where the two are tied"""
    lora_A: jax.Array | None
    """`[rank, hidden]` float32, None without an adapter"""
    lora_A_root: jax.Array | None
    """like lora_A where A is uncertain, else None"""
    lora_B: jax.Array | None
    """`[vocab, rank]` float32"""
    scale: float = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False)
    temperature: jax.Array | float | None = None
    """divides every logit, in float32; None divides nothing"""

    def logits(self, hidden: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """hidden `[..., hidden]` -> logits `[..., vocab]` float32, accumulated in float32."""
        logits = jnp.einsum(
            "...d,vd->...v", hidden, self.weight, preferred_element_type=jnp.float32
        )
        if self.lora_A is not None:
            low = self._low(hidden, dropout_key)
            logits = logits + self.scale * jnp.einsum("...r,vr->...v", low, self.lora_B)
        return self._tempered(logits)

    def option_logits(
        self, hidden: jax.Array, option_ids: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of a few tokens only: hidden `[batch, hidden]`, option_ids `[batch, options]` ->
        `[batch, options]` float32. Only those rows of the weight are read."""
        rows = self.weight[option_ids]
        logits = jnp.einsum("bd,bkd->bk", hidden, rows, preferred_element_type=jnp.float32)
        if self.lora_A is not None:
            low = self._low(hidden, dropout_key)
            logits = logits + self.scale * jnp.einsum("br,bkr->bk", low, self.lora_B[option_ids])
        return self._tempered(logits)

    def _tempered(self, logits: jax.Array) -> jax.Array:
        # Not the hidden states: in bfloat16 a quotient of them is rounded, each by up to 2^-9.
        return logits if self.temperature is None else logits / self.temperature

    def _low(self, hidden: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        return lora_input(hidden, self.lora_A, self.lora_A_root, self.dropout, dropout_key)
