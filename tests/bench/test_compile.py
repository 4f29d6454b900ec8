"""The step planned from shapes alone: the one that training runs, and Llama-3-8B on 8 devices."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from cogcalib_jax.bench.compile import BatchShape, abstract_batch, compile_step, product_flops
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh, shard_batch
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.step import (
    init_state,
    jit_train_step,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
    state_shardings,
)
from tests.inference.tiny import LORA, TINY, micro_batches, questions, tiny_decoder
from tests.test_presets import load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COLS = MethodConfig(name="cols").resolve()
FOUR_BY_TWO = MeshConfig(data=1, fsdp=4, tensor=2)


def optimizer(training: TrainingConfig = TrainingConfig(learning_rate=1e-2)):  # noqa: B008
    schedule = learning_rate_schedule(training.learning_rate, "linear", 100, 0.06)
    return make_optimizer(training, schedule)


def test_what_is_planned_is_the_step_that_training_runs():
    """The compiled plan takes the loop's own arrays, placed as the loop places them, and makes the
    very update of the jitted step."""
    mesh = make_mesh(FOUR_BY_TWO)
    decoder = tiny_decoder(mesh=mesh)
    model, lora = split_model(decoder)
    batch, labels = micro_batches(questions(16, options=(4,), longest=8), accumulation=2, size=16)
    on_devices = shard_batch(mesh, (batch, labels), batch_axis=1)
    key = jax.device_put(jax.random.key(0))
    gated = (jnp.float32(3.0), jax.tree.map(jnp.float32, replace(COLS, weight=0.1).build()))

    _, examples, tokens = batch.input_ids.shape
    plan = compile_step(
        TINY,
        mesh,
        lora=LORA,
        method=COLS,
        loss=LossConfig(),
        optimizer=optimizer(),
        shape=BatchShape(examples, tokens, batch.targets.shape[2], batch.option_ids.shape[2], 2),
        dtype=jnp.float32,
    )
    shardings = state_shardings(lora, optimizer(), mesh)
    step = make_train_step(model, optimizer(), LossConfig(), dropout=False)
    jitted = jit_train_step(step, shardings, model.frozen, mesh)

    def update(function):
        state, metrics = function(
            init_state(lora, optimizer(), mesh), model.frozen, *on_devices, *gated, key
        )
        return jax.tree.map(np.asarray, (state, metrics))

    planned, trained = update(plan.program), update(jitted)
    jax.tree.map(np.testing.assert_array_equal, planned, trained)
    assert float(planned[1].loss) > 0


def test_a_planned_batch_is_laid_out_as_the_loop_lays_it_out():
    mesh = make_mesh(FOUR_BY_TWO)
    batch, labels = micro_batches(questions(8, options=(4,), longest=8), accumulation=1)
    shape = BatchShape(8, batch.input_ids.shape[2], batch.targets.shape[2], 4)
    planned = abstract_batch(shape, mesh)
    for ours, real in zip(
        jax.tree.leaves(planned),
        jax.tree.leaves(shard_batch(mesh, (batch, labels), batch_axis=1)),
        strict=True,
    ):
        assert (ours.shape, ours.dtype) == (real.shape, real.dtype)
        assert ours.sharding.is_equivalent_to(real.sharding, len(ours.shape))


def test_the_step_of_llama3_8b_compiles_for_eight_devices():
    """As the preset says it, each device holding an eighth of the 8.03 billion bfloat16 weights.

    What the CPU's compiler adds while computing is no forecast for an accelerator (it holds
    bfloat16 weights in float32), so only what the step is given is checked."""
    config: RunConfig = load(CONFIGS / "llama3_8b_openbookqa.yaml")
    file = CONFIGS / "models" / "llama3-8b.json"
    compiled = compile_step(
        from_hf(json.loads(file.read_text()), str(file)),
        make_mesh(FOUR_BY_TWO),
        lora=config.lora,
        method=config.method.resolve(),
        loss=config.loss,
        optimizer=optimizer(config.training),
        shape=BatchShape(config.training.batch_size, 304, options=4),
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
        activations=jnp.dtype(config.model.dtype),
    )
    memory = compiled.program.memory_analysis()
    weights = 2 * 8_030_261_248 / 8
    assert weights < memory.argument_size_in_bytes < 1.02 * weights
    # LoRA and its moments are updated where they lie: only a handful of scalars are new.
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1024
    # As a TPU's compiler made it for 64 examples on v5e:4x4: docs/results/plans.md.
    assert 8 * compiled.product_flops == pytest.approx(7.547e14, rel=0.002)
    assert not compiled.kernels


def counted(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return product_flops(jax.make_jaxpr(function)(*arrays).jaxpr)


def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_loop_counts_as_often_as_it_runs():
    product = 2 * 32 * 64 * 64
    assert counted(layers, (32, 64), (5, 64, 64)) == (5 * product, False)

    def of_inputs(x, weights):
        return jax.grad(lambda x: layers(x, weights).sum())(x)

    assert counted(of_inputs, (32, 64), (5, 64, 64)) == (2 * 5 * product, False)


def test_what_is_computed_again_counts_again():
    def total(x, w):
        return jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))(x).sum()

    product = 2 * 32 * 64 * 64
    assert counted(jax.grad(total), (32, 64), (64, 64)) == ((2 + 2 + 2) * product, False)


def test_of_branches_the_dearest_counts():
    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert counted(either, (8, 16), (16, 16)) == (2 * 2 * 8 * 16 * 16, False)


def test_kernels_are_named_and_not_counted():
    def copy(source, target):
        target[...] = source[...] @ source[...]

    def kernel(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pallas.pallas_call(copy, out_shape=shape, interpret=True)(x)

    assert counted(kernel, (8, 8)) == (0, True)
