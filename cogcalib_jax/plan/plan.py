"""The training step compiled ahead of time, from shapes alone.

Nothing is allocated and no weight is read, so the step of a model that does not fit on this machine
can be lowered, partitioned and compiled for a mesh: of these devices, of simulated ones, or of the
devices a topology describes. What is compiled is the very step that training runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.models.decoder import Remat
from cogcalib_jax.models.parameters import FrozenModel, abstract_decoder, require_cut
from cogcalib_jax.sharding import named_sharding
from cogcalib_jax.training.step import TrainState, jit_train_step, make_train_step, state_shardings


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
    """what it is given: base, adapter, optimizer state, batch"""
    temporaries: int
    """what it needs beside that while it runs"""
    outputs: int
    """what it returns and does not write over its arguments"""
    peak: int
    """all of it, the compiled code included"""


class OutOfMemory(Exception):
    """The compiler found no way to run a step in a device's memory."""

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
) -> jax.stages.Compiled:
    """Compile one update of `method` for `mesh`.

    Of the result, `memory_analysis()` gives bytes on each device and `cost_analysis()` operations.
    Raises UserError for an attention kernel that `mesh`'s hardware cannot run, and for a mesh that
    cannot cut the model.
    """
    require_cut(config, mesh)
    graphdef, abstract = abstract_decoder(
        config, lora, dtype, mesh, remat=remat, attention=attention
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
        FrozenModel(graphdef, frozen), optimizer, loss, dropout=lora.lora_dropout > 0
    )
    lowered = jit_train_step(step, shardings, frozen, mesh).lower(
        jax.tree.map(_placed, state, shardings),
        frozen,
        *abstract_batch(shape, mesh),
        scalar,
        jax.tree.map(lambda _: scalar, method.build()),
        _placed(key, replicated),
    )
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = _SIZES.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or sizes is None:
            raise
        raise OutOfMemory(_bytes(*sizes.group(1, 2)), _bytes(*sizes.group(3, 4))) from error


# "... temporaries (36.00G) exceeds available HBM (15.75G)", "Used 17.51G of 15.75G hbm"
_SIZES = re.compile(
    r"([\d.]+)([KMGT])\)? (?:exceeds available HBM \(|of )([\d.]+)([KMGT])", re.IGNORECASE
)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit.upper())))


def memory_of(compiled: jax.stages.Compiled) -> CompiledMemory:
    """What a compiled step takes on each device, as its compiler laid it out."""
    # Not `peak_memory_in_bytes`: a TPU's counts the 128 MiB of scratch on the chip with it.
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = (stats.argument_size_in_bytes, stats.temp_size_in_bytes, outputs)
    return CompiledMemory(*parts, peak=sum(parts) + stats.generated_code_size_in_bytes)


def abstract_batch(shape: BatchShape, mesh: Mesh) -> tuple[Batch, jax.ShapeDtypeStruct]:
    """An update's micro-batches and knownness labels as the loop passes them, without contents."""

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
