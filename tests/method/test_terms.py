"""Each calibration term against plain numpy, over the vocabulary and over ragged options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.method.terms import TERMS

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(6, 9)) * 6).astype(np.float32)
MASK = (np.arange(9) < np.array([9, 3, 4, 5, 2, 9])[:, None]).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def reference(term, z, reduction, margin):
    """One row of real classes, float64, written from the formulas."""
    z = z.astype(np.float64)
    p = softmax(z)
    values = {
        "ls": -np.log(p),
        "mbls": np.maximum(z.max() - z - margin, 0),
        "ecp": p * np.log(p),
    }[term]
    return values.mean() if reduction == "mean" else values.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("term", ["ls", "mbls", "ecp"])
def test_a_term_equals_numpy_on_every_row_and_ignores_absent_options(term, reduction):
    margin = 4.0
    dense = TERMS[term](jnp.asarray(LOGITS), None, reduction, margin)
    ragged = TERMS[term](jnp.asarray(LOGITS), jnp.asarray(MASK), reduction, margin)
    for i in range(len(LOGITS)):
        k = int(MASK[i].sum())
        np.testing.assert_allclose(
            dense[i], reference(term, LOGITS[i], reduction, margin), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            ragged[i], reference(term, LOGITS[i, :k], reduction, margin), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("term", ["ls", "mbls", "ecp"])
def test_gradients_are_finite_and_zero_for_absent_options(term):
    def total(logits):
        return TERMS[term](logits, jnp.asarray(MASK), "mean", 2.0).sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(LOGITS)))
    assert np.isfinite(gradient).all()
    assert (gradient[MASK == 0] == 0).all()
    assert np.abs(gradient[MASK == 1]).max() > 0


@pytest.mark.parametrize("term", ["ls", "mbls", "ecp"])
def test_a_row_without_any_option_gives_zero_not_nan(term):
    logits, mask = jnp.zeros((1, 4)), jnp.zeros((1, 4))
    value, gradient = jax.value_and_grad(lambda z: TERMS[term](z, mask, "mean", 10.0).sum())(logits)
    assert float(value) == 0
    assert not np.asarray(gradient).any()


def test_ce_and_ls_together_are_label_smoothing():
    """(1 - eps) CE + eps LS is cross-entropy against the smoothed target."""
    eps, target = 0.1, 3
    log_p = np.log(softmax(LOGITS[0].astype(np.float64)))
    smoothed = np.full(9, eps / 9)
    smoothed[target] += 1 - eps
    ls = float(TERMS["ls"](jnp.asarray(LOGITS[0]), None, "mean", 0.0))
    np.testing.assert_allclose(
        (1 - eps) * -log_p[target] + eps * ls, -(smoothed * log_p).sum(), 1e-5
    )


def test_margin_ten_over_four_options_bites_only_near_certainty():
    """The scale trap: at m = 10 the term is zero until p_max is about 0.9999."""
    below = jnp.log(jnp.array([0.9998, 1e-4, 5e-5, 5e-5]))
    above = jnp.log(jnp.array([0.99999, 4e-6, 3e-6, 3e-6]))
    assert float(TERMS["mbls"](below, None, "mean", 10.0)) == 0
    assert float(TERMS["mbls"](above, None, "mean", 10.0)) > 0
