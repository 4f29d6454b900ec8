"""BLoB's prior: the divergence by its closed form, and what descending it does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, stats

from cogcalib_jax.baselines.variational import PRIOR_DEVIATION, Prior
from cogcalib_jax.models.lora import LoraConfig, UncertainLora
from cogcalib_jax.models.parameters import ROOT, split_model, with_uncertainty, without_uncertainty
from tests.inference.tiny import LORA, tiny_decoder


def adapter(mean, deviation):
    pair = {"lora_A": nnx.LoRAParam(jnp.asarray(mean)), "lora_B": nnx.LoRAParam(jnp.ones((2, 1)))}
    root = nnx.LoRAParam(jnp.sqrt(jnp.asarray(deviation)))
    return nnx.State({"layers": {"q_proj": nnx.State({**pair, ROOT: root})}})


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.2), (0.3, 0.1), (-0.1, 0.5)])
def test_the_divergence_is_the_integral_that_defines_it(mean, deviation):
    posterior, prior = stats.norm(mean, deviation), stats.norm(0, PRIOR_DEVIATION)
    reach = (mean - 12 * deviation, mean + 12 * deviation)
    wanted, _ = integrate.quad(
        lambda a: posterior.pdf(a) * (posterior.logpdf(a) - prior.logpdf(a)), *reach
    )
    prior = Prior(rows=1, batch_size=100, peak=2.0)
    found = prior.divergence(adapter([[mean, mean]], [[deviation, deviation]]))
    assert float(found) == pytest.approx(2 * wanted, abs=1e-5)


def test_descending_alone_ends_at_the_prior_and_leaves_b_alone():
    prior = Prior(rows=1, batch_size=100, peak=2.0)
    assert prior.period == 1
    optimizer = prior.descent(optax.constant_schedule(2.0))
    lora = adapter([[0.3, -0.2]], [[0.01, 0.4]])
    state = optimizer.init(lora)
    for _ in range(400):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, lora), state, lora)
        lora = optax.apply_updates(lora, updates)
    made = lora["layers"]["q_proj"]
    np.testing.assert_allclose(made["lora_A"][...], 0, atol=1e-3)
    np.testing.assert_allclose(made[ROOT][...] ** 2, PRIOR_DEVIATION, rtol=1e-3)
    np.testing.assert_array_equal(made["lora_B"][...], 1)


def test_the_prior_counts_once_in_a_period_whatever_the_schedule():
    """One period of updates at the peak moves a mean by rate / deviation^2, to first order."""
    prior = Prior(rows=1000, batch_size=8, peak=1e-4)
    assert prior.period == int(100 * 1000 ** (np.pi / 8) / 8)
    optimizer = prior.descent(optax.constant_schedule(1e-4))
    lora = adapter([[1e-3]], [[0.2]])
    zero = jax.tree.map(jnp.zeros_like, lora)
    updates, state = optimizer.update(zero, optimizer.init(lora), lora)
    moved = float(updates["layers"]["q_proj"]["lora_A"][...][0, 0]) * prior.period
    assert moved == pytest.approx(-0.01 * 1e-3 / PRIOR_DEVIATION**2, rel=1e-5)
    half = prior.descent(lambda step: 0.5e-4)
    less, _ = half.update(zero, half.init(lora), lora)
    assert 2 * float(less["layers"]["q_proj"]["lora_A"][...][0, 0]) * prior.period == (
        pytest.approx(moved, rel=1e-5)
    )


def test_uncertainty_is_added_beside_the_same_adapter_and_taken_away_again():
    plain = tiny_decoder(lora=LORA)
    uncertain = with_uncertainty(plain, seed=5)
    assert isinstance(uncertain.lora, UncertainLora)
    ids = jnp.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(uncertain.hidden_states(ids), plain.hidden_states(ids))
    _, lora = split_model(uncertain)
    roots = [leaf for path, leaf in nnx.to_flat_state(lora) if path[-1] == ROOT]
    means = [leaf for path, leaf in nnx.to_flat_state(lora) if path[-1] == "lora_A"]
    assert [r.shape for r in roots] == [m.shape for m in means] and roots
    back = without_uncertainty(uncertain)
    assert type(back.lora) is LoraConfig and back.lora == plain.lora
    assert jax.tree.structure(nnx.state(back)) == jax.tree.structure(nnx.state(plain))
    assert without_uncertainty(plain) is plain
