"""The decoder: embedding, blocks of attention and MLP, norm and head, for every family.

Parameters have the names and the orientation of Hugging Face checkpoints. Those of the blocks are
stacked on a leading axis of layers, along which a scan runs, so that compile time does not grow
with depth. Differences between layers (sliding windows, RoPE) are arrays that the scan runs along.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.models.attention import require_attention
from cogcalib_jax.models.block import KVCache, Layer, RMSNorm, TokenContext
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.models.experts import ExpertLinear, require_targets
from cogcalib_jax.models.lora import (
    Head,
    Linear,
    gain,
    normal_param,
    rows_of,
    trained_rows,
    with_layer_scales,
)
from cogcalib_jax.models.product import from_bits, to_bits
from cogcalib_jax.models.rope import layer_rotations, query_scale
from cogcalib_jax.sharding import named_sharding

# The backward pass finds everything stored, the input of each block, or products with weights.
Remat = Literal["none", "layer", "dots"]
REMAT_POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Embedding(nnx.Module):
    """The table of token vectors, weight `[vocab, hidden]`; with trained rows also lora_rows
    `[rows, hidden]`, a LoRAParam in float32: their differences from the table."""

    def __init__(
        self, config: DecoderConfig, lora: LoraConfig | None, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        shape = (config.vocab_size, config.hidden_size)
        self.weight = normal_param(shape, config.initializer_range, dtype, rngs)
        self.row_ids = None if lora is None else lora.trained_rows("embed_tokens")
        self.lora_rows = trained_rows(self.row_ids, *shape)


class Decoder(nnx.Module):
    """A language model: token ids -> hidden states -> logits.

    LoRA parameters are nnx.LoRAParam in float32, all others nnx.Param in `dtype`, so that
    `nnx.split(decoder, nnx.LoRAParam, ...)` returns (graphdef, trained, frozen). On a `mesh` the
    batch is cut over (data, fsdp), and other axes of activations as those of the weights.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        lora: LoraConfig | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
        remat: Remat = "none",
        attention: str = "xla",
        mesh: Mesh | None = None,
        activations: jnp.dtype | None = None,
    ):
        """activations: dtype of hidden states; None: `dtype`, but float32 on a CPU. Plans for
        accelerators give it, since they trace on a CPU."""
        require_attention(attention, dtype, mesh, config.attention_softcap, config.sinks)
        require_targets(config, lora)
        self.config = config
        self.lora = lora
        self.remat = remat
        self.mesh = mesh
        self.activations = activations
        self.embed_tokens = Embedding(config, lora, dtype, rngs)
        self.layers = Layer(config, lora, dtype, attention, mesh, rngs)
        self.norm = RMSNorm((), config.hidden_size, config, dtype)
        self.lm_head = Linear(
            (),
            config.vocab_size,
            config.hidden_size,
            weight=not config.tie_word_embeddings,
            name="lm_head",
            lora=lora,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        if self.in_bits:
            for _, module in nnx.iter_modules(self.layers):
                if isinstance(module, Linear | ExpertLinear):
                    module.weight = nnx.Param(to_bits(module.weight[...]))

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the base's parameters."""
        return self.embed_tokens.weight.dtype

    @property
    def activation_dtype(self) -> jnp.dtype:
        """The dtype of hidden states, keys and values: `dtype`, but float32 on CPUs (`product`)."""
        if self.activations is not None:
            return jnp.dtype(self.activations)
        device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
        return jnp.dtype(jnp.float32) if device.platform == "cpu" else self.dtype

    @property
    def in_bits(self) -> bool:
        """Return whether the weights of the layers are held as bits (`product`)."""
        return self.activation_dtype != self.dtype

    def hidden_states(
        self,
        input_ids: jax.Array,
        *,
        lengths: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return hidden states after the final norm, `[batch, time, hidden]` in
        `activation_dtype`.

        Args:
            input_ids: int32 `[batch, time]`, right-padded; tokens never see padding behind them.
            lengths: int32 `[batch]`, numbers of real tokens, for kernels that skip padding, and for
                longrope; hidden states at padding are undefined then. None: all are real.
            dropout_key: of LoRA's dropout; None: no dropout.
        """
        positions = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        return self._run(input_ids, positions, None, dropout_key, lengths=lengths)[0]

    def tree_hidden_states(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        branches: tuple[jax.Array, ...],
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return hidden states `[batch, time, hidden]` of rows in which several texts share a
        beginning. A token has the hidden state that it has in its own text. With longrope the
        longest text of a row decides for all of them.

        Args:
            input_ids: int32 `[batch, time]`.
            positions: int32 `[batch, time]`, of each token in its own text.
            branches: the branch of each token; see `visible_in_tree`.
            dropout_key: of LoRA's dropout; None: no dropout.
        """
        return self._run(input_ids, positions, None, dropout_key, branches=branches)[0]

    def cached_hidden_states(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        *,
        ends: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Return hidden states `[batch, time, hidden]` of tokens at `positions` `[batch, time]`,
        which see the cache up to their positions, and the cache with these tokens.

        ends: int32 `[batch]`, how many positions each text may come to have, for longrope; None:
        those that it has now.
        """
        return self._run(input_ids, positions, cache, None, ends=ends)

    def empty_cache(self, batch: int, positions: int) -> KVCache:
        """Return a cache for `batch` rows of up to `positions` tokens."""
        c = self.config
        shape = (c.num_layers, batch, positions, c.kv_heads, c.head_dim)
        axes = ("layers", "batch", None, "kv_heads", None)
        zeros = self._constrain(jnp.zeros(shape, self.activation_dtype), axes)
        return KVCache(zeros, zeros)

    def logits(self, hidden: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return logits `[..., vocab]` of hidden `[..., hidden]`, accumulated in float32."""
        return self.head().logits(hidden, dropout_key)

    def head(self) -> Head:
        """Return the output head, with its weight on the devices that need it."""
        head, adapted = self.lm_head, self.lm_head.lora_A is not None
        tied = self.config.tie_word_embeddings
        weight, length = self._table(self.embed_tokens if tied else head), None
        if head.lora_magnitude is not None:
            adapter = (head.lora_A[...], head.lora_B[...], head.scale, head.lora_magnitude[...])
            length = gain(weight, *adapter)
        # Single rows that are trained stay tied, a whole table is another one (as in PEFT).
        trained = self.embed_tokens if tied and self.embed_tokens.row_ids else head
        return Head(
            weight=weight,
            lora_A=head.lora_A[...] if adapted else None,
            lora_A_root=None if head.lora_A_root is None else head.lora_A_root[...],
            lora_B=head.lora_B[...] if adapted else None,
            gain=length,
            rows=None if trained.lora_rows is None else trained.lora_rows[...],
            row_ids=trained.row_ids or (),
            scale=head.scale,
            dropout=head.dropout,
            divisor=self.config.logits_divisor,
            softcap=self.config.final_softcap,
        )

    def _table(self, module: Embedding | Linear) -> jax.Array:
        """Weight `[vocab, hidden]` with whole rows on each device. For rows cut over fsdp the
        compiler would replicate all that is looked up in them."""
        return self._constrain(module.weight[...], ("vocab", None))

    def _run(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        cache: KVCache | None,
        dropout_key: jax.Array | None,
        *,
        lengths: jax.Array | None = None,
        branches: tuple[jax.Array, ...] = (),
        ends: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        c = self.config
        seen = input_ids.shape[1] if cache is None else cache.keys.shape[2]
        if c.switches_at is None or seen <= c.switches_at:
            ends = None
        elif ends is None:
            last = positions.max(axis=-1) + 1 if lengths is None else lengths
            ends = jnp.broadcast_to(last, input_ids.shape[:1])
        table = self._table(self.embed_tokens)
        x = from_bits(to_bits(table)[input_ids]) if self.in_bits else table[input_ids]
        if self.embed_tokens.lora_rows is not None:
            rows = self.embed_tokens.lora_rows[...]
            x = x + rows_of(rows, self.embed_tokens.row_ids, input_ids)
        x = self._constrain(x.astype(self.activation_dtype), ("batch", None, None))
        if c.embed_scale != 1:
            x = x * jnp.asarray(c.embed_scale, self.dtype).astype(x.dtype)
        cos, sin, rotations = layer_rotations(c, positions, ends)
        scale = query_scale(c.ropes[0], positions)
        context = TokenContext(positions, cos, sin, scale, lengths, branches)
        graphdef, stacked = nnx.split(with_layer_scales(self.layers))

        def block(carry, layer_input):
            x, cache = carry
            state, layer, window, rotation = layer_input
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            own = context.of_layer(rotation)
            x, cache = nnx.merge(graphdef, state)(x, own, window, layer, cache, key)
            return (self._constrain(x, ("batch", None, None)), cache), None

        if self.remat != "none":
            # The scan keeps XLA from merging the second forward pass with the first.
            block = jax.checkpoint(block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        seen = input_ids.shape[1] if cache is None else cache.keys.shape[2]
        numbers = jnp.arange(c.num_layers, dtype=jnp.int32)
        layers = (stacked, numbers, self._windows(seen), rotations)
        (x, cache), _ = jax.lax.scan(block, (x, cache), layers)
        return self.norm(x), cache

    def _windows(self, positions: int) -> jax.Array | None:
        """Sliding windows of layers, int32 `[layers]`; None if none is shorter than the text, so
        that kernels for plain causal attention serve."""
        windows = [w if w < positions else 0 for w in self.config.sliding_windows]
        return jnp.asarray(windows, jnp.int32) if any(windows) else None

    def _constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, named_sharding(self.mesh, axes, x.shape))
