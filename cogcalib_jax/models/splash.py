"""Splash attention on TPUs: JAX's own Pallas kernel, on each device's own rows and heads.

Scores exist a block at a time, and blocks that no query of theirs sees are skipped: with a sliding
window the work grows with time x window. The compiler cannot cut a hand-written kernel for several
devices, so it runs inside `shard_map`.
"""

from __future__ import annotations

from functools import partial

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

from cogcalib_jax.sharding import named_sharding

# A block's rows: lanes of a vector register, or a few times as many where the text is long.
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
) -> jax.Array:
    """Causal attention of right-padded rows, query `[b, t, heads, d]` -> `[b, t, heads, d]`.

    key, value: `[b, t, kv_heads, d]`; window: how many positions each query of this layer sees, its
    own included, 0 for all before it, None where that holds for all layers; windows: those that
    occur in any layer. A kernel is made for each, as its blocks are chosen while compiling.
    interpret: run the kernel step by step on whatever device there is.
    """
    time = query.shape[1]
    # One as long as the text hides nothing.
    kinds = sorted({w if w < time else 0 for w in windows}) or [0]
    kernels = [partial(_on_mesh, window=kind, mesh=mesh, interpret=interpret) for kind in kinds]
    if window is None or len(kinds) == 1:
        return kernels[0](query, key, value)
    which = jnp.searchsorted(jnp.asarray(kinds, jnp.int32), window)
    return jax.lax.switch(which, kernels, query, key, value)


def _on_mesh(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    window: int,
    mesh: Mesh | None,
    interpret: bool,
) -> jax.Array:
    attend = partial(_on_one_device, window=window, interpret=interpret)
    if mesh is None:
        return attend(query, key, value)
    tensor = mesh.shape["tensor"]
    if key.shape[2] % tensor:
        # Query heads are cut and these cannot be: each query head gets its own copy.
        copies = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    axes = ("batch", None, "heads", None)
    specs = [named_sharding(mesh, axes, x.shape).spec for x in (query, key, value)]
    return jax.shard_map(
        attend, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False
    )(query, key, value)


def _on_one_device(
    query: jax.Array, key: jax.Array, value: jax.Array, *, window: int, interpret: bool
) -> jax.Array:
    _, time, heads, dim = query.shape
    length = -(-time // LANES) * LANES

    def rows_of_heads(x: jax.Array) -> jax.Array:
        """`[b, t, h, d]` -> `[b, h, length, d]`."""
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - time), (0, 0)))

    block = next(size for size in BLOCKS if length % size == 0)
    shape = (length, length)
    # Causality hides what is appended here, as it hides a row's own padding, from all real tokens.
    mask = LocalMask(shape, (window - 1, 0), 0) if window else CausalMask(shape)
    kernel = make_splash_mha(
        MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )
    query = query * jnp.asarray(dim**-0.5, query.dtype)
    mixed = jax.vmap(kernel)(*map(rows_of_heads, (query, key, value)))
    return mixed[:, :, :time].swapaxes(1, 2)
