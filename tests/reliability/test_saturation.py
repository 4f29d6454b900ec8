"""Logits so large that bfloat16 and float32 saturate: metrics and loss terms stay what they are."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cogcalib_jax import metrics
from cogcalib_jax.data.example import Example
from cogcalib_jax.inference.predictions import Averaged, Predictions, prediction_rows
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.method.loss import gated_loss
from cogcalib_jax.method.terms import MASKED_LOGIT, TERMS, Rows
from cogcalib_jax.metrics.checks import InvalidRows
from tests.method.registered import own_names

ROWS, OPTIONS = 60, 4
# The smallest probability that a metric reads a 0 as, see docs/metrics.md.
NATS = {np.float32: 87.3, np.float64: 708.4}


def saturated(scale, seed=0):
    """Logits `[rows, options]` float32 of bfloat16 values, and answers `[rows]`."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(ROWS, OPTIONS))).astype(ml_dtypes.bfloat16)
    return logits.astype(np.float32), rng.integers(OPTIONS, size=ROWS)


def probabilities(logits):
    """The softmax in float64, which holds what float32 and bfloat16 lose."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def finite(numbers):
    if isinstance(numbers, dict):
        return all(finite(value) for value in numbers.values())
    if isinstance(numbers, list | tuple):
        return all(finite(value) for value in numbers)
    return numbers is None or np.isfinite(numbers)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e3, 1e4, 1e30])
def test_metrics_of_saturated_probabilities_are_finite_and_right(scale, dtype):
    logits, answers = saturated(scale)
    probs = probabilities(logits).astype(dtype).astype(np.float32 if dtype != np.float64 else dtype)
    assert (probs == 0).any() and (probs == 1).any()
    found = metrics.summarize(probs, np.full(ROWS, OPTIONS), answers, probs, resamples=20)
    assert finite(found)

    exact = probs.astype(np.float64)
    correct = exact.argmax(1) == answers
    of_answer = exact[np.arange(ROWS), answers]
    smallest = np.finfo(probs.dtype).tiny
    assert found["nll"] == pytest.approx(-np.log(np.maximum(of_answer, smallest)).mean(), rel=1e-6)
    assert -np.log(smallest) == pytest.approx(NATS[probs.dtype.type], abs=0.1)
    assert found["brier"] == pytest.approx(((exact - np.eye(OPTIONS)[answers]) ** 2).sum(1).mean())
    sure = exact.max(1) == 1
    if sure.all():
        # Every confidence is 1: one bin, and no ranking.
        assert found["ece"] == pytest.approx(1 - correct.mean())
        assert found["auroc"] == 0.5
    else:
        assert found["auroc"] == pytest.approx(roc_auc_score(correct, exact.max(1)))


def predictions(logprobs, answers, **more):
    tokens = np.ones(logprobs.shape, int)
    return Predictions(logprobs.astype(np.float64), tokens, answers, "sum", **more)


def test_an_option_of_log_probability_minus_infinity_has_probability_zero():
    logits, answers = saturated(1e4)
    logprobs = logits - logits.max(-1, keepdims=True)
    logprobs[np.arange(ROWS), (logprobs.argmax(1) + 1) % OPTIONS] = -np.inf
    one = predictions(logprobs, answers)
    assert np.isfinite(one.probs).all() and np.isfinite(one.vocab_probs).all()
    np.testing.assert_allclose(one.probs.sum(1), 1)
    assert finite(metrics.summarize(one.probs, one.mask, answers, resamples=20))
    example = Example("q", "q", tuple("abcd"), 0)
    encoded = [
        SimpleNamespace(
            id="q", prompt="p", completions="abcd", prompt_ids=(1,),
            completion_ids=((2,), (3,), (4,), (5,)), answer=answer, example=example,
        )
        for answer in answers
    ]  # fmt: skip
    assert all(
        np.isfinite([row["nll"], row["confidence"]]).all() for row in prediction_rows(one, encoded)
    )
    averaged = Averaged("members", 2, logprobs.astype(np.float64))
    np.testing.assert_array_equal(
        predictions(logprobs, answers, averaged=averaged).probs, one.probs
    )


def test_a_question_without_any_finite_score_is_refused_by_its_row():
    logits, answers = saturated(1.0)
    logits[7] = np.nan
    with pytest.raises(InvalidRows, match="row 7"):
        metrics.summarize(predictions(logits, answers).probs, np.full(ROWS, OPTIONS), answers)


@pytest.mark.parametrize("mask", [None, np.tile([1.0, 1.0, 1.0, 0.0], (ROWS, 1))], ids=["all", "3"])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("term", own_names(TERMS))
def test_terms_and_their_gradients_stay_finite_and_right(term, scale, mask):
    logits, answers = saturated(scale)
    answers = np.minimum(answers, OPTIONS - 2)  # an option that also the masked rows have
    start = logits * 0.5
    if mask is not None:
        logits[:, 3] = MASKED_LOGIT

    def total(logits):
        rows = Rows(logits, jnp.asarray(answers), mask, gate=jnp.ones(len(logits)), start=start)
        return jnp.sum(TERMS.make(term)(rows))

    value, gradient = jax.value_and_grad(total)(jnp.asarray(logits))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    real = logits[:, : OPTIONS if mask is None else 3].astype(np.float64)
    log_p = real - np.logaddexp.reduce(real, -1, keepdims=True)
    wanted = {
        "ls": -log_p,
        "mbls": np.maximum(real.max(-1, keepdims=True) - real - 10, 0),
        "ecp": np.exp(log_p) * log_p,
    }
    if term in wanted:  # tests/method has the others' values; here they only stay finite
        how = np.sum if term == "ecp" else np.mean
        assert float(value) == pytest.approx(how(wanted[term], -1).sum(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("gate", ["all", "adaptive"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("term", own_names(TERMS))
def test_the_gated_loss_of_saturated_logits_has_a_finite_gradient(term, gate, normalise):
    logits, answers = saturated(1e4)
    method = MethodConfig(term=term, gate=gate, weight=0.5, normalise=normalise).build()
    zeros, ones = jnp.zeros(ROWS), jnp.ones(ROWS)
    start = -logits

    def loss(logits):
        nll = jax.nn.logsumexp(logits, -1) - logits[np.arange(ROWS), answers]
        rows = Rows(logits, jnp.asarray(answers), gate=ones, start=jnp.asarray(start))
        cal = jnp.broadcast_to(method.term(rows), ones.shape)
        sums = gated_loss(nll, cal, method, jnp.float32(1.0), zeros, ones, jax.random.key(0))
        return sums.loss, sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all() and (gradient != 0).any()
    assert not any(flags.any() for flags in sums.faults)
