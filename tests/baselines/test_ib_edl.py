"""IB-EDL: the loss written out with scipy's Dirichlet moments, gradients, and refusals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from cogcalib_jax.baselines.ib_edl import (
    IbEdl,
    IbEdlPredictor,
    bayes_risk,
    bottleneck,
    dirichlet,
    pre_evidence,
    scale_tokens,
)
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.models.lora import Head
from tests.inference.tiny import (
    VOCAB,
    full_logits,
    log_softmax,
    one_batch,
    questions,
    tiny_decoder,
    tiny_model,
)
from tests.models.small import one_device

ROWS = questions(6)
TOKENS = scale_tokens({"train": ROWS}, VOCAB)
VARIANT = IbEdl(TOKENS, beta=0.03, draws=5)


def softplus(x):
    return np.logaddexp(0, x)


def test_the_risk_is_the_expected_squared_error_of_a_dirichlet():
    """With the mean and variance that scipy gives, and absent options left out."""
    alpha = np.array([[2.0, 1.2, 7.0, 1.0], [1.5, 3.0, 1.1, 9.0]])
    mask, target = np.array([[1, 1, 1, 1], [1, 1, 1, 0]]), [2, 0]
    found = bayes_risk(jnp.asarray(alpha), jnp.eye(4)[jnp.array(target)], jnp.asarray(mask))
    for row, (a, exists, y) in enumerate(zip(alpha, mask, target, strict=True)):
        one = stats.dirichlet(a[exists > 0])
        wanted = np.sum((np.eye(len(one.mean()))[y] - one.mean()) ** 2 + one.var())
        assert float(found[row]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(0.4, 0.7), (-3.0, 2.0)])
def test_the_bottleneck_is_the_integral_that_defines_it(mean, deviation):
    q, p = stats.norm(mean, deviation), stats.norm(0, 1)
    reach = (mean - 12 * deviation, mean + 12 * deviation)
    wanted, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *reach)
    pair, mask = (jnp.array([x, x, 5.0]) for x in (mean, deviation)), jnp.array([1.0, 1.0, 0.0])
    assert float(bottleneck(*pair, mask)) == pytest.approx(2 * wanted, rel=1e-5)


def losses(hidden, batch, key=None):
    head = Head(jnp.asarray(WEIGHT), None, None, None, 1.0, 0.0)
    return VARIANT.losses(head, hidden, batch, key or jax.random.key(2), None)


WEIGHT = np.random.default_rng(1).normal(size=(VOCAB, 8)).astype(np.float32)


def test_the_loss_is_the_papers_formula():
    batch = one_batch(ROWS)
    hidden = jnp.asarray(np.random.default_rng(2).normal(size=(6, 1, 8)), jnp.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(2), (5, *batch.option_ids.shape)))
    found = losses(hidden, batch)
    for i in range(6):
        k = int(batch.option_mask[i].sum())
        logits = WEIGHT.astype(np.float64) @ np.asarray(hidden[i, 0], np.float64)
        m, s = logits[batch.option_ids[i, :k]], softplus(logits[list(TOKENS[:k])])
        alpha = softplus(m + s * noise[:, i, :k]) + 1
        total = alpha.sum(-1, keepdims=True)
        p, y = alpha / total, np.eye(k)[batch.answer[i]]
        risk = np.sum((y - p) ** 2 + p * (1 - p) / (total + 1), -1).mean()
        kl = 0.5 * np.sum(m**2 + s**2 - 2 * np.log(s) - 1)
        assert float(found[i]) == pytest.approx(risk + 0.03 * kl, rel=1e-4)


def test_the_gradient_is_that_of_finite_differences():
    batch = one_batch(ROWS)
    rng = np.random.default_rng(3)
    hidden, direction = (jnp.asarray(rng.normal(size=(6, 1, 8)), jnp.float32) for _ in range(2))
    slope = jax.grad(lambda t: losses(hidden + t * direction, batch).sum())(0.0)
    near = [float(losses(hidden + t * direction, batch).sum()) for t in (-1e-2, 1e-2)]
    assert float(slope) == pytest.approx((near[1] - near[0]) / 2e-2, rel=1e-2)


def test_answers_are_the_mean_of_the_dirichlet_whatever_the_batch():
    model, lora = tiny_model()
    variant, caution = replace(VARIANT, draws=400), 0.5
    wanted = []
    for row in ROWS:
        logits = full_logits(tiny_decoder(), row.prompt_ids)[-1]
        ids = [one[0] for one in row.completion_ids]
        m, s = logits[ids], softplus(logits[list(TOKENS[: len(ids)])])
        z = stats.norm(m[:, None], s[:, None]).ppf((np.arange(4000) + 0.5) / 4000)
        alpha = np.maximum(softplus(z).mean(1) + 1 - caution * s, 1)
        wanted.append((alpha / alpha.sum(), np.exp(log_softmax(logits)[ids]).sum()))
    found = [
        IbEdlPredictor(model, one_device(), EvaluationConfig(batch_size=size), variant, caution)(
            lora, ROWS, 3
        )
        for size in (6, 2)
    ]
    np.testing.assert_allclose(found[0].probs, found[1].probs, atol=1e-6)
    for i, (probs, mass) in enumerate(wanted):
        np.testing.assert_allclose(found[0].probs[i, : len(probs)], probs, atol=0.02)
        assert found[0].vocab_probs[i].sum() == pytest.approx(mass, rel=1e-4)


def test_deviations_come_from_the_last_tokens_that_are_no_option():
    taken = {ids[0] for row in ROWS for ids in row.completion_ids}
    assert len(TOKENS) == 5 and not taken & set(TOKENS)
    assert all(token in taken or token in TOKENS for token in range(min(TOKENS), VOCAB))
    with pytest.raises(UserError, match="compare = ib_edl: world has options of several tokens"):
        scale_tokens({"train": ROWS, "world": questions(3, tokens=2)}, VOCAB)


def test_a_rule_that_divides_by_length_is_refused_if_options_are_words():
    words = EncodedSplit.of(
        [replace(row, completions=tuple(f" {text}ab" for text in row.completions)) for row in ROWS]
    )
    for rule in ("chars", "auto"):
        with pytest.raises(UserError, match=f"option_score is {rule}; expected mean or sum"):
            scale_tokens({"train": words}, VOCAB, rule)
    assert scale_tokens({"train": words}, VOCAB, "mean") == TOKENS


def test_an_option_has_its_own_deviation():
    head = Head(jnp.asarray(WEIGHT), None, None, None, 1.0, 0.0)
    hidden, ids = jnp.ones((2, 8)), jnp.array([[4, 5], [6, 7]])
    mean, deviation = pre_evidence(head, hidden, ids, (9, 8, 3))
    logits = WEIGHT.sum(1)
    np.testing.assert_allclose(mean, logits[np.asarray(ids)], rtol=1e-5)
    np.testing.assert_allclose(deviation, softplus(logits[[[9, 8], [9, 8]]]), rtol=1e-5)
    alpha = dirichlet(mean, deviation, jnp.zeros((1, 2, 2)))
    np.testing.assert_allclose(alpha[0], softplus(logits[np.asarray(ids)]) + 1, rtol=1e-5)
