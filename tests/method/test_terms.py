"""Each term against plain numpy, over the vocabulary and over ragged options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.method.loss import gated_loss
from cogcalib_jax.method.terms import TERMS, Rows
from tests.method.registered import own_names

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(6, 9)) * 6).astype(np.float32)
START = (RNG.normal(size=(6, 9)) * 3).astype(np.float32)
MASK = (np.arange(9) < np.array([9, 3, 4, 5, 2, 9])[:, None]).astype(np.float32)
TARGET = np.array([0, 2, 1, 4, 0, 8])
GATE = np.array([1, 0, 1, 1, 0.5, 0], np.float32)
ROW_TERMS = [name for name in own_names(TERMS) if TERMS[name].cls.per == "row"]


def log_softmax(z):
    z = z.astype(np.float64)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def reference(spec, z, target, start):
    """One row of real classes in float64, written from the papers' formulas."""
    log_p, log_q = log_softmax(z), log_softmax(start)
    p, q = np.exp(log_p), np.exp(log_q)
    below = p[p < p[target]]
    rival = below.max() if len(below) else 0.0
    hot = np.arange(len(z)) == target
    return {
        "ls": np.mean(-log_p),
        "ls(reduction=sum)": np.sum(-log_p),
        "mbls": np.mean(np.maximum(z.max() - z - 10.0, 0)),
        "mbls(margin=4, reduction=sum)": np.sum(np.maximum(z.max() - z - 4.0, 0)),
        "ecp": np.sum(p * log_p),
        "ecp(reduction=mean)": np.mean(p * log_p),
        "focal": -((1 - p[target]) ** 2) * log_p[target],
        "focal(gamma=0)": -log_p[target],
        "focal(gamma=3)": -((1 - p[target]) ** 3) * log_p[target],
        "dual_focal": -((1 - p[target] + rival) ** 5) * log_p[target],
        "brier": np.sum((p - hot) ** 2),
        "kl": np.sum(q * (log_q - log_p)),
        "uniform": np.mean(-np.log(len(z)) - log_p),
    }[spec]


SPECS = [
    *("ls", "ls(reduction=sum)", "mbls", "mbls(margin=4, reduction=sum)", "ecp"),
    *("ecp(reduction=mean)", "focal", "focal(gamma=0)", "focal(gamma=3)", "dual_focal"),
    *("brier", "kl", "uniform"),
]


def rows(mask=None):
    return Rows(*map(jnp.asarray, (LOGITS, TARGET)), mask, jnp.asarray(GATE), jnp.asarray(START))


def test_every_registered_term_has_a_reference_value():
    assert {spec.partition("(")[0] for spec in SPECS} == set(ROW_TERMS)


@pytest.mark.parametrize("spec", SPECS)
def test_a_term_equals_numpy_on_every_row_and_ignores_absent_options(spec):
    term = TERMS.make(spec)
    dense, ragged = term(rows()), term(rows(jnp.asarray(MASK)))
    for i, (z, target, start) in enumerate(zip(LOGITS, TARGET, START, strict=True)):
        k = int(MASK[i].sum())
        for got, size in ((dense[i], 9), (ragged[i], k)):
            wanted = reference(spec, z[:size], target, start[:size])
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [*SPECS, "mdca"])
def test_gradients_are_finite_and_zero_for_absent_options(spec):
    term = TERMS.make("mbls(margin=2)" if spec == "mbls" else spec)

    def total(logits):
        return term(rows(jnp.asarray(MASK))._replace(logits=logits)).sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(LOGITS)))
    assert np.isfinite(gradient).all()
    assert (gradient[MASK == 0] == 0).all()
    assert np.abs(gradient[MASK == 1]).max() > 0


