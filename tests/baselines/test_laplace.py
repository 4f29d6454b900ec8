"""Laplace-LoRA against closed forms written out densely with numpy."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.baselines import laplace
from cogcalib_jax.baselines.kfac import LowRank
from cogcalib_jax.baselines.laplace import LaplacePredictor, Posterior, linearised
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.evaluate import task_metrics
from cogcalib_jax.inference.forward import option_logprobs, scored_hidden
from cogcalib_jax.inference.predict import Predictor, SplitPass
from cogcalib_jax.inference.predictions import prediction_rows
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.inference.tiny import LORA, one_batch, questions, tiny_decoder
from tests.models.small import one_device

TRAIN, TEST = questions(12), questions(6, seed=1)
ONE = questions(1, options=(4,))[0]
SPLITS = {
    "train": TRAIN,
    "twice": type(TRAIN)([*TRAIN, *TRAIN]),
    "test": TEST,
    "one token": type(TRAIN)([replace(ONE, prompt_ids=ONE.prompt_ids[:1])]),
}
HEAD = replace(LORA, target_modules=("lm_head",))
ALL = replace(LORA, target_modules=("all-linear", "lm_head"))
FULL = 64  # more than any side is wide
CONFIG = EvaluationConfig(batch_size=16, resamples=100)


@cache
def model(lora=HEAD, mesh=None):
    return split_model(tiny_decoder(lora=lora, mesh=mesh))


@cache
def fitted(lora=HEAD, rank=FULL, batch_size=16, rows="train"):
    structure, parameters = model(lora)
    return laplace.fit(
        structure, parameters, one_device(), SPLITS[rows], batch_size, LowRank(rank, 0)
    )


@cache
def _linearised(lora, rows):
    structure, parameters = model(lora)

    def run(parameters, frozen, batch, posterior):
        return linearised(nnx.merge(structure.graphdef, parameters, frozen), batch, posterior)

    return jax.jit(run), parameters, structure.frozen, one_batch(SPLITS[rows])


def covariances(posterior, lora=HEAD, rows="test"):
    """Of the option logits, rows in the order of their batch."""
    run, parameters, frozen, batch = _linearised(lora, rows)
    return np.asarray(run(parameters, frozen, batch, posterior)[1])


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@cache
def head_alone(rows):
    """Of a model whose head alone has an adapter, by row in float64: hidden state, A, B, the
    options' rows of B, scale, and option probabilities."""
    decoder = tiny_decoder(lora=HEAD)
    batch = one_batch(SPLITS[rows])
    hidden = np.asarray(scored_hidden(decoder, batch, None)[0])[:, 0].astype(np.float64)
    head = decoder.lm_head
    a, b, weight = (np.asarray(x[...], np.float64) for x in (head.lora_A, head.lora_B, head.weight))
    result = []
    for i, x in enumerate(hidden):
        ids = batch.option_ids[i][batch.option_mask[i] > 0]
        logits = (weight + head.scale * b @ a)[ids] @ x
        result.append((x, ids, softmax(logits)))
    return a, b, head.scale, result


def dense_blocks():
    """Precisions that the data add, of vec(A) and vec(B) by rows, as np.kron writes them out."""
    a, b, scale, rows = head_alone("train")
    vocab = len(b)
    inputs = {"A": [x for x, _, _ in rows], "B": [a @ x for x, _, _ in rows]}
    gradients = {"A": [], "B": []}
    for _, ids, p in rows:
        at_logits = np.zeros((vocab, vocab))
        at_logits[np.ix_(ids, ids)] = scale**2 * (np.diag(p) - np.outer(p, p))
        gradients["A"].append(b.T @ at_logits @ b)
        gradients["B"].append(at_logits)
    return {
        name: np.kron(sum(gradients[name]), sum(np.outer(v, v) for v in inputs[name]) / len(TRAIN))
        for name in "AB"
    }


