"""The training step compiled ahead of time, from shapes alone, and its memory by formula.

Nothing is allocated and no weight is read, so the step of a model that does not fit on this machine
can be compiled for a mesh: of these devices, of simulated ones, or of a described topology. It is
the very step that training runs. The formula is for GPUs, whose compiler is not here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.inference.forward import CHUNK
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.config import DecoderConfig, LoraConfig, Quantise
from cogcalib_jax.models.decoder import Decoder, Remat
from cogcalib_jax.models.parameters import (
    FrozenModel,
    abstract_decoder,
    require_cut,
    require_projections,
)
from cogcalib_jax.sharding import batch_parts, named_sharding
from cogcalib_jax.training.step import TrainState, jit_train_step, make_train_step, state_shardings
from cogcalib_jax.training.variant import PLAIN, Variant

# AdamW's two moments, the gradient, and the adapter itself.
ADAPTER_COPIES = 4


@dataclass(frozen=True)
class BatchShape:
    """The shape of one update's examples."""

    examples: int
    """per micro-batch, over all devices"""
    tokens: int
    """padded length"""
    answer_tokens: int = 1
    """of the longest answer"""
    options: int = 0
    """single-token options of a question; 0 where options have several tokens"""
    accumulation: int = 1
    """micro-batches of an update"""


class CompiledMemory(NamedTuple):
    """Bytes of a compiled step on each device."""

    arguments: int
    """base, adapter, optimizer state and batch"""
    temporaries: int
    outputs: int
    """results that are not written over arguments"""
    peak: int
    """all of them and the compiled code"""


class CompiledStep(NamedTuple):
    """A compiled update and what it costs."""

    program: jax.stages.Compiled
    memory: CompiledMemory
    """on each device"""
    product_flops: float
    """of the matrix products of all devices; layers that are computed again count twice"""
    kernels: bool
    """whether it has hand-written kernels, whose operations do not count"""


class OutOfMemory(Exception):
    """The compiler cannot run a step in a device's memory, in bytes."""

    def __init__(self, needed: int, available: int):
        super().__init__(f"needs {needed} bytes of {available}")
        self.needed = needed
        self.available = available


def compile_step(
    config: DecoderConfig,
    mesh: Mesh,
    *,
    lora: LoraConfig,
    method: MethodConfig,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    shape: BatchShape,
    dtype: jnp.dtype,
    remat: Remat = "none",
    attention: str = "xla",
    quantise: Quantise = "none",
    variant: Variant = PLAIN,
    activations: jnp.dtype | None = None,
) -> CompiledStep:
    """Compile one update of `method` for `mesh`; `variant` keeps the form of LoRA's parameters.

    activations: as for `Decoder`; a GPU's step on simulated devices has those of a GPU.

    Raises:
        UserError: an attention kernel that the mesh's hardware cannot run, or a mesh that cannot
            cut the model.
        OutOfMemory: the compiler refuses the step.
    """
    require_cut(config, mesh)
    require_projections(config, lora)
    kinds = {"remat": remat, "attention": attention, "quantise": quantise}
    graphdef, abstract = abstract_decoder(
        config, lora, dtype, mesh, activations=activations, **kinds
    )
    adapter, frozen = nnx.split_state(abstract, nnx.LoRAParam, ...)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = state_shardings(adapter, optimizer, mesh)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        lora=adapter,
        opt_state=jax.eval_shape(optimizer.init, adapter),
        skipped=jax.ShapeDtypeStruct((), jnp.int32),
        skipped_in_a_row=jax.ShapeDtypeStruct((), jnp.int32),
    )
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_train_step(
        *(FrozenModel(graphdef, frozen), optimizer, loss),
        dropout=lora.lora_dropout > 0,
        variant=variant,
    )
    traced = jit_train_step(step, shardings, frozen, mesh).trace(
        jax.tree.map(_placed, state, shardings),
        frozen,
        *abstract_batch(shape, mesh),
        scalar,
        jax.tree.map(lambda _: scalar, method.build()),
        _placed(key, replicated),
    )
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = _SIZES.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or sizes is None:
            raise
        raise OutOfMemory(_bytes(*sizes.group(1, 2)), _bytes(*sizes.group(3, 4))) from error
    flops, kernels = product_flops(traced.jaxpr.jaxpr)
    return CompiledStep(program, _memory_of(program), flops, kernels)