@pytest.mark.parametrize("name", ROW_TERMS)
def test_a_row_without_any_option_gives_no_nan(name):
    """Rows that only fill up a batch have no options; their weight is 0, and 0 times NaN is NaN."""
    nothing = jnp.zeros((1, 4))

    def total(z):
        filler = Rows(z, jnp.zeros(1, int), nothing, jnp.zeros(1), nothing)
        return TERMS.make(name)(filler).sum()

    value, gradient = jax.value_and_grad(total)(nothing)
    assert np.isfinite(value) and np.isfinite(np.asarray(gradient)).all()


def test_mdca_equals_the_gap_of_mean_probability_and_frequency_over_gated_rows():
    """Hebbalaguppe et al.: the mean over classes, here with the gate's values as weights."""
    p = np.exp([log_softmax(z) for z in LOGITS])
    hot = np.arange(9) == TARGET[:, None]
    share = GATE / GATE.sum()
    wanted = np.mean(np.abs((share[:, None] * (p - hot)).sum(0)))
    np.testing.assert_allclose(TERMS.make("mdca")(rows()), wanted, rtol=1e-5)
    every = rows()._replace(gate=jnp.ones(6))
    np.testing.assert_allclose(
        TERMS.make("mdca")(every), np.mean(np.abs(p.mean(0) - hot.mean(0))), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["focal", "dual_focal"])
def test_a_certain_and_right_answer_has_a_finite_gradient(name):
    sure = jnp.array([[200.0, 0.0, 0.0]])
    for gamma in (0.5, 1.0, 5.0):
        term = TERMS.make(f"{name}(gamma={gamma})")
        gradient = jax.grad(lambda z, term=term: term(Rows(z, jnp.array([0]))).sum())(sure)
        assert np.isfinite(np.asarray(gradient)).all()


def test_ce_and_ls_together_are_label_smoothing():
    """(1 - eps) CE + eps LS is cross-entropy against the smoothed target."""
    eps, target = 0.1, 3
    log_p = log_softmax(LOGITS[0])
    smoothed = np.full(9, eps / 9)
    smoothed[target] += 1 - eps
    ls = float(TERMS.make("ls")(Rows(jnp.asarray(LOGITS[0]), jnp.asarray(target))))
    np.testing.assert_allclose(
        (1 - eps) * -log_p[target] + eps * ls, -(smoothed * log_p).sum(), 1e-5
    )


def test_margin_ten_over_four_options_bites_only_near_certainty():
    """The scale trap: at m = 10 the term is zero until p_max is about 0.9999."""
    target = jnp.asarray(0)
    below = jnp.log(jnp.array([0.9998, 1e-4, 5e-5, 5e-5]))
    above = jnp.log(jnp.array([0.99999, 4e-6, 3e-6, 3e-6]))
    assert float(TERMS.make("mbls")(Rows(below, target))) == 0
    assert float(TERMS.make("mbls")(Rows(above, target))) > 0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_prior_is_smoothing_towards_the_starts_belief(share):
    """(1 - e) CE + e H(start, model), but for the constant e H(start)."""
    method = MethodConfig(name=f"prior({share})").build()
    target, start = jnp.asarray(TARGET), jnp.asarray(START)
    ones = jnp.ones(len(TARGET))

    def gated(logits):
        of = Rows(logits, target, start=start)
        nll, term = -of.of_target(of.log_p), method.term(of)
        key = jax.random.key(0)
        return gated_loss(nll, term, method, jnp.float32(0), ones, ones, key).loss

    def smoothed(logits):
        log_p, q = jax.nn.log_softmax(logits), jax.nn.softmax(start)
        nll = -jnp.take_along_axis(log_p, target[:, None], 1)[:, 0]
        return jnp.sum((1 - share) * nll - share * jnp.sum(q * log_p, -1))

    log_q = np.array([log_softmax(z) for z in START])
    entropy = -(np.exp(log_q) * log_q).sum()
    logits = jnp.asarray(LOGITS)
    np.testing.assert_allclose(gated(logits), smoothed(logits) - share * entropy, rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(gated)(logits), jax.grad(smoothed)(logits), rtol=1e-5, atol=1e-6
    )
