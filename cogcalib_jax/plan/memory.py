"""How much memory an update takes on each device, estimated from shapes without compiling it.

What the backward pass finds stored is read off the traced forward pass, on one device's part of the
batch and of the heads; parameters and moments are counted leaf by leaf. Not counted: what a
compiler adds for its own convenience, and what it saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.inference.forward import CHUNK
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.models.decoder import Decoder, Remat
from cogcalib_jax.models.parameters import abstract_decoder
from cogcalib_jax.plan.plan import BatchShape
from cogcalib_jax.sharding import batch_parts

# AdamW's two moments and the gradient, each as large as the adapter, which is there itself.
ADAPTER_COPIES = 4


class Memory(NamedTuple):
    """Bytes on one device."""

    base: int
    """frozen weights, in the model's dtype"""
    gathered: int
    """weights spread over fsdp, brought together while they are needed: a layer and the tables"""
    adapter: int
    """LoRA parameters with gradient and moments, float32"""
    stored: int
    """activations kept for the backward pass"""
    working: int
    """a layer's activations while its gradient is formed, or in a forward pass"""
    logits: int
    """of a chunk of scored positions, with their gradient"""
    cache: int = 0
    """keys and values of texts that are being generated"""

    @property
    def total(self) -> int:
        return sum(self)


def update_memory(
    config: DecoderConfig,
    mesh: Mesh,
    *,
    lora: LoraConfig,
    shape: BatchShape,
    dtype: jnp.dtype,
    classes: int,
    remat: Remat = "none",
    attention: str = "xla",
) -> Memory:
    """Of one update.

    shape: one micro-batch, padded. classes: logits formed at a scored position.
    """
    base, gathered, adapter = _parameters(config, mesh, lora, dtype)
    rows = -(-shape.examples // batch_parts(mesh))
    local = _on_one_device(config, mesh)
    stored = _stored(local, lora, dtype, remat, attention, rows, shape.tokens)
    whole = (
        stored
        if remat == "none"
        else _stored(local, lora, dtype, "none", attention, rows, shape.tokens)
    )
    return Memory(
        base=base,
        gathered=gathered,
        adapter=ADAPTER_COPIES * adapter,
        stored=stored,
        # Measured with 6 layers in float32 on a CPU: 1.08 of the compiler's own figure without
        # remat, .82 with "layer" and 1.08 with "dots"; see tests/plan/test_memory.py.
        working=whole // config.num_layers,
        logits=2 * _chunk_bytes(rows * shape.answer_tokens, classes, config, mesh),
    )


def scoring_memory(
    config: DecoderConfig,
    mesh: Mesh,
    *,
    lora: LoraConfig | None,
    shape: BatchShape,
    dtype: jnp.dtype,
    attention: str = "xla",
    cached: int = 0,
) -> Memory:
    """Of a forward pass that scores a batch over the vocabulary; `shape` as for an update.

    cached: positions of each row whose keys and values are kept to generate from.
    """
    base, gathered, adapter = _parameters(config, mesh, lora, dtype)
    rows = -(-shape.examples // batch_parts(mesh))
    # One layer's worth of what a backward pass would keep: its inputs, heads, scores and MLP.
    local = _on_one_device(config, mesh)
    one = replace(local, num_layers=1, sliding_windows=())
    position = 2 * local.num_layers * local.kv_heads * local.head_dim * jnp.dtype(dtype).itemsize
    size = LoraConfig(r=1) if lora is None else lora
    return Memory(
        base=base,
        gathered=gathered,
        adapter=adapter,
        stored=0,
        working=_stored(one, size, dtype, "none", attention, rows, shape.tokens),
        logits=_chunk_bytes(rows * shape.answer_tokens, config.vocab_size, config, mesh),
        cache=rows * cached * position,
    )


def device_limit(mesh: Mesh) -> int | None:
    """Bytes a device of `mesh` may use, None where JAX does not say (CPUs)."""
    stats = mesh.local_devices[0].memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def _parameters(
    config: DecoderConfig, mesh: Mesh, lora: LoraConfig | None, dtype: jnp.dtype
) -> tuple[int, int, int]:
    """Bytes on a device: of the base, of what is gathered of it at a time, of the adapter."""
    _, abstract = abstract_decoder(config, lora, dtype, mesh)
    adapter, frozen = nnx.split_state(abstract, nnx.LoRAParam, ...)
    base = sum(map(_local_bytes, jax.tree.leaves(frozen)))
    gathered = 0
    if mesh.shape["fsdp"] > 1:
        for path, leaf in nnx.to_flat_state(frozen):
            layers = config.num_layers if path[0] == "layers" else 1
            gathered += _local_bytes(leaf.get_value(), but="fsdp") // layers
    return base, gathered, sum(map(_local_bytes, jax.tree.leaves(adapter)))


def _local_bytes(leaf: jax.ShapeDtypeStruct, but: str | None = None) -> int:
    """Of a device's part of `leaf`; `but`: a mesh axis whose cuts do not count."""
    parts = 1
    for axes in leaf.sharding.spec:
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        parts *= math.prod(leaf.sharding.mesh.shape[name] for name in names if name != but)
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize // parts


def _on_one_device(config: DecoderConfig, mesh: Mesh) -> DecoderConfig:
    """The widths a device computes where heads and the MLP are cut over `tensor`."""
    cut = mesh.shape["tensor"]

    def part(size: int) -> int:
        return size if size % cut else size // cut

    heads = part(config.num_heads)
    return replace(
        config,
        num_heads=heads,
        kv_heads=math.gcd(part(config.kv_heads), heads),
        intermediate_size=part(config.intermediate_size),
    )


def _stored(
    config: DecoderConfig,
    lora: LoraConfig,
    dtype: jnp.dtype,
    remat: Remat,
    attention: str,
    rows: int,
    tokens: int,
) -> int:
    """Bytes of all arrays that the gradient of the hidden states needs, parameters left out."""
    decoder = nnx.eval_shape(
        lambda: Decoder(
            config, lora=lora, dtype=dtype, rngs=nnx.Rngs(0), remat=remat, attention=attention
        )
    )
    graphdef, adapter, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)

    def kept(adapter: nnx.State, frozen: nnx.State, ids: jax.Array) -> list[jax.Array]:
        key = jax.random.key(0) if lora.lora_dropout > 0 else None

        def hidden(adapter: nnx.State) -> jax.Array:
            return nnx.merge(graphdef, adapter, frozen).hidden_states(ids, dropout_key=key)

        _, pull_back = jax.vjp(hidden, adapter)
        parameters = {id(x) for x in jax.tree.leaves((adapter, frozen))}
        return _distinct(x for x in jax.tree.leaves(pull_back) if id(x) not in parameters)

    arrays = jax.eval_shape(kept, adapter, frozen, ids)
    # Keys of dropout's random streams have a dtype of their own, and no size worth counting.
    return sum(
        math.prod(x.shape) * x.dtype.itemsize
        for x in arrays
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def _distinct(arrays: Iterable[Any]) -> list[Any]:
    return list({id(x): x for x in arrays}.values())


def _chunk_bytes(positions: int, classes: int, config: DecoderConfig, mesh: Mesh) -> int:
    """Of the float32 logits that exist at a time on a device."""
    cut = mesh.shape["tensor"]
    whole = classes < config.vocab_size or config.vocab_size % cut
    return 4 * min(positions, CHUNK) * (classes if whole else classes // cut)
