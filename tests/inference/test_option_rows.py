"""Questions over options of several tokens as `Rows`: scores, gradients, terms and the gate."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.data.batching import option_batches
from cogcalib_jax.data.packing import packed_batches
from cogcalib_jax.inference.forward import completion_logprob, over_options
from cogcalib_jax.inference.option_score import score_options
from cogcalib_jax.inference.options import option_rows, option_scores, per_length
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.method.loss import gated_loss
from cogcalib_jax.method.terms import TERMS
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import split_model
from tests.inference.quick import quick_compilation
from tests.inference.test_options import MODELS
from tests.inference.tiny import log_softmax, questions, quick_jit, tiny_decoder
from tests.method.test_terms import reference

# Three to five options of one to four tokens, which share rows and leave gaps in them.
ROWS = questions(11, tokens=4)
RULES = ("sum", "mean", "chars")
# By question and option: what the gradient is taken of.
SLOPES = np.random.default_rng(3).normal(size=(11, 5)).astype(np.float32)
START = np.random.default_rng(4).normal(size=(11, 5)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


def lengths(rule):
    """[questions, options]: what a log-probability is divided by."""
    found = np.ones((11, 5))
    for i, e in enumerate(ROWS):
        for k, (ids, text) in enumerate(zip(e.completion_ids, e.completions, strict=True)):
            found[i, k] = {"sum": 1, "mean": len(ids), "chars": len(text)}[rule]
    return found


@cache
def packed():
    (batch,) = packed_batches(ROWS, 64)
    # Rows of unequally many questions: some of the batch's questions do not exist.
    assert batch.row.shape[0] > 1 and (batch.weight == 0).any()
    return batch


@cache
def own_rows():
    """Every option in a padded row of its own, and which option each row holds."""
    (found,) = option_batches(ROWS, sum(len(e.completions) for e in ROWS), (24,))
    return found


def slopes_of(batch):
    """SLOPES by the batch's questions, 0 where there is no question or option."""
    real = (batch.weight > 0)[..., None] * (batch.option_tokens > 0)
    return (SLOPES[batch.row] * real).reshape(-1, 5)


@cache
def values_and_gradients(name):
    """Scores `[questions, options]` by rule, and the gradient of the weighted sum of those per
    token; from packed rows and from every option's own row."""
    config, lora = MODELS[name]
    model, parameters = split_model(tiny_decoder(config=config, lora=lora))
    batch, (alone, option) = packed(), own_rows()

    def of_packed(parameters):
        decoder = nnx.merge(model.graphdef, parameters, model.frozen)
        scores = {rule: option_scores(decoder, batch, rule) for rule in RULES}
        return jnp.sum(slopes_of(batch) * scores["mean"]), scores

    def of_own_rows(parameters):
        decoder = nnx.merge(model.graphdef, parameters, model.frozen)
        whole = completion_logprob(decoder, alone, 1.0)
        scores = {rule: whole / lengths(rule)[alone.row, option] for rule in RULES}
        return jnp.sum(SLOPES[alone.row, option] * scores["mean"]), scores

    found = []
    for function in (of_packed, of_own_rows):
        run = quick_jit(jax.grad(function, has_aux=True))
        found.append(jax.tree.map(np.asarray, run(parameters)))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients_are_those_of_every_options_own_row(name):
    (gradients, scores), (wanted_gradients, wanted) = values_and_gradients(name)
    batch, (alone, option) = packed(), own_rows()
    real = batch.weight.reshape(-1) > 0
    for rule in RULES:
        found = np.full((11, 5), np.nan)
        found[batch.row.reshape(-1)[real]] = scores[rule][real]
        np.testing.assert_allclose(found[alone.row, option], wanted[rule], rtol=1e-5, atol=1e-5)
        assert np.isfinite(scores[rule]).all()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
        gradients,
        wanted_gradients,
    )
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradients)) > 1e-3


def rows(rule="mean"):
    """The packed questions of the first model, and each one's number in the split or -1."""
    scores = values_and_gradients("llama")[0][1][rule]
    batch = packed()
    made = option_rows(jnp.asarray(scores), batch)
    return made._replace(start=jnp.asarray(START[batch.row].reshape(-1, 5))), np.where(
        batch.weight > 0, batch.row, -1
    ).reshape(-1)


@pytest.mark.parametrize("spec", ["brier", "ls", "kl", "focal", "mbls(margin=4, reduction=sum)"])
def test_terms_see_the_options_that_exist(spec):
    made, numbers = rows()
    values = np.asarray(TERMS.make(spec)(made))
    assert np.isfinite(values).all()
    for at in np.flatnonzero(numbers >= 0):
        e = ROWS[numbers[at]]
        k = len(e.completion_ids)
        scores, start = np.asarray(made.logits[at, :k]), START[numbers[at], :k]
        wanted = reference(spec, scores, e.answer, start)
        np.testing.assert_allclose(values[at], wanted, rtol=1e-5, atol=1e-5)


def test_the_gate_and_correctness_are_the_ones_of_single_tokens():
    made, numbers = rows()
    nll, correct = map(np.asarray, over_options(made))
    real = numbers >= 0
    for at in np.flatnonzero(real):
        e = ROWS[numbers[at]]
        scores = np.asarray(made.logits[at, : len(e.completion_ids)])
        np.testing.assert_allclose(nll[at], -log_softmax(scores)[e.answer], rtol=1e-5, atol=1e-6)
        assert correct[at] == (scores.argmax() == e.answer)
    method = MethodConfig(term="brier", gate="adaptive", weight=0.5, space="options").build()
    term, threshold = np.asarray(method.term(made)), float(np.median(nll[real]))
    labels = jnp.zeros(len(nll))
    weight = packed().weight.reshape(-1)
    sums = gated_loss(
        jnp.asarray(nll), jnp.asarray(term), method, jnp.float32(threshold), labels, weight,
        jax.random.key(0),
    )  # fmt: skip
    wanted = nll[real] + 0.5 * (nll[real] <= threshold) * term[real]
    np.testing.assert_allclose(sums.loss, wanted.sum(), rtol=1e-5)
    assert sums.examples == len(ROWS) and 0 < sums.gated < len(ROWS)


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_of_the_device_is_the_one_of_the_host(rule):
    made, numbers = rows("sum")
    real = numbers >= 0
    batch = packed()
    tokens, characters = (
        x.reshape(-1, 5)[real] for x in (batch.option_tokens, batch.option_characters)
    )
    logprobs = np.asarray(made.logits)[real]
    host = score_options(rule, logprobs.astype(np.float64), tokens, characters)
    np.testing.assert_allclose(per_length(rule, logprobs, tokens, characters), host, rtol=1e-6)
    device = np.asarray(rows(rule)[0].logits)[real]
    np.testing.assert_allclose(device, host, rtol=1e-5)


def test_dropout_thins_the_layers_alike_for_all_options():
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=("v_proj",), lora_dropout=0.5)
    decoder = tiny_decoder(lora=lora)
    plain, one, other = (
        np.asarray(option_scores(decoder, packed(), "sum", key))
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    again = np.asarray(option_scores(decoder, packed(), "sum", jax.random.key(0)))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - plain).max() > 1e-4 and np.abs(one - other).max() > 1e-4
