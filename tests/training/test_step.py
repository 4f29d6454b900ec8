"""The jitted update: only LoRA moves, on any mesh, in any number of parts, compiled once."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.chunked_loss import batch_loss
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh, shard_batch
from cogcalib_jax.training import step as step_module
from cogcalib_jax.training.step import init_state, jit_train_step, make_train_step, state_shardings
from cogcalib_jax.training.variant import PLAIN
from tests.inference.tiny import TINY, micro_batches, questions, tiny_decoder
from tests.models.small import one_device

# Eight heads, so that eight devices can share them; the two key-value heads they then all hold.
MODEL = replace(TINY, num_heads=8)
# By the tokens of the longest answer.
ROWS = {tokens: questions(16, options=(4,), tokens=tokens) for tokens in (1, 4)}
COLS = MethodConfig(name="cols", weight=0.5).resolve()
# The update is the gradient itself: AdamW's normalising first step would hide its size.
OPTIMIZER = optax.sgd(1.0)
MESHES = {
    "8x1x1": MeshConfig(8, 1, 1),
    "1x8x1": MeshConfig(1, 8, 1),
    "2x2x2": MeshConfig(2, 2, 2),
    "1x1x8": MeshConfig(1, 1, 8),
}


class Stepper:
    """A compiled step and what it needs, on one mesh."""

    def __init__(self, mesh, optimizer=OPTIMIZER, method=COLS, tokens=1, variant=PLAIN):
        self.mesh, self.tokens = mesh, tokens
        self.model, lora = split_model(tiny_decoder(config=MODEL, mesh=mesh))
        self.lora = variant.begin(lora)
        step = make_train_step(self.model, optimizer, LossConfig(), dropout=False, variant=variant)
        self.method = jax.tree.map(self.scalar, method.build())
        shardings = state_shardings(self.lora, optimizer, mesh)
        self.run = jit_train_step(step, shardings, self.model.frozen, mesh)
        self.fresh = lambda: init_state(self.lora, optimizer, mesh)

    def scalar(self, value):
        return jax.device_put(np.float32(value), NamedSharding(self.mesh, PartitionSpec()))

    def __call__(self, state, accumulation=1, threshold=4.0):
        rows = micro_batches(ROWS[self.tokens], accumulation)
        batch, labels = shard_batch(self.mesh, rows, batch_axis=1)
        gated = (self.scalar(threshold), self.method)
        return self.run(state, self.model.frozen, batch, labels, *gated, jax.random.key(0))


@cache
def on_one_device(tokens=1):
    return Stepper(one_device(), tokens=tokens)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


@cache
def reference(tokens=1):
    """The update on one device, the logits of all positions formed at once."""
    stepper = on_one_device(tokens)
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


def assert_same_update(stepper, accumulation=1):
    wanted = reference(stepper.tokens)
    state, metrics = stepper(stepper.fresh(), accumulation)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), as_numpy(stepper.lora), wanted[0].lora)
    assert min(jax.tree.leaves(moved)) > 1e-3
    assert_close((as_numpy(state), as_numpy(metrics)), wanted)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(), state.lora, stepper.lora)


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_makes_the_same_update(name):
    assert_same_update(Stepper(make_mesh(MESHES[name])))


# Answers have four tokens: chunks of 4 positions hold whole examples, chunks of 2 pieces of them.
@pytest.mark.parametrize(
    ("name", "chunk"), [("8x1x1", 2), ("1x8x1", 2), ("2x2x2", 2), ("1x1x8", 2), ("2x2x2", 4)]
)
def test_every_mesh_makes_the_same_update_of_long_answers_in_chunks(name, chunk, monkeypatch):
    reference(tokens=4)
    monkeypatch.setattr(step_module, "batch_loss", partial(batch_loss, chunk=chunk))
    accumulation = 2 if name == "1x1x8" else 1
    assert_same_update(Stepper(make_mesh(MESHES[name]), tokens=4), accumulation)


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
    gradient = jax.tree.map(lambda a, b: a - b, before, after)
    norm = float(optax.tree.norm(jax.tree.map(jnp.asarray, gradient)))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-3)
