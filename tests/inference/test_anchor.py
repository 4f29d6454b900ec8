"""Anchor rows in the update: against a plain reference, without jit, on batches of their own."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cogcalib_jax.data.batching import StartBelief, question_batches
from cogcalib_jax.inference.chunked_loss import anchor_sum
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.loss import Anchor
from cogcalib_jax.method.terms import TERMS
from cogcalib_jax.sharding import MeshConfig, make_mesh, replicate, shard_batch
from cogcalib_jax.training.step import init_state, jit_train_step, make_train_step, state_shardings
from tests.inference.tiny import VOCAB, micro_batches, questions, tiny_decoder
from tests.models.small import one_device
from tests.training.test_step import MODEL, split_model

ROWS, ANCHORS = questions(8, options=(4,)), questions(4, seed=5, longest=9)
OPTIMIZER = optax.sgd(1.0)
THRESHOLD = 4.0
WEIGHT, ANCHOR_WEIGHT = 0.5, 2.0
CASES = {
    "kl over the vocabulary": ("kl(top=56)", "vocab"),
    "ls over the vocabulary": ("ls", "vocab"),
    "kl over the options": ("kl", "options"),
}


@cache
def anchor_batch(space):
    """All anchor rows, with beliefs that are not the model's own: there the term has no slope."""
    (batch,) = question_batches(ANCHORS, len(ANCHORS), (16,))
    rng = np.random.default_rng(0)
    width = VOCAB if space == "vocab" else batch.option_mask.shape[1]
    exists = np.ones((4, width)) if space == "vocab" else batch.option_mask
    logits = np.where(exists > 0, rng.normal(size=(4, width)), -1e30)
    log_q = np.asarray(jax.nn.log_softmax(logits), np.float32)[:, None]
    if space == "options":
        return batch._replace(start=StartBelief(log_q))
    ids = np.broadcast_to(np.arange(VOCAB, dtype=np.int32), log_q.shape)
    return batch._replace(start=StartBelief(log_q, ids, np.full((4, 1), -1e30, np.float32)))


def method(space):
    return MethodConfig(name="cols", weight=WEIGHT, space=space).build()


def updated(mesh, case, accumulation, anchors=True):
    """LoRA parameters and metrics after one update of gradient descent with rate 1."""
    spec, space = CASES[case]
    model, lora = split_model(tiny_decoder(config=MODEL, mesh=mesh))
    step = make_train_step(model, OPTIMIZER, LossConfig(), dropout=False)
    run = jit_train_step(step, state_shardings(lora, OPTIMIZER, mesh), model.frozen, mesh)
    rows = micro_batches(ROWS, accumulation)
    batch, labels = shard_batch(mesh, rows, batch_axis=1)
    made = method(space)
    if anchors:
        cut = jax.tree.map(
            lambda x: x.reshape(accumulation, 4 // accumulation, *x.shape[1:]), anchor_batch(space)
        )
        batch = batch._replace(anchor=shard_batch(mesh, cut, batch_axis=1))
        made = replace(made, anchor=Anchor(TERMS.make(spec), ANCHOR_WEIGHT))
    made = jax.tree.map(lambda x: replicate(mesh, np.float32(x)), made)
    threshold = replicate(mesh, np.float32(THRESHOLD))
    state, metrics = run(
        init_state(lora, OPTIMIZER, mesh),
        model.frozen,
        batch,
        labels,
        threshold,
        made,
        jax.random.key(0),
    )
    return jax.tree.map(np.asarray, (state.lora, metrics, lora))


def numbers(decoder, input_ids, lengths):
    """Logits `[rows, vocab]` after the last of `lengths` tokens of each row."""
    hidden = decoder.hidden_states(jnp.asarray(input_ids))
    return decoder.logits(hidden[jnp.arange(len(lengths)), jnp.asarray(lengths) - 1])


@cache
def reference(case):
    """(gradient, loss, mean anchor term): CE + gated LS of the examples, plus the weighted mean of
    the anchor's term, each from logits of its own batch."""
    spec, space = CASES[case]
    model, lora = split_model(tiny_decoder(config=MODEL))
    batch, _ = micro_batches(ROWS, 1)
    batch = jax.tree.map(lambda x: x[0], batch)
    anchor = anchor_batch(space)

    def over(logits, ids, mask):
        """Log-probabilities over the classes of the space; absent ones -1e30."""
        if space == "vocab":
            return jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logits, jnp.asarray(ids), -1)
        return jax.nn.log_softmax(jnp.where(mask > 0, chosen, -1e30))

    def loss(lora):
        decoder = nnx.merge(model.graphdef, lora, model.frozen)
        logits = numbers(decoder, batch.input_ids, batch.lengths)
        nll = -jax.nn.log_softmax(logits)[jnp.arange(8), batch.targets[:, 0]]
        smoothing = -jnp.mean(over(logits, batch.option_ids, batch.option_mask), -1)
        examples = jnp.mean(nll + WEIGHT * (nll <= THRESHOLD) * smoothing)
        logits = numbers(decoder, anchor.input_ids, anchor.lengths)
        log_p = over(logits, anchor.option_ids, anchor.option_mask)
        if spec == "ls":
            held = -jnp.mean(log_p)
        else:
            q = np.exp(anchor.start.log_p[:, 0])
            log_ratio = np.where(q > 0, anchor.start.log_p[:, 0], 0) - jnp.where(q > 0, log_p, 0)
            held = jnp.mean(jnp.sum(q * log_ratio, -1))
        return examples + ANCHOR_WEIGHT * held, held

    (value, held), gradient = jax.value_and_grad(loss, has_aux=True)(lora)
    return jax.tree.map(np.asarray, (gradient, value, held))


