"""The blocks of a decoder: attention and MLP with their norms, for all layers at once."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.models.attention import (
    MASKED,
    splash_attention,
    visible,
    visible_in_tree,
    xla_attention,
)
from cogcalib_jax.models.config import LAYER_PROJECTIONS, DecoderConfig, LoraConfig
from cogcalib_jax.models.lora import Linear
from cogcalib_jax.models.rope import rotate


class KVCache(NamedTuple):
    """Rotated keys and values of the tokens read so far, in the model's dtype."""

    keys: jax.Array
    """`[layers, batch, positions, kv_heads, head_dim]`"""
    values: jax.Array
    """like keys"""

    def write(
        self, layer: jax.Array, positions: jax.Array, keys: jax.Array, values: jax.Array
    ) -> KVCache:
        """Return the cache with a layer's keys and values `[batch, time, kv_heads, head_dim]` at
        `positions` `[batch, time]`."""

        # Mapped over rows, so that the compiler sees that rows do not write across devices.
        @partial(jax.vmap, in_axes=(1, 0, 0), out_axes=1)
        def put(store: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
            return store.at[layer, positions].set(new)

        return KVCache(put(self.keys, positions, keys), put(self.values, positions, values))


class TokenContext(NamedTuple):
    """The positions of tokens and what they see."""

    positions: jax.Array
    """int32 `[1|batch, time]`"""
    cos: jax.Array
    """`[1|batch, time, pairs]` float32, with a leading axis of rotations where layers differ"""
    sin: jax.Array
    """like cos"""
    lengths: jax.Array | None
    """int32 `[batch]` for right-padded rows"""
    branches: tuple[jax.Array, ...] = ()
    """int32 `[batch, time]` each, for rows with branches; see `visible_in_tree`"""

    def of_layer(self, rotation: jax.Array | None) -> TokenContext:
        """Return the context with a layer's own rotation, by its index; None: all have the same."""
        if rotation is None:
            return self
        return self._replace(cos=self.cos[rotation], sin=self.sin[rotation])


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
    """A group of stacked Linear layers, each with its own random stream of dropout."""

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
        context: TokenContext,
        window: jax.Array | None,
        layer: jax.Array,
        cache: KVCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        """x `[batch, time, hidden]`; window: see `visible`, None: causality alone."""

        def heads(name: str) -> jax.Array:
            flat = self.project(name, x, key)
            return flat.reshape(*flat.shape[:2], -1, self.head_dim)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, context.cos, context.sin)
        k = rotate(k, context.cos, context.sin)

        if cache is not None:
            cache = cache.write(layer, context.positions, k, v)
            k, v = cache.keys[layer], cache.values[layer]
        if self.attention == "splash" and cache is None and not context.branches:
            mixed = splash_attention(q, k, v, window, self.windows, self.mesh)
        else:
            mixed = self._masked(q, k, v, context, window, cache is not None)
        return self.project("o_proj", mixed.reshape(*mixed.shape[:2], -1), key), cache

    def _masked(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        context: TokenContext,
        window: jax.Array | None,
        cached: bool,
    ) -> jax.Array:
        attend, lengths = MASKED.get(self.attention, xla_attention), context.lengths
        if cached:
            # A fused kernel gains nothing for queries of length one.
            attend, lengths = xla_attention, None
        mask, reach = None, 0 if window is None else window
        if context.branches:
            mask = visible_in_tree(context.positions, context.branches, reach)
        elif window is not None or cached:
            mask = visible(context.positions, k.shape[1], reach)
        return attend(q, k, v, mask, lengths)


class MLP(Projections):
    """The SwiGLU: down(silu(gate x) * up x)."""

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
        gate, up = self.project("gate_proj", x, key), self.project("up_proj", x, key)
        return self.project("down_proj", _gated(gate, up), key)


@partial(jax.checkpoint, prevent_cse=False)
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    # The backward pass finds these two stored, and not three products more.
    return jax.nn.silu(gate) * up


class Layer(nnx.Module):
    """All blocks: one module with stacked parameters, called with the slice of one layer."""

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
        context: TokenContext,
        window: jax.Array | None,
        layer: jax.Array,
        cache: KVCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        mixed, cache = self.self_attn(self.input_layernorm(x), context, window, layer, cache, key)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x), key), cache
