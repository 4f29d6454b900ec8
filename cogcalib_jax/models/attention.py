"""Causal grouped-query attention: masks, and kernels by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    LocalMask,
    MultiHeadMask,
    make_splash_mha,
)
from jax.sharding import Mesh

from cogcalib_jax.errors import UserError
from cogcalib_jax.sharding import named_sharding

# (query [b, t, heads, d], key [b, s, kv_heads, d], value [b, s, kv_heads, d],
#  mask: bool [1|b, t, s], true where a query sees a key, or None for plain causal attention,
#  lengths: int32 [b] of right-padded rows, or None; scale: of the scores, None: d ** -0.5)
# -> [b, t, heads, d]
Attention = Callable[..., jax.Array]


def visible(positions: jax.Array, keys: int, window: jax.Array | int) -> jax.Array:
    """Return which keys at positions 0..keys-1 each query sees, bool `[1|b, t, keys]`.

    Args:
        positions: of the queries, int32 `[1|b, t]`.
        keys: their number.
        window: the number of positions that a query sees, with its own; 0: all before it. It may be
            traced, so that layers can differ under a scan.
    """
    distance = positions[:, :, None] - jnp.arange(keys, dtype=jnp.int32)
    return (distance >= 0) & ((distance < window) | (window == 0))


def visible_in_tree(
    positions: jax.Array, branches: Sequence[jax.Array], window: jax.Array | int
) -> jax.Array:
    """Return which tokens of its row each token sees, bool `[b, t, t]`, if texts branch.

    A row holds several texts; a beginning that they share is stored once. A token sees the tokens
    before it on the path to itself, and itself.

    Args:
        positions: of each token in its own text, int32 `[b, t]`.
        branches: for each level of branching the number of a token's branch, int32 `[b, t]`; 0
            above that level.
        window: as in `visible`.
    """
    distance = positions[:, :, None] - positions[:, None, :]
    seen = (distance >= 0) & ((distance < window) | (window == 0))
    for branch in branches:
        theirs = branch[:, None, :]
        seen &= (theirs == 0) | (theirs == branch[:, :, None])
    return seen


def xla_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    lengths: jax.Array | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Return attention by matrix products, on any device; scores and softmax in float32.

    `lengths` is not needed: causality hides right padding from real tokens. `softcap`: scores s
    become softcap * tanh(s / softcap), before the mask. `sinks`: `[heads]`, a logit beside those of
    the keys, without a value.
    """
    batch, time, heads, dim = query.shape
    kv_heads = key.shape[2]
    if mask is None:
        mask = visible(jnp.arange(time, dtype=jnp.int32)[None], time, 0)
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = scores * (dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, *scores.shape[1:3], 1, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(sink, (*scores.shape[:4], 1))], -1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : key.shape[1]].astype(value.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value)
    return mixed.reshape(batch, time, heads, dim)


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    lengths: jax.Array | None,
    *,
    scale: float | None = None,
) -> jax.Array:
    """Return cuDNN's fused attention, which skips padding; bfloat16 or float16."""
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        mask=None if mask is None else mask[:, None],
        is_causal=mask is None,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


# Kernels that take a mask. "splash" takes none: if one is needed, xla runs.
MASKED: dict[str, Attention] = {"xla": xla_attention, "cudnn": cudnn_attention}
ATTENTION = (*MASKED, "splash")


def attention_words(name: str) -> str:
    """Return the kernels that run for `name`, for the log."""
    if name == "splash":
        return "splash (xla where texts of a row branch, and in generation)"
    return name if name == "xla" else f"{name} (xla in generation)"


