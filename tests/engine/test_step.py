"""The jitted update: only LoRA moves, on any mesh, in any number of parts, compiled once."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from cogcalib_jax.engine.step import (
    init_state,
    jit_train_step,
    make_train_step,
    split_model,
    state_shardings,
)
from cogcalib_jax.errors import UserError
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.objective import GateInputs
from cogcalib_jax.sharding import MeshConfig, make_mesh, shard_batch
from tests.engine.quick import quick_compilation
from tests.engine.tiny import micro_batches, questions, tiny_decoder
from tests.models.small import one_device

ROWS = questions(16, options=(4,))
COLS = MethodConfig(name="cols", weight=0.5).resolve()
# Plain SGD beside AdamW's normalising first step, in which a gradient's size would not show.
OPTIMIZER = optax.sgd(0.1)
MESHES = {"8x1x1": MeshConfig(8, 1, 1), "1x8x1": MeshConfig(1, 8, 1), "2x2x2": MeshConfig(2, 2, 2)}


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


class Stepper:
    """A compiled step and what it needs, on one mesh."""

    def __init__(self, mesh, optimizer=OPTIMIZER, method=COLS):
        self.mesh = mesh
        self.model, self.lora = split_model(tiny_decoder(mesh=mesh))
        step = make_train_step(self.model, optimizer, method, LossConfig(), dropout=False)
        shardings = state_shardings(self.lora, optimizer, mesh)
        self.run = jit_train_step(step, shardings, self.model.frozen, mesh)
        self.fresh = lambda: init_state(self.lora, optimizer, mesh)

    def scalar(self, value):
        return jax.device_put(np.float32(value), NamedSharding(self.mesh, PartitionSpec()))

    def __call__(self, state, accumulation=1, threshold=4.0):
        batch, labels = shard_batch(self.mesh, micro_batches(ROWS, accumulation), batch_axis=1)
        gate = GateInputs(self.scalar(threshold), self.scalar(COLS.weight))
        return self.run(state, self.model.frozen, batch, labels, gate, jax.random.key(0))


@cache
def on_one_device():
    return Stepper(one_device())


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


@cache
def reference():
    stepper = on_one_device()
    state, metrics = stepper(stepper.fresh())
    return as_numpy(state), as_numpy(metrics)


def test_two_micro_batches_are_the_same_update_as_one_batch():
    stepper = on_one_device()
    state, metrics = stepper(stepper.fresh(), accumulation=2)
    wanted_state, wanted_metrics = reference()
    assert 0 < wanted_metrics.known_fraction < 1
    assert wanted_metrics.gated_fraction == wanted_metrics.known_fraction
    assert_close(as_numpy(state), wanted_state)
    assert_close(as_numpy(metrics), wanted_metrics)


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_makes_the_same_update(name):
    stepper = Stepper(make_mesh(MESHES[name]))
    state, metrics = stepper(stepper.fresh())
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), as_numpy(stepper.lora), reference()[0].lora
    )
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert_close((as_numpy(state), as_numpy(metrics)), reference())
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(), state.lora, stepper.lora)


def test_refitting_the_threshold_does_not_recompile():
    stepper = on_one_device()
    stepper.run.clear_cache()
    state = stepper.fresh()
    known = []
    for threshold in (float("-inf"), 3.9, float("inf")):
        state, metrics = stepper(state, threshold=threshold)
        known.append(float(metrics.known_fraction))
    assert stepper.run._cache_size() == 1
    assert known[0] == 0 and 0 < known[1] < 1 and known[2] == 1


def test_only_lora_changes_and_the_start_survives_the_donated_state():
    adam = Stepper(one_device(), optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)))
    frozen, lora = as_numpy(adam.model.frozen), as_numpy(adam.lora)
    state = adam.fresh()
    for _ in range(3):
        state, _ = adam(state)
    assert state.step == 3
    jax.tree.map(np.testing.assert_array_equal, as_numpy(adam.model.frozen), frozen)
    jax.tree.map(np.testing.assert_array_equal, as_numpy(adam.lora), lora)
    changed = jax.tree.map(lambda a, b: bool((a != b).all()), as_numpy(state.lora), lora)
    assert all(jax.tree.leaves(changed))
    paths = nnx.to_flat_state(state.lora)
    assert {path[-1] for path, _ in paths} == {"lora_A", "lora_B"}
    assert not any(path[-1].startswith("lora") for path, _ in nnx.to_flat_state(adam.model.frozen))


def test_without_lora_there_is_nothing_to_train():
    with pytest.raises(UserError, match="no LoRA parameters"):
        split_model(tiny_decoder(lora=None))


def test_metrics_are_means_over_the_examples():
    _, metrics = reference()
    # The gated term is part of the whole one, which is logged whatever the gate says.
    assert 0 < metrics.loss - metrics.ce < COLS.weight * metrics.cal
    before, after = as_numpy(on_one_device().lora), reference()[0].lora
    gradient = jax.tree.map(lambda a, b: (a - b) / 0.1, before, after)
    norm = float(optax.tree.norm(jax.tree.map(jnp.asarray, gradient)))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-3)