def dense_jacobians(rows):
    """By row: [options, parameters] of both matrices."""
    a, b, scale, values = head_alone(rows)
    eye = np.eye(len(b))
    return [
        {
            "A": scale * np.stack([np.kron(b[i], x) for i in ids]),
            "B": scale * np.stack([np.kron(eye[i], a @ x) for i in ids]),
        }
        for x, ids, _ in values
    ]


@pytest.mark.parametrize("precision", [0.01, 0.7, 30.0])
def test_a_single_layer_at_full_rank_is_its_closed_form(precision):
    got = covariances(Posterior(fitted().posterior.blocks, precision))
    blocks = dense_blocks()
    inverses = {k: np.linalg.inv(v + precision * np.eye(len(v))) for k, v in blocks.items()}
    for i, jacobian in enumerate(dense_jacobians("test")):
        wanted = sum(jacobian[name] @ inverses[name] @ jacobian[name].T for name in "AB")
        k = len(wanted)
        np.testing.assert_allclose(got[i, :k, :k], wanted, rtol=1e-4, atol=1e-4 * wanted.max())
        assert not got[i, k:].any()


def test_the_marginal_likelihood_is_its_closed_form_and_its_optimum_that_of_a_grid():
    a, b, _, rows = head_alone("train")
    answers = one_batch(TRAIN).answer
    likelihood = sum(np.log(p[y]) for (_, _, p), y in zip(rows, answers, strict=True))
    norm = (a**2).sum() + (b**2).sum()
    evidence = fitted().evidence
    blocks = dense_blocks()
    spectra = {name: np.linalg.eigvalsh(m) for name, m in blocks.items()}

    def dense(precision):
        ratio = sum(np.log1p(np.maximum(v, 0) / precision).sum() for v in spectra.values())
        return likelihood - 0.5 * (ratio + precision * norm)

    for precision in (0.01, 0.5, 20.0):
        posterior = sum(
            np.linalg.slogdet(m + precision * np.eye(len(m)))[1] for m in blocks.values()
        )
        prior = sum(len(m) for m in blocks.values()) * np.log(precision)
        wanted = likelihood - 0.5 * (posterior - prior + precision * norm)
        assert evidence.log_marginal(precision) == pytest.approx(wanted, rel=1e-4)
    grid = np.exp(np.linspace(np.log(1e-4), np.log(1e4), 20001))
    best = grid[np.argmax([dense(precision) for precision in grid])]
    chosen = float(fitted().posterior.prior_precision)
    assert chosen == pytest.approx(best, rel=2e-3)
    record = fitted().record()
    assert record["effective_parameters"] == pytest.approx(chosen * norm, rel=1e-4)
    assert record["rows"] == len(TRAIN)


def test_one_row_of_one_token_gives_every_matrix_its_exact_block():
    """Then nothing is approximated: J^T H J of each matrix's own parameters, by automatic
    differentiation, also deep in the decoder."""
    structure, parameters = model(ALL)
    batch = one_batch(SPLITS["one token"])

    def logits(parameters):
        decoder = structure.merge(parameters)
        hidden, _ = scored_hidden(decoder, batch, None)
        return decoder.head().option_logits(hidden[:, 0], batch.option_ids)[0]

    p = softmax(np.asarray(logits(parameters), np.float64))
    hessian = np.diag(p) - np.outer(p, p)
    posterior = Posterior(fitted(ALL, FULL, 16, "one token").posterior.blocks, 0.5)
    wanted = np.zeros((4, 4))
    for path, leaf in nnx.to_flat_state(jax.jit(jax.jacrev(logits))(parameters)):
        value = np.asarray(leaf[...], np.float64)
        layers = [value] if path[0] == "lm_head" else np.moveaxis(value, 1, 0)
        for jacobian in layers:
            jacobian = jacobian.reshape(4, -1)
            precision = jacobian.T @ hessian @ jacobian + 0.5 * np.eye(jacobian.shape[1])
            wanted += jacobian @ np.linalg.solve(precision, jacobian.T)
    got = covariances(posterior, ALL, "one token")[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * wanted.max())