# "... temporaries (36.00G) exceeds available HBM (15.75G)", "Used 17.51G of 15.75G hbm"
_SIZES = re.compile(
    r"([\d.]+)([KMGT])\)? (?:exceeds available HBM \(|of )([\d.]+)([KMGT])", re.IGNORECASE
)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit.upper())))


def _memory_of(compiled: jax.stages.Compiled) -> CompiledMemory:
    # Not `peak_memory_in_bytes`: a TPU's counts the 128 MiB of scratch on the chip with it.
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = (stats.argument_size_in_bytes, stats.temp_size_in_bytes, outputs)
    return CompiledMemory(*parts, peak=sum(parts) + stats.generated_code_size_in_bytes)


def product_flops(jaxpr: core.Jaxpr, copies: int = 1) -> tuple[float, bool]:
    """Return the operations of a traced program's matrix products, and whether it has kernels.

    XLA's `cost_analysis` counts the body of a loop once; here it counts as often as it runs. The
    count agrees within 0.06 % with that of a TPU's compiler (docs/results/plans.md). What several
    devices compute alike, such as a vocabulary that `tensor` cannot cut, counts once.

    copies: devices among which the rows of a ragged product are divided: each has room for all.
    """
    flops, kernels = 0.0, False
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "pallas_call":
            kernels = True
            continue
        if name in ("dot_general", "ragged_dot_general"):
            ragged = parameters.get("ragged_dot_dimension_numbers")
            numbers = ragged.dot_dimension_numbers if ragged else parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in numbers[0][0])
            flops += 2.0 * equation.outvars[0].aval.size * inner / (copies if ragged else 1)
        times = parameters["length"] if name == "scan" else 1
        if name == "shard_map":  # what one device does
            times, copies = parameters["mesh"].size, parameters["mesh"].shape.get("expert", 1)
        inside = [product_flops(one, copies) for one in core.jaxprs_in_params(parameters)]
        parts = [part for part, _ in inside]
        flops += max(parts) if name == "cond" else times * sum(parts)
        kernels = kernels or any(found for _, found in inside)
    return flops, kernels


def abstract_batch(shape: BatchShape, mesh: Mesh) -> tuple[Batch, jax.ShapeDtypeStruct]:
    """Return an update's micro-batches and fixed labels as the loop passes them, as shapes."""

    def array(dtype: type, *widths: int) -> jax.ShapeDtypeStruct:
        full = (shape.accumulation, shape.examples, *widths)
        axes = (None, "batch", *(None for _ in widths))
        return jax.ShapeDtypeStruct(full, dtype, sharding=named_sharding(mesh, axes))

    answers, options = shape.answer_tokens, shape.options
    batch = Batch(
        input_ids=array(jnp.int32, shape.tokens),
        lengths=array(jnp.int32),
        positions=array(jnp.int32, answers),
        targets=array(jnp.int32, answers),
        loss_mask=array(jnp.float32, answers),
        option_ids=array(jnp.int32, options),
        option_mask=array(jnp.float32, options),
        answer=array(jnp.int32),
        row=array(jnp.int32),
        weight=array(jnp.float32),
    )
    return batch, array(jnp.float32)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