def assert_close(a, b, tolerance=1e-5):
    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(close, a, b)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_update_adds_the_weighted_mean_of_the_anchors_term(case, accumulation):
    after, metrics, before = updated(one_device(), case, accumulation)
    gradient, loss, held = reference(case)
    assert held > 0.1
    assert_close(metrics.loss, loss)
    assert_close(metrics.anchor, held)
    assert_close(after, jax.tree.map(np.subtract, before, gradient), 1e-4)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8)])
def test_every_mesh_makes_the_same_update(sizes):
    case = "kl over the vocabulary"
    after, metrics, _ = updated(make_mesh(MeshConfig(*sizes)), case, 1)
    wanted, wanted_metrics, _ = updated(one_device(), case, 1)
    assert_close(after, wanted)
    assert_close(metrics.anchor, wanted_metrics.anchor)
    assert_close(metrics.loss, wanted_metrics.loss)


def test_without_anchor_rows_there_is_no_such_number_and_the_examples_decide_alone():
    case = "ls over the vocabulary"
    _, metrics, _ = updated(one_device(), case, 1, anchors=False)
    assert metrics.anchor is None
    _, loss, held = reference(case)
    assert_close(metrics.loss, loss - ANCHOR_WEIGHT * held)


@pytest.mark.parametrize("space", ["vocab", "options"])
def test_in_chunks_value_and_gradient_are_those_of_all_rows_at_once(space):
    batch = anchor_batch(space)._replace(weight=np.array([1, 1, 0, 1], np.float32))
    term = TERMS.make("kl(top=56)")
    head = tiny_decoder().head()
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(4, 1, 32)), jnp.float32)

    def total(variables, chunk):
        hidden, lora_B = variables
        return anchor_sum(
            head.replace(lora_B=lora_B), hidden, batch, term, space, None, chunk=chunk
        )

    run = jax.jit(jax.value_and_grad(total), static_argnums=1)
    whole, parts = (run((hidden, head.lora_B), chunk) for chunk in (4, 1))
    assert_close(parts, whole)
    assert not np.asarray(whole[1][0])[2].any()  # a row of weight 0
    assert np.abs(np.asarray(whole[1][0])[0]).max() > 1e-3
