"""The decoder: one flag-driven core for Llama, Mistral, Qwen2, Qwen2.5 and Qwen3.

Embedding, `num_layers` blocks of (RMSNorm, attention, RMSNorm, SwiGLU), RMSNorm, head. Parameters
are named and oriented as in Hugging Face checkpoints; those of the blocks are stacked on a leading
axis of layers and a scan takes them apart, so compile time does not grow with depth. What differs
between layers (sliding windows) is an array the scan runs along.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.models.attention import (
    MASKED,
    require_attention,
    splash_attention,
    visible,
    visible_in_tree,
    xla_attention,
)
from cogcalib_jax.models.config import LAYER_PROJECTIONS, DecoderConfig, LoraConfig
from cogcalib_jax.models.head import Head
from cogcalib_jax.models.lora import Linear, normal_param
from cogcalib_jax.models.rope import rotate, rotation
from cogcalib_jax.sharding import named_sharding

# What the backward pass finds stored: everything, only each block's input, or the results of the
# products with weights.
Remat = Literal["none", "layer", "dots"]
REMAT_POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class KVCache(NamedTuple):
    """Keys (rotated) and values of the positions read so far, in the model's dtype."""

    keys: jax.Array
    """`[layers, batch, positions, kv_heads, head_dim]`"""
    values: jax.Array
    """like keys"""

    def write(
        self, layer: jax.Array, positions: jax.Array, keys: jax.Array, values: jax.Array
    ) -> KVCache:
        """With one layer's keys and values `[batch, time, kv_heads, head_dim]` at `positions`
        `[batch, time]`."""

        # Mapped over rows, so that the compiler sees that no row writes into another's device.
        @partial(jax.vmap, in_axes=(1, 0, 0), out_axes=1)
        def put(store: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
            return store.at[layer, positions].set(new)

        return KVCache(put(self.keys, positions, keys), put(self.values, positions, values))


class Reading(NamedTuple):
    """What all layers need to know of the tokens they read."""

    positions: jax.Array
    """int32 `[1|batch, time]`"""
    cos: jax.Array
    """`[1|batch, time, head_dim / 2]` float32"""
    sin: jax.Array
    """like cos"""
    lengths: jax.Array | None
    """int32 `[batch]` where rows are right-padded"""
    branches: tuple[jax.Array, ...] = ()
    """int32 `[batch, time]` each, where texts of a row branch; see `visible_in_tree`"""


class Embedding(nnx.Module):
    """Table of token vectors, weight `[vocab, hidden]`."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.weight = normal_param(shape, config.initializer_range, dtype, rngs)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) in float32, then times weight `[*stack, width]` in x's dtype."""

    def __init__(self, stack: tuple[int, ...], width: int, eps: float, dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.ones((*stack, width), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        return self.weight[...] * wide.astype(x.dtype)


class Projections(nnx.Module):
    """A group of stacked Linear layers, and the random stream of each one's dropout."""

    def make(
        self,
        name: str,
        config: DecoderConfig,
        out_features: int,
        in_features: int,
        bias: bool,
        lora: LoraConfig | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> Linear:
        return Linear(
            (config.num_layers,),
            out_features,
            in_features,
            bias=bias,
            lora=lora if lora is not None and name in lora.modules else None,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )

    def project(self, name: str, x: jax.Array, layer_key: jax.Array | None) -> jax.Array:
        key = None
        if layer_key is not None:
            key = jax.random.fold_in(layer_key, LAYER_PROJECTIONS.index(name))
        return getattr(self, name)(x, key)


class Attention(Projections):
    """Grouped-query attention with rotary positions."""

    def __init__(
        self,
        config: DecoderConfig,
        lora: LoraConfig | None,
        dtype: jnp.dtype,
        attention: str,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width, heads = config.hidden_size, config.num_heads * config.head_dim
        kv_heads = config.kv_heads * config.head_dim
        rest = (lora, dtype, rngs)
        self.q_proj = self.make("q_proj", config, heads, width, config.qkv_bias, *rest)
        self.k_proj = self.make("k_proj", config, kv_heads, width, config.qkv_bias, *rest)
        self.v_proj = self.make("v_proj", config, kv_heads, width, config.qkv_bias, *rest)
        self.o_proj = self.make("o_proj", config, width, heads, config.out_bias, *rest)
        norm = ((config.num_layers,), config.head_dim, config.rms_norm_eps, dtype)
        self.q_norm = RMSNorm(*norm) if config.qk_norm == "head" else None
        self.k_norm = RMSNorm(*norm) if config.qk_norm == "head" else None
        self.head_dim = config.head_dim
        self.attention = attention
        self.windows = tuple(sorted(set(config.sliding_windows)))
        self.mesh = mesh

    def __call__(
        self,
        x: jax.Array,
        reading: Reading,
        window: jax.Array | None,
        layer: jax.Array,
        cache: KVCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        """x `[batch, time, hidden]`; window: see `visible`, None where causality is all."""

        def heads(name: str) -> jax.Array:
            flat = self.project(name, x, key)
            return flat.reshape(*flat.shape[:2], -1, self.head_dim)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, reading.cos, reading.sin)
        k = rotate(k, reading.cos, reading.sin)

        if cache is not None:
            cache = cache.write(layer, reading.positions, k, v)
            k, v = cache.keys[layer], cache.values[layer]
        if self.attention == "splash" and cache is None and not reading.branches:
            mixed = splash_attention(q, k, v, window, self.windows, self.mesh)
        else:
            mixed = self._masked(q, k, v, reading, window, cache is not None)
        return self.project("o_proj", mixed.reshape(*mixed.shape[:2], -1), key), cache

    def _masked(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        reading: Reading,
        window: jax.Array | None,
        cached: bool,
    ) -> jax.Array:
        attend, lengths = MASKED.get(self.attention, xla_attention), reading.lengths
        if cached:
            # Queries of length one gain nothing from a fused kernel.
            attend, lengths = xla_attention, None
        mask, reach = None, 0 if window is None else window
        if reading.branches:
            mask = visible_in_tree(reading.positions, reading.branches, reach)
        elif window is not None or cached:
            mask = visible(reading.positions, k.shape[1], reach)
        return attend(q, k, v, mask, lengths)


class MLP(Projections):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(
        self,
        config: DecoderConfig,
        lora: LoraConfig | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width, inner = config.hidden_size, config.intermediate_size
        rest = (config.mlp_bias, lora, dtype, rngs)
        self.gate_proj = self.make("gate_proj", config, inner, width, *rest)
        self.up_proj = self.make("up_proj", config, inner, width, *rest)
        self.down_proj = self.make("down_proj", config, width, inner, *rest)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        gate = jax.nn.silu(self.project("gate_proj", x, key))
        return self.project("down_proj", gate * self.project("up_proj", x, key), key)


class Layer(nnx.Module):
    """The blocks: one module whose parameters are stacked, called with a single layer's slice."""

    def __init__(
        self,
        config: DecoderConfig,
        lora: LoraConfig | None,
        dtype: jnp.dtype,
        attention: str,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        norm = ((config.num_layers,), config.hidden_size, config.rms_norm_eps, dtype)
        self.input_layernorm = RMSNorm(*norm)
        self.self_attn = Attention(config, lora, dtype, attention, mesh, rngs)
        self.post_attention_layernorm = RMSNorm(*norm)
        self.mlp = MLP(config, lora, dtype, rngs)

    def __call__(
        self,
        x: jax.Array,
        reading: Reading,
        window: jax.Array | None,
        layer: jax.Array,
        cache: KVCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        mixed, cache = self.self_attn(self.input_layernorm(x), reading, window, layer, cache, key)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x), key), cache


class Decoder(nnx.Module):
    """Token ids -> hidden states -> logits.

    LoRA parameters are nnx.LoRAParam in float32, all others nnx.Param in `dtype`; so
    `nnx.split(decoder, nnx.LoRAParam, ...)` gives (graphdef, what is trained, what is frozen).
    With a `mesh`, activations are pinned to it: batch over (data, fsdp), the rest as weights lie.
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
    ):
        require_attention(attention, dtype, mesh)
        self.config = config
        self.lora = lora
        self.remat = remat
        self.mesh = mesh
        self.embed_tokens = Embedding(config, dtype, rngs)
        self.layers = Layer(config, lora, dtype, attention, mesh, rngs)
        self.norm = RMSNorm((), config.hidden_size, config.rms_norm_eps, dtype)
        self.lm_head = Linear(
            (),
            config.vocab_size,
            config.hidden_size,
            weight=not config.tie_word_embeddings,
            lora=lora if lora is not None and "lm_head" in lora.modules else None,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def dtype(self) -> jnp.dtype:
        """Of the base's parameters and of hidden states."""
        return self.embed_tokens.weight.dtype

    def hidden_states(
        self,
        input_ids: jax.Array,
        *,
        lengths: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm, `[batch, time, hidden]` in `dtype`.

        input_ids: int32 `[batch, time]`, right-padded; real tokens never see padding behind them.
        lengths: int32 `[batch]` of real tokens, for attention kernels that skip padding; hidden
        states at padding are then undefined. dropout_key: for LoRA's dropout, None for none.
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
        """Hidden states `[batch, time, hidden]` of rows in which texts branch: what several texts
        begin with is computed once.

        positions: int32 `[batch, time]`, of each token in its own text; branches: what it sees, see
        `visible_in_tree`. A token's hidden state is the one it has in its own text alone.
        """
        return self._run(input_ids, positions, None, dropout_key, branches=branches)[0]

    def cached_hidden_states(
        self, input_ids: jax.Array, positions: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states `[batch, time, hidden]` of tokens at `positions` `[batch, time]`, seeing
        what `cache` holds at and before them; and the cache with these tokens written in."""
        return self._run(input_ids, positions, cache, None)

    def empty_cache(self, batch: int, positions: int) -> KVCache:
        """A cache for `batch` rows of up to `positions` tokens."""
        c = self.config
        shape = (c.num_layers, batch, positions, c.kv_heads, c.head_dim)
        axes = ("layers", "batch", None, "kv_heads", None)
        zeros = self._constrain(jnp.zeros(shape, self.dtype), axes)
        return KVCache(zeros, zeros)

    def logits(self, hidden: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """hidden `[..., hidden]` -> logits `[..., vocab]` float32, accumulated in float32."""
        return self.head().logits(hidden, dropout_key)

    def head(self) -> Head:
        """What makes logits of hidden states, its weight brought to where it is needed."""
        head, adapted = self.lm_head, self.lm_head.lora_A is not None
        tied = self.config.tie_word_embeddings
        return Head(
            weight=self._table(self.embed_tokens if tied else head),
            lora_A=head.lora_A[...] if adapted else None,
            lora_A_root=None if head.lora_A_root is None else head.lora_A_root[...],
            lora_B=head.lora_B[...] if adapted else None,
            scale=head.scale,
            dropout=head.dropout,
        )

    def _table(self, module: Embedding | Linear) -> jax.Array:
        """Weight `[vocab, hidden]` with whole rows on each device: rows cut over fsdp would make
        the compiler replicate whatever is looked up in them."""
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
    ) -> tuple[jax.Array, KVCache | None]:
        c = self.config
        x = self._constrain(self._table(self.embed_tokens)[input_ids], ("batch", None, None))
        reading = Reading(positions, *rotation(c.rope, c.head_dim, positions), lengths, branches)
        graphdef, stacked = nnx.split(self.layers)

        def block(carry, layer_input):
            x, cache = carry
            state, layer, window = layer_input
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            x, cache = nnx.merge(graphdef, state)(x, reading, window, layer, cache, key)
            return (self._constrain(x, ("batch", None, None)), cache), None

        if self.remat != "none":
            # A scan already keeps XLA from merging the second forward pass with the first.
            block = jax.checkpoint(block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        seen = input_ids.shape[1] if cache is None else cache.keys.shape[2]
        layers = (stacked, jnp.arange(c.num_layers, dtype=jnp.int32), self._windows(seen))
        (x, cache), _ = jax.lax.scan(block, (x, cache), layers)
        return self.norm(x), cache

    def _windows(self, positions: int) -> jax.Array | None:
        """Sliding windows by layer, int32 `[layers]`; None where none is shorter than the text, so
        that kernels for plain causal attention serve."""
        windows = [w if w < positions else 0 for w in self.config.sliding_windows]
        return jnp.asarray(windows, jnp.int32) if any(windows) else None

    def _constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, named_sharding(self.mesh, axes, x.shape))
