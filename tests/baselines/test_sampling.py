"""MC-dropout and ensembles against separately computed members, averaged with numpy."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.baselines.sampling import (
    DropoutPredictor,
    EnsemblePredictor,
    average,
    stack_members,
)
from cogcalib_jax.data.batching import eval_batches, length_buckets
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.evaluate import task_metrics
from cogcalib_jax.inference.forward import option_logprobs
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.inference.predict import Predictor, SplitPass
from cogcalib_jax.inference.predictions import Predictions, prediction_rows
from cogcalib_jax.models.parameters import split_model, with_dropout
from tests.inference.tiny import LORA, TINY, questions, tiny_decoder, tiny_model
from tests.models.small import one_device

SPLITS = {"single": questions(10), "several": questions(10, tokens=3)}
for split in SPLITS.values():
    split.pmi_prefix_ids = (1, 9)
CONFIG = EvaluationConfig(batch_size=4, mc_passes=3, resamples=100)


@cache
def members(n: int = 3):
    """Adapters far apart: the tiny model's, and it with B turned and stretched."""
    _, lora = tiny_model()
    return [jax.tree.map(lambda x, k=k: x * (1.0 + k / 2) * (-1) ** k, lora) for k in range(n)]


@cache
def plain(kind: str, member: int = 0, option_score: str = "mean") -> Predictions:
    predictor = Predictor(tiny_model()[0], one_device(), CONFIG, option_score)
    return predictor(members()[member], SPLITS[kind])


@cache
def dropped(dropout: float = 0.3, **settings) -> DropoutPredictor:
    model, _ = split_model(with_dropout(tiny_decoder(lora=LORA), dropout))
    return DropoutPredictor(model, one_device(), replace(CONFIG, **settings))


@cache
def ensemble(option_score: str = "mean", **settings) -> EnsemblePredictor:
    config = replace(CONFIG, **settings)
    return EnsemblePredictor(tiny_model()[0], one_device(), config, option_score)


def same(got: Predictions, wanted: Predictions, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(got.probs, wanted.probs, atol=atol)
    np.testing.assert_allclose(got.vocab_probs, wanted.vocab_probs, atol=atol)
    np.testing.assert_array_equal(got.answers, wanted.answers)
    np.testing.assert_array_equal(got.mask, wanted.mask)


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("option_score", ["mean", pytest.param("pmi", marks=pytest.mark.slow)])
def test_an_ensemble_is_numpys_mean_over_separately_evaluated_members(kind, option_score):
    got = ensemble(option_score=option_score)(members(), SPLITS[kind])
    alone = [plain(kind, k, option_score) for k in range(3)]
    assert np.std([p.probs for p in alone], axis=0).max() > 0.05
    mean = np.mean([p.probs for p in alone], axis=0)
    np.testing.assert_allclose(got.probs, mean, atol=1e-6)
    vocab = np.mean([p.vocab_probs for p in alone], axis=0)
    np.testing.assert_allclose(got.vocab_probs, vocab, atol=1e-6)
    for i, row in enumerate(prediction_rows(got, SPLITS[kind])):
        k = len(row["completions"])
        np.testing.assert_allclose(row["option_probs"], mean[i, :k], atol=1e-6)
        np.testing.assert_allclose(row["option_logprobs"], np.log(vocab[i, :k]), atol=1e-5)
        assert row["prediction"] == np.argmax(mean[i, :k])
        assert row["confidence"] == pytest.approx(mean[i, :k].max(), abs=1e-6)
        assert row["nll"] == pytest.approx(-np.log(mean[i, row["answer"]]), abs=1e-4)
        assert row["vocab_confidence"] == pytest.approx(vocab[i, row["prediction"]], abs=1e-6)


@pytest.mark.parametrize("kind", SPLITS)
def test_an_ensemble_of_one_is_the_plain_model(kind):
    same(ensemble()(members()[:1], SPLITS[kind]), plain(kind))


def test_probabilities_are_averaged_and_not_logits():
    """Two sure members that disagree: the average is undecided, and no surer than half."""
    logprobs = np.log([[[0.98, 0.01]], [[0.01, 0.98]]])
    alone = [Predictions(x, np.ones((1, 2), int), np.array([0]), "sum") for x in logprobs]
    got = average(alone, "members")
    np.testing.assert_allclose(got.probs, [[0.5, 0.5]])
    np.testing.assert_allclose(got.vocab_probs, [[0.495, 0.495]])


def test_an_average_of_impossible_answers_stays_finite():
    logprobs = np.array([[0.0, -2000.0]])
    alone = Predictions(logprobs, np.ones((1, 2), int), np.array([1]), "sum")
    got = average([alone, alone], "members")
    np.testing.assert_allclose(got.log_option_probs, [[0.0, -2000.0]])
    np.testing.assert_allclose(got.logprobs, logprobs)


def test_members_at_a_temperature_are_averaged_as_they_are():
    predictor = Predictor(tiny_model()[0], one_device(), CONFIG)
    tempered = [predictor(lora, SPLITS["single"], 1.7) for lora in members()]
    got = average(tempered, "members")
    np.testing.assert_allclose(got.probs, np.mean([p.probs for p in tempered], 0), atol=1e-6)
    vocab = np.mean([p.vocab_probs for p in tempered], 0)
    np.testing.assert_allclose(got.vocab_probs, vocab, atol=1e-6)


def test_a_temperature_is_fitted_to_the_averaged_probabilities():
    got = ensemble()(members(), SPLITS["single"])
    as_logprobs = np.log(np.where(got.mask, got.probs, np.nan))
    equal = Predictions(as_logprobs, got.tokens, got.answers, "sum")
    assert fit_temperature(got) == pytest.approx(fit_temperature(equal), rel=1e-5)


@pytest.mark.parametrize("kind", SPLITS)
def test_rows_of_an_average_hold_the_log_of_the_mean_probability(kind):
    got = ensemble("mean")(members(), SPLITS[kind])
    for row, probs in zip(prediction_rows(got, SPLITS[kind]), got.probs, strict=True):
        k = len(row["completions"])
        np.testing.assert_allclose(np.exp(row["option_scores"]), row["option_probs"], rtol=1e-9)
        np.testing.assert_allclose(row["option_probs"], probs[:k])
        assert (row["temperature"], row["prediction"]) == (1.0, np.argmax(row["option_scores"]))
        assert row["scoring"] == "mean; log of the mean probability of 3 members"


def test_no_dropout_mask_has_a_prior():
    with pytest.raises(ValueError, match="pmi"):
        DropoutPredictor(tiny_model()[0], one_device(), CONFIG, "pmi")


@pytest.mark.parametrize("over", ["members", "mc_passes"])
def test_eval_json_says_how_many_were_averaged(over):
    numbers = task_metrics(average([plain("single")] * 3, over), CONFIG, 0, exclusive=True)
    assert {name: numbers[name] for name in ("members", "mc_passes") if name in numbers} == {
        over: 3
    }


@pytest.mark.slow
def test_the_base_is_held_once_for_all_members():
    """Arguments: one base and the members' adapters. Temporaries: activations, no bases."""
    model, lora = tiny_model()
    rows = SPLITS["single"]
    (batch, *_) = eval_batches(rows, 2, length_buckets(rows.lengths))
    size = {}
    for n in (1, 8):
        run = SplitPass(model, one_device(), option_logprobs, members=True)._run
        stacked = stack_members([lora] * n)
        size[n] = run.lower(stacked, model.frozen, batch, 1.0).compile().memory_analysis()
    base, adapter = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (model.frozen, lora)
    )
    grown = size[8].argument_size_in_bytes - size[1].argument_size_in_bytes
    assert grown == 7 * adapter
    read = sum(x.nbytes for x in jax.tree.leaves(batch)) + adapter + base
    assert size[1].argument_size_in_bytes <= read + 64
    assert size[8].temp_size_in_bytes - size[1].temp_size_in_bytes < 2 * base