class Memory(NamedTuple):
    """Bytes on one device."""

    base: int
    """frozen weights, in the model's dtype"""
    gathered: int
    """weights that fsdp spreads, while they are needed whole: a layer and the tables"""
    dequantised: int
    """a layer's weights in the model's dtype, if they are held quantised"""
    adapter: int
    """LoRA parameters with gradient and moments, float32"""
    stored: int
    """activations kept for the backward pass"""
    working: int
    """a layer's activations while its gradient is formed"""
    logits: int
    """a chunk of scored positions, with their gradient"""


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
    quantise: Quantise = "none",
) -> Memory:
    """Return the bytes of one update on each device of `mesh`, without compiling it.

    Activations that the backward pass needs are read off the traced forward pass, on one device's
    part of the batch and of the heads; parameters and moments are counted leaf by leaf. What a
    compiler adds or saves is not counted.

    Args:
        classes: logits formed at a scored position.
    """
    held = {"quantise": quantise, "activations": dtype}
    _, abstract = abstract_decoder(config, lora, dtype, mesh, **held)
    adapter, frozen = nnx.split_state(abstract, nnx.LoRAParam, ...)
    gathered = dequantised = 0
    if quantise != "none":
        _, whole = abstract_decoder(config, None, dtype, mesh, activations=dtype)
        layers = jax.tree.leaves(whole["layers"])
        dequantised = sum(_local_bytes(x, but="fsdp") for x in layers) // config.num_layers
    if mesh.shape["fsdp"] > 1:
        for path, leaf in nnx.to_flat_state(frozen):
            layers = config.num_layers if path[0] == "layers" else 1
            gathered += _local_bytes(leaf.get_value(), but="fsdp") // layers
    rows = -(-shape.examples // batch_parts(mesh))
    local = _on_one_device(config, mesh)
    stored, whole = (
        _stored(local, lora, dtype, kind, attention, rows, shape.tokens) for kind in (remat, "none")
    )
    tensor = mesh.shape["tensor"]
    is_cut = classes == config.vocab_size and classes % tensor == 0
    positions = min(rows * shape.answer_tokens, CHUNK)
    return Memory(
        base=sum(map(_local_bytes, jax.tree.leaves(frozen))),
        gathered=gathered,
        dequantised=dequantised,
        adapter=ADAPTER_COPIES * sum(map(_local_bytes, jax.tree.leaves(adapter))),
        stored=stored,
        # Measured with 6 layers in float32 on a CPU: 1.08 of the compiler's own figure without
        # remat, .82 with "layer" and 1.08 with "dots"; see tests/bench/test_memory.py.
        working=whole // config.num_layers,
        logits=2 * 4 * positions * (classes // tensor if is_cut else classes),
    )


def _local_bytes(leaf: jax.ShapeDtypeStruct, but: str | None = None) -> int:
    """Return the bytes of a device's part of `leaf`, as if the mesh axis `but` did not cut it."""
    parts = 1
    for axes in leaf.sharding.spec:
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        parts *= math.prod(leaf.sharding.mesh.shape[name] for name in names if name != but)
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize // parts


def _on_one_device(config: DecoderConfig, mesh: Mesh) -> DecoderConfig:
    """Return the widths that a device computes where heads and the MLP are cut over `tensor`.

    Devices of one `expert` group gather their tokens: each has room for all pairs of token and
    expert.
    """
    cut = mesh.shape["tensor"]
    heads, kv_heads, inner = (
        size if size % cut else size // cut
        for size in (config.num_heads, config.kv_heads, config.intermediate_size)
    )
    kv_heads, experts = math.gcd(kv_heads, heads), config.experts
    if experts is not None:
        pairs = min(experts.per_token * mesh.shape["expert"], experts.number)
        experts = replace(experts, width=experts.width // cut, per_token=pairs)
    return replace(
        config, num_heads=heads, kv_heads=kv_heads, intermediate_size=inner, experts=experts
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
    """Return the bytes of what the gradient of the hidden states needs beside the parameters."""
    decoder = nnx.eval_shape(
        lambda: Decoder(
            config,
            lora=lora,
            dtype=dtype,
            rngs=nnx.Rngs(0),
            remat=remat,
            attention=attention,
            activations=dtype,
        )
    )
    graphdef, adapter, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)

    def kept(adapter: nnx.State, frozen: nnx.State, ids: jax.Array) -> list[Any]:
        key = jax.random.key(0) if lora.lora_dropout > 0 else None

        def hidden(adapter: nnx.State) -> jax.Array:
            return nnx.merge(graphdef, adapter, frozen).hidden_states(ids, dropout_key=key)

        _, pull_back = jax.vjp(hidden, adapter)
        parameters = {id(x) for x in jax.tree.leaves((adapter, frozen))}
        leaves = {id(x): x for x in jax.tree.leaves(pull_back)}
        return [x for number, x in leaves.items() if number not in parameters]

    # Keys of dropout's random streams have a dtype of their own, and no size worth counting.
    return sum(
        math.prod(x.shape) * x.dtype.itemsize
        for x in jax.eval_shape(kept, adapter, frozen, ids)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
