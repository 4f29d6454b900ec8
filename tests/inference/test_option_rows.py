"""Options of several tokens as branches of their question: scores, losses, gradients, terms."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.data.batching import make_trees, option_batches, tree_batches
from cogcalib_jax.inference.chunked_loss import batch_loss
from cogcalib_jax.inference.config import score_options
from cogcalib_jax.inference.forward import (
    completion_logprob,
    losses_at,
    over_options,
    row_stats,
    scored_hidden,
    tree_scores,
)
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.loss import gated_loss
from cogcalib_jax.method.terms import TERMS, Rows
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh, shard_batch
from tests.golden.families import FAMILIES
from tests.inference.tiny import log_softmax, one_batch, questions, tiny_decoder
from tests.method.test_terms import reference
from tests.models.small import one_device

# Three to five options of one to four tokens.
ROWS = questions(11, tokens=4)
LONGEST = int(ROWS.tree_lengths.max())
MODELS = ("llama3.2", "mistral_v0.1", "qwen2.5_windows", "qwen3_yarn_biases")
EVERYWHERE = LoraConfig(r=2, lora_alpha=3.0, target_modules=("all-linear", "lm_head"))
RULES = ("sum", "mean", "chars")
# (mesh, padded length, rows with those that only fill the batch)
PLACES = {
    "one device": (None, LONGEST, 11),
    "one device, padded": (None, LONGEST + 9, 13),
    "eight devices": ((8, 1, 1), LONGEST, 16),
    "eight devices, padded": ((2, 2, 2), LONGEST + 9, 12),
}
# By question and option: what the gradient is taken of.
SLOPES = np.random.default_rng(3).normal(size=(11, 5)).astype(np.float32)
START = np.random.default_rng(4).normal(size=(11, 5)).astype(np.float32)
START -= np.log(np.exp(START).sum(-1, keepdims=True))


def lengths(rule):
    """[questions, options]: what a log-probability is divided by."""
    found = np.ones((11, 5))
    for i, e in enumerate(ROWS):
        for k, (ids, text) in enumerate(zip(e.completion_ids, e.completions, strict=True)):
            found[i, k] = {"sum": 1, "mean": len(ids), "chars": len(text)}[rule]
    return found


def trees(rule="mean", size=11, bucket=LONGEST):
    return make_trees(ROWS, range(11), size, (bucket,), rule)


@cache
def own_rows():
    """Every option in a padded row of its own, and which option each row holds."""
    (found,) = option_batches(ROWS, sum(len(e.completions) for e in ROWS), (24,))
    return found


def decoder(name="llama3.2", mesh=None, lora=EVERYWHERE):
    config = from_hf(FAMILIES[name], name)
    return tiny_decoder(config=config, lora=lora, mesh=mesh or one_device())


def scores_of(model, batch, key=None):
    hidden, head_key = scored_hidden(model, batch, key)
    nll = row_stats(model.head(), hidden, batch.targets, dropout_key=head_key).nll
    return tree_scores(nll, batch.tree)


def own_scores(model, rule="mean"):
    """[questions, options], from a row for each option; 0 where there is none."""
    alone, option = own_rows()
    whole = completion_logprob(model, alone, 1.0) / lengths(rule)[alone.row, option]
    return jnp.zeros((11, 5)).at[alone.row, option].set(whole)


def with_gradient(model, function):
    """What `function(decoder)` returns as (scalar, arrays): the arrays and the LoRA gradient."""
    split, parameters = split_model(model)
    run = jax.jit(jax.grad(lambda lora: function(split.merge(lora)), has_aux=True))
    return jax.tree.map(np.asarray, run(parameters))


@cache
def wanted(name):
    def function(model):
        scores = own_scores(model)
        return jnp.sum(SLOPES * scores), scores

    return with_gradient(decoder(name), function)


def assert_same_gradient(found, wanted):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
        nnx.to_pure_dict(found),
        nnx.to_pure_dict(wanted),
    )
    assert max(np.abs(g).max() for g in jax.tree.leaves(found)) > 1e-3


# Every family on both meshes, and the one with windows in all places.
CASES = [
    *((name, place) for name in MODELS for place in ("one device", "eight devices, padded")),
    *(("mistral_v0.1", place) for place in ("one device, padded", "eight devices")),
]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_scores_and_gradients_are_those_of_every_options_own_row(name, place):
    shape, bucket, size = PLACES[place]
    mesh = make_mesh(MeshConfig(*shape)) if shape else one_device()
    host = trees(size=size, bucket=bucket)
    assert host.input_ids.shape == (size, bucket)
    batch = shard_batch(mesh, host)

    def function(model):
        scores = scores_of(model, batch)
        real = batch.option_mask * batch.weight[:, None]
        return jnp.sum(SLOPES[host.row] * real * scores), scores

    gradient, scores = with_gradient(decoder(name, mesh), function)
    wanted_gradient, wanted_scores = wanted(name)
    np.testing.assert_allclose(scores[:11], wanted_scores, rtol=1e-5, atol=1e-5)
    assert np.isfinite(scores).all()
    assert_same_gradient(gradient, wanted_gradient)


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_of_a_batch_is_the_one_of_the_host(rule):
    logprobs = np.random.default_rng(0).normal(-9, 2, (11, 5))
    logprobs[trees().option_mask == 0] = 0
    tree = trees(rule).tree
    # A token's share of its option's log-probability.
    share = logprobs / np.maximum((tree.place[..., None] == np.arange(5)).sum(1), 1)
    nll = -np.take_along_axis(np.pad(share, ((0, 0), (0, 1))), tree.place, 1)
    host = score_options(rule, logprobs, lengths("mean"), lengths("chars"))
    np.testing.assert_allclose(tree_scores(jnp.asarray(nll), tree), host, rtol=1e-5, atol=1e-6)


def test_a_rule_that_is_none_to_train_with_is_refused():
    with pytest.raises(ValueError, match="option_score is pmi; expected mean, sum or chars"):
        trees("pmi")


def rows():
    """The questions over their options."""
    batch = trees()
    return Rows(jnp.asarray(wanted("llama3.2")[1]), batch.answer, batch.option_mask, start=START)


@pytest.mark.parametrize("spec", ["brier", "ls", "kl", "focal", "mbls(margin=4, reduction=sum)"])
def test_terms_see_the_options_that_exist(spec):
    made = rows()
    values = np.asarray(TERMS.make(spec)(made))
    assert np.isfinite(values).all()
    for at, e in enumerate(ROWS):
        k = len(e.completion_ids)
        scores = np.asarray(made.logits[at, :k])
        expected = reference(spec, scores, e.answer, START[at, :k])
        np.testing.assert_allclose(values[at], expected, rtol=1e-5, atol=1e-5)


def test_the_gate_and_correctness_are_the_ones_of_single_tokens():
    made = rows()
    nll, correct = map(np.asarray, over_options(made))
    for at, e in enumerate(ROWS):
        scores = np.asarray(made.logits[at, : len(e.completion_ids)])
        np.testing.assert_allclose(nll[at], -log_softmax(scores)[e.answer], rtol=1e-5, atol=1e-6)
        assert correct[at] == (scores.argmax() == e.answer)


# The last one asks for the gate's value.
SPACES = [("options", "options"), ("vocab", "options"), ("options", "vocab")]
THRESHOLD = 1.4


def plain_loss(model, loss, method):
    """The gated loss from a row for each option and from rows of right answers alone."""
    alone = one_batch(ROWS)
    order = np.argsort(alone.row)
    hidden, _ = scored_hidden(model, alone, None)
    over_vocab = MethodConfig(term="ls", gate="all", space="vocab").build()
    vocab = losses_at(model.head(), hidden, alone, LossConfig(), over_vocab, None)
    batch = trees()
    options = Rows(own_scores(model), batch.answer, batch.option_mask)
    nll = over_options(options)[0] if loss.space == "options" else vocab.nll[order]
    cal = method.term(options) if method.space == "options" else vocab.cal[order]
    weight, labels = jnp.ones(11), jnp.zeros(11)
    return gated_loss(nll, cal, method, jnp.float32(THRESHOLD), labels, weight, jax.random.key(0))


@cache
def wanted_loss(loss_space, space):
    loss, method = made_method(loss_space, space)

    def function(model):
        sums = plain_loss(model, loss, method)
        return sums.loss, sums

    return with_gradient(decoder(), function)


def made_method(loss_space, space):
    return LossConfig(space=loss_space), MethodConfig(
        term="ls", gate="adaptive", weight=0.5, space=space
    ).build()


# Chunks of all positions, of some questions, and of a part of one.
@pytest.mark.parametrize("chunk", [1000, 40, 3])
@pytest.mark.parametrize("spaces", SPACES)
def test_the_loss_of_a_batch_is_that_of_plain_rows(spaces, chunk):
    loss, method = made_method(*spaces)
    batch = trees(size=12)

    def function(model):
        hidden, _ = scored_hidden(model, batch, None)
        sums = batch_loss(
            model.head(), hidden, batch, jnp.zeros(12), method, loss, jnp.float32(THRESHOLD),
            jax.random.key(0), None, chunk=chunk,
        )  # fmt: skip
        return sums.loss, sums

    gradient, sums = with_gradient(decoder(), function)
    wanted_gradient, expected = wanted_loss(*spaces)
    for name in ("loss", "ce", "cal", "gated", "known", "examples"):
        np.testing.assert_allclose(getattr(sums, name), getattr(expected, name), rtol=2e-5)
    assert spaces[0] == "vocab" or 0 < sums.gated < 11
    assert_same_gradient(gradient, wanted_gradient)


def test_the_right_options_nll_per_token_stands_beside_its_loss():
    batch, model = trees("sum"), decoder()
    hidden, _ = scored_hidden(model, batch, None)
    losses = losses_at(model.head(), hidden, batch, LossConfig(space="options"), None, None)
    scores = wanted("llama3.2")[1]
    np.testing.assert_allclose(losses.gold, -scores[np.arange(11), batch.answer], rtol=1e-5)


def test_batches_of_trees_hold_every_question_once():
    batches = list(tree_batches(ROWS, 4, (LONGEST,), "mean"))
    found = [row for b in batches for row in b.row[b.weight > 0].tolist()]
    assert sorted(found) == list(range(11))
    assert all(b.input_ids.shape[0] == 4 for b in batches)


def test_dropout_thins_a_question_alike_for_all_its_options():
    """Layers are thinned where the prompt is computed, which is once."""
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=("v_proj",), lora_dropout=0.5)
    model, batch = decoder(lora=lora), trees("sum")
    plain, one, other, again = (
        np.asarray(scores_of(model, batch, key))
        for key in (None, jax.random.key(0), jax.random.key(1), jax.random.key(0))
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - plain).max() > 1e-4 and np.abs(one - other).max() > 1e-4
