"""The blocks of a decoder: attention and MLP with their norms, for all layers at once."""

from __future__ import annotations

from collections.abc import Callable
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
from cogcalib_jax.models.experts import MixtureOfExperts
from cogcalib_jax.models.lora import Linear, normal_param
from cogcalib_jax.models.product import held_as_bits, is_rounded
from cogcalib_jax.models.rope import rotate

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}
# Names of a layer's norms: before attention, after it, before the MLP, after it.
NORMS: dict[str, tuple[str | None, ...]] = {
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "sandwich": (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}


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
    query_scale: jax.Array | None
    """`[1|batch, time, 1, 1]` float32, factor of rotated queries; None: 1"""
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
    """x / sqrt(mean(x^2) + eps) in float32, times (offset + weight `[*stack, width]`) in x's dtype,
    or in float32."""

    def __init__(self, stack: tuple[int, ...], width: int, config: DecoderConfig, dtype: jnp.dtype):
        self.offset, self.wide = config.norm_offset, config.wide_norms
        self.weight = nnx.Param(jnp.full((*stack, width), 1 - self.offset, dtype))
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        factor = self.weight[...]
        if self.wide:
            factor = factor.astype(jnp.float32)
        else:
            wide = wide.astype(x.dtype)
        if self.offset:
            factor = factor + jnp.asarray(self.offset, factor.dtype)
        return (factor * wide).astype(x.dtype)


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
            name=name,
            lora=lora,
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
        shapes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        if config.fused:
            shapes = {"qkv_proj": heads + 2 * kv_heads}
        for name, out in shapes.items():
            setattr(self, name, self.make(name, config, out, width, config.qkv_bias, *rest))
        self.ends = (heads, heads + kv_heads) if config.fused else None
        self.o_proj = self.make("o_proj", config, width, heads, config.out_bias, *rest)
        self.qk_norm = config.qk_norm
        widths = {"head": (config.head_dim,) * 2, "projection": (heads, kv_heads)}
        self.q_norm, self.k_norm = (
            RMSNorm((config.num_layers,), width, config, dtype) if width else None
            for width in widths.get(self.qk_norm, (None, None))
        )
        self.head_dim = config.head_dim
        self.scale = config.attention_scale or config.head_dim**-0.5
        self.softcap = config.attention_softcap
        self.attention, self.dtype = attention, dtype
        self.windows = tuple(sorted(set(config.sliding_windows)))
        self.mesh = mesh
        shape, spread = (config.num_layers, config.num_heads), config.initializer_range
        self.sinks = normal_param(shape, spread, dtype, rngs) if config.sinks else None

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
        if self.ends is None:
            parts = [self.project(name, x, key) for name in ("q_proj", "k_proj", "v_proj")]
        else:
            parts = jnp.split(self.project("qkv_proj", x, key), self.ends, axis=-1)
        q, k, v = parts
        if self.qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (flat.reshape(*flat.shape[:2], -1, self.head_dim) for flat in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, context.cos, context.sin)
        k = rotate(k, context.cos, context.sin)
        if context.query_scale is not None:
            q = q * context.query_scale.astype(q.dtype)

        if cache is not None:
            cache = cache.write(layer, context.positions, k, v)
            k, v = cache.keys[layer], cache.values[layer]
        if self.attention == "splash" and cache is None and not context.branches:
            mixed = splash_attention(
                q, k, v, window, self.windows, self.mesh, scale=self.scale, softcap=self.softcap
            )
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
        # Kernels that have neither (`require_attention`) have no arguments for them.
        sinks = None if self.sinks is None else self.sinks[...]
        rare = {"softcap": self.softcap, "sinks": sinks}
        rare = {name: value for name, value in rare.items() if value is not None}
        attend = partial(attend, scale=self.scale)
        if is_rounded(q, self.dtype):
            # Scores are cheaper to form again than to hold: [heads, time, time] for each layer.
            attend = jax.checkpoint(attend, prevent_cse=False)
        return attend(q, k, v, mask, lengths, **rare)


class MLP(Projections):
    """The gated MLP: down(activation(gate x) * up x)."""

    def __init__(
        self,
        config: DecoderConfig,
        lora: LoraConfig | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width, inner = config.hidden_size, config.intermediate_size
        rest = (config.mlp_bias, lora, dtype, rngs)
        self.fused = config.fused
        shapes = (
            {"gate_up_proj": 2 * inner} if self.fused else {"gate_proj": inner, "up_proj": inner}
        )
        for name, out in shapes.items():
            setattr(self, name, self.make(name, config, out, width, *rest))
        self.down_proj = self.make("down_proj", config, width, inner, *rest)
        self.activation, self.dtype = config.activation, dtype

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.fused:
            gate, up = jnp.split(self.project("gate_up_proj", x, key), 2, axis=-1)
        else:
            gate, up = (self.project(name, x, key) for name in ("gate_proj", "up_proj"))
        gated = partial(_gated, self.activation)
        if is_rounded(gate, self.dtype):
            return self.project("down_proj", held_as_bits(gated, gate, up), key)
        # The backward pass finds these two stored, and not three products more.
        gated = jax.checkpoint(gated, prevent_cse=False)
        return self.project("down_proj", gated(gate, up), key)


def _gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    return ACTIVATIONS[activation](gate) * up


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
        self.norms = NORMS[config.norms]
        for name in filter(None, self.norms):
            setattr(self, name, RMSNorm((config.num_layers,), config.hidden_size, config, dtype))
        self.self_attn = Attention(config, lora, dtype, attention, mesh, rngs)
        if config.experts is None:
            self.mlp = MLP(config, lora, dtype, rngs)
        else:
            self.mlp = MixtureOfExperts(config, dtype, mesh, rngs)
        self.residual_scale = config.residual_scale

    def __call__(
        self,
        x: jax.Array,
        context: TokenContext,
        window: jax.Array | None,
        layer: jax.Array,
        cache: KVCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        before_attention, after_attention, before_mlp, after_mlp = map(self._norm, self.norms)
        mixed, cache = self.self_attn(before_attention(x), context, window, layer, cache, key)
        x = self._add(x, after_attention(mixed))
        return self._add(x, after_mlp(self.mlp(before_mlp(x), key))), cache

    def _norm(self, name: str | None) -> Callable[[jax.Array], jax.Array]:
        return (lambda x: x) if name is None else getattr(self, name)

    def _add(self, x: jax.Array, update: jax.Array) -> jax.Array:
        if self.residual_scale != 1:
            # A factor such as 0.22 is not rounded to bfloat16 first.
            update = (update.astype(jnp.float32) * self.residual_scale).astype(x.dtype)
        return x + update