@pytest.mark.parametrize("kind", ["single", pytest.param("several", marks=pytest.mark.slow)])
def test_without_dropout_all_passes_are_the_plain_model(kind):
    same(dropped(0.0)(members()[0], SPLITS[kind], 0), plain(kind), atol=1e-5)


@pytest.mark.parametrize("kind", ["single", pytest.param("several", marks=pytest.mark.slow)])
def test_dropout_depends_on_the_question_and_on_nothing_beside_it(kind):
    """Another batch size, another padding and other neighbours: the same prediction."""
    predictor, lora, rows = dropped(), members()[0], SPLITS[kind]
    got = predictor(lora, rows, 0)
    assert np.abs(got.probs - plain(kind).probs).max() > 0.01
    same(dropped(batch_size=3)(lora, rows, 0), got)
    fewer = predictor(lora, type(rows)(rows[:4]), 0)
    wanted = got.vocab_probs[:4, : fewer.probs.shape[1]]
    np.testing.assert_allclose(fewer.vocab_probs, wanted, atol=1e-6)


def test_each_question_and_each_pass_has_a_mask_of_its_own():
    rows = SPLITS["single"]
    twice = type(rows)([rows[0], rows[0]])
    got = dropped(mc_passes=1)(members()[0], twice, 0)
    assert np.abs(got.probs[0] - got.probs[1]).max() > 1e-3
    more = dropped(mc_passes=2)(members()[0], twice, 0)
    assert np.abs(more.probs - got.probs).max() > 1e-3


def test_options_and_vocabulary_are_thinned_alike():
    """All tokens as options: their probabilities sum to one under every mask."""
    (row,) = questions(1, options=(4,))
    ids = tuple((token,) for token in range(56))
    whole = replace(row, completions=tuple(map(str, ids)), completion_ids=ids, answer=0)
    got = dropped(mc_passes=2)(members()[0], type(SPLITS["single"])([whole]), 0)
    np.testing.assert_allclose(got.vocab_probs.sum(-1), 1.0, atol=1e-5)


def test_seeds_of_dropout_differ_by_their_sampling_noise():
    """The mean over passes of one seed lies within five standard errors of another's."""
    lora, rows = members()[0], SPLITS["single"]
    one = dropped(mc_passes=1)
    passes = 24
    seeds = np.stack([one(lora, rows, seed).probs for seed in range(2 * passes)])
    first, second = seeds[:passes], seeds[passes:]
    error = np.sqrt((first.var(0, ddof=1) + second.var(0, ddof=1)) / passes)
    apart = np.abs(first.mean(0) - second.mean(0))
    assert (apart <= 5 * error + 1e-7).all()
    assert apart.max() > 0
    again = dropped(mc_passes=1)(lora, rows, 0).probs
    np.testing.assert_array_equal(again, seeds[0])


def test_dropout_is_changed_in_a_copy_that_shares_its_arrays():
    decoder = tiny_decoder(lora=LORA)
    changed = with_dropout(decoder, 0.5)
    assert (decoder.lm_head.dropout, changed.lm_head.dropout) == (LORA.lora_dropout, 0.5)
    assert changed.layers.self_attn.q_proj.dropout == 0.5
    assert changed.lm_head.weight[...] is decoder.lm_head.weight[...]
    x = jnp.ones((1, TINY.hidden_size))
    key = jax.random.key(0)
    assert jnp.array_equal(decoder.logits(x, dropout_key=key), decoder.logits(x))
    assert not jnp.array_equal(changed.logits(x, dropout_key=key), changed.logits(x))