def require_attention(
    name: str,
    dtype: jnp.dtype,
    mesh: Mesh | None,
    softcap: float | None = None,
    sinks: bool = False,
) -> None:
    """Refuse a kernel that cannot run this dtype, soft cap, sinks, or on the devices of the mesh.

    The platform is the mesh's, not the default one, so that a model can be planned for devices that
    do not exist here.
    """
    if name not in ATTENTION:
        raise UserError(f"attention: {name!r} is not one of {', '.join(ATTENTION)}")
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if name == "splash" and device.platform != "tpu":
        raise UserError(
            f"attention: 'splash' needs a TPU but the mesh is made of {device.platform}; use 'xla'"
        )
    if name != "xla" and sinks:
        raise UserError(f"attention: {name!r} computes no attention sinks; use 'xla'")
    if name != "cudnn":
        return
    if softcap is not None:
        raise UserError(
            f"attention: 'cudnn' has no soft cap, and this model caps its scores at {softcap:g};"
            " use 'xla'"
        )
    if device.platform not in ("gpu", "cuda"):
        raise UserError(
            f"attention: 'cudnn' needs an NVIDIA GPU but the mesh is made of {device.platform};"
            " use 'xla'"
        )
    if jnp.dtype(dtype).name not in ("bfloat16", "float16"):
        raise UserError(
            "attention: 'cudnn' needs bfloat16 or float16 but the model is"
            f" {jnp.dtype(dtype).name};"
            " set the model's dtype to bfloat16 or use 'xla'"
        )


# Rows of a block: the lanes of a vector register, or a few times as many for long texts.
LANES = 128
BLOCKS = (512, 256, LANES)


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    window: jax.Array | None,
    windows: tuple[int, ...],
    mesh: Mesh | None,
    interpret: bool = False,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Return causal attention of right-padded rows, by JAX's Pallas kernel for TPUs.

    It computes one block of scores at a time and skips blocks that no query sees. The compiler
    cannot cut a hand-written kernel, so it runs inside `shard_map`. A kernel is made for each
    window, as its blocks are chosen while compiling.

    Args:
        query: `[b, t, heads, d]`.
        key, value: `[b, t, kv_heads, d]`.
        window: of this layer, as in `visible`; None: all layers see everything.
        interpret: run the kernel step by step on any device.

    Returns:
        `[b, t, heads, d]`.
    """
    time = query.shape[1]
    # A window as long as the text hides nothing.
    kinds = sorted({w if w < time else 0 for w in windows}) or [0]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = query * jnp.asarray(scale, query.dtype)
    kernels = [partial(_Splash(kind, softcap, interpret).on_mesh, mesh=mesh) for kind in kinds]
    if window is None or len(kinds) == 1:
        return kernels[0](query, key, value)
    which = jnp.searchsorted(jnp.asarray(kinds, jnp.int32), window)
    return jax.lax.switch(which, kernels, query, key, value)


class _Splash(NamedTuple):
    """The kernel of one window."""

    window: int
    softcap: float | None
    interpret: bool

    def on_mesh(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mesh: Mesh | None
    ) -> jax.Array:
        if mesh is None:
            return self.on_one_device(query, key, value)
        tensor = mesh.shape["tensor"]
        if key.shape[2] % tensor:
            # Query heads are cut, and these cannot be: each query head gets a copy.
            copies = query.shape[2] // key.shape[2]
            key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
        axes = ("batch", None, "heads", None)
        specs = [named_sharding(mesh, axes, x.shape).spec for x in (query, key, value)]
        return jax.shard_map(
            self.on_one_device,
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=specs[0],
            check_vma=False,
        )(query, key, value)

    def on_one_device(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        _, time, heads, _ = query.shape
        length = -(-time // LANES) * LANES

        def rows_of_heads(x: jax.Array) -> jax.Array:
            """`[b, t, h, d]` -> `[b, h, length, d]`."""
            return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - time), (0, 0)))

        block = next(size for size in BLOCKS if length % size == 0)
        sides = ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
        shape, window = (length, length), self.window
        # Causality hides the padding to `length`.
        mask = LocalMask(shape, (window - 1, 0), 0) if window else CausalMask(shape)
        kernel = make_splash_mha(
            MultiHeadMask([mask] * heads),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=self.softcap,
            block_sizes=BlockSizes(**{f"block_{side}": block for side in sides}),
            interpret=self.interpret,
        )
        mixed = jax.vmap(kernel)(*map(rows_of_heads, (query, key, value)))
        return mixed[:, :, :time].swapaxes(1, 2)