@pytest.mark.slow
def test_twice_the_rows_are_twice_the_curvature_whatever_the_batch():
    once, double = fitted(LORA, 3), fitted(LORA, 3, 64, "twice")
    assert double.evidence.log_likelihood == pytest.approx(2 * once.evidence.log_likelihood)
    for name, block in once.posterior.blocks.items():
        other = double.posterior.blocks[name].curvature
        scale = block.curvature.max()
        assert scale > 0
        np.testing.assert_allclose(other, 2 * block.curvature, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.slow
def test_eight_devices_agree_with_one():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    structure, parameters = model(LORA, mesh)
    there = laplace.fit(structure, parameters, mesh, TRAIN, 64, LowRank(3, 0))
    here = fitted(LORA, 3)
    for key, value in here.record().items():
        assert there.record()[key] == pytest.approx(value, rel=1e-4)
    eight = LaplacePredictor(structure, mesh, CONFIG, 400)
    got, wanted = eight(parameters, there.posterior, TEST, 0), averaged()
    np.testing.assert_allclose(got.probs, wanted.probs, atol=1e-4)
    np.testing.assert_allclose(got.vocab_probs, wanted.vocab_probs, atol=1e-4)


def test_probabilities_are_the_mean_softmax_of_normal_logits():
    logits = np.array([1.0, -0.5, 0.3, 9.0], np.float32)
    half = np.random.default_rng(1).standard_normal((4, 4))
    half[3] = 0
    mask = np.array([1, 1, 1, 0], np.float32)
    cov = (half @ half.T).astype(np.float32)
    got = np.exp(laplace.mean_log_probs(logits, cov, mask, jax.random.key(0), 40_000))
    draws = logits + np.random.default_rng(2).standard_normal((400_000, 4)) @ half.T
    wanted = softmax(draws[:, :3]).mean(0)
    np.testing.assert_allclose(got[:3], wanted, atol=5 * 0.5 / np.sqrt(40_000))
    assert got[3] == 0


@cache
def predictor(samples):
    return LaplacePredictor(model(LORA)[0], one_device(), CONFIG, samples)


@cache
def averaged(samples=400, seed=0, precision=None):
    fit = fitted(LORA, 3)
    posterior = fit.posterior if precision is None else Posterior(fit.posterior.blocks, precision)
    return predictor(samples)(model(LORA)[1], posterior, TEST, seed)


def test_a_prior_that_allows_no_change_gives_the_trained_model():
    plain = Predictor(model(LORA)[0], one_device(), CONFIG)(model(LORA)[1], TEST)
    got = averaged(precision=1e20)
    np.testing.assert_allclose(got.probs, plain.probs, atol=1e-5)
    np.testing.assert_allclose(got.vocab_probs, plain.vocab_probs, atol=1e-5)
    assert np.abs(averaged().probs - plain.probs).max() > 0.02


def test_draws_come_from_the_seed_and_the_question_alone():
    """As the mesh's test shows, whose batches are larger."""
    apart = np.abs(averaged().probs - averaged(seed=1).probs)
    assert 0 < apart.max() < 5 * 0.5 * np.sqrt(2 / 400)


def test_predictions_say_what_they_are():
    got = averaged()
    np.testing.assert_allclose(got.probs.sum(-1), 1.0)
    numbers = task_metrics(got, CONFIG, 0, exclusive=True)
    assert numbers["posterior_samples"] == 400
    structure, parameters = model(LORA)
    logprobs = SplitPass(structure, one_device(), option_logprobs)(
        parameters, [one_batch(TEST)], 1.0
    )[1]
    batch = one_batch(TEST)
    share = np.zeros(len(TEST))
    share[batch.row] = np.where(batch.option_mask > 0, np.exp(logprobs), 0).sum(-1)
    np.testing.assert_allclose(got.vocab_probs.sum(-1), share, rtol=1e-4)
    for i, row in enumerate(prediction_rows(got, TEST)):
        k = len(row["completions"])
        np.testing.assert_allclose(row["option_probs"], got.probs[i, :k])
        assert row["prediction"] == np.argmax(got.probs[i, :k])
