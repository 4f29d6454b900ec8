"""ScalaBL: the same adapter at first, draws of scales alone, the divergence as an integral."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, stats

from cogcalib_jax.baselines.variational import DEVIATION, SCALE, ScalaBl
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training.finetune import finetune
from cogcalib_jax.training.step import make_optimizer
from tests.inference.tiny import tiny_model
from tests.models.small import one_device
from tests.training.small_trainer import (
    TRAINING,
    checksums,
    lora,
    same_bits,
    trainer,
    without_last_checkpoint,
)
from tests.training.test_step import Stepper

VARIANT = ScalaBl(rows=20, batch_size=8, peak=1e-2, seed=4)


def flat(state):
    return {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(state)}


@cache
def first():
    return VARIANT.begin(tiny_model()[1])


def test_it_begins_with_the_same_adapter_in_numpys_factors():
    before, found = flat(tiny_model()[1]), flat(first())
    mean = flat(VARIANT.mean(first()))
    assert mean.keys() == before.keys()
    for place in {path[:-1] for path in before}:
        a, b = before[*place, "lora_A"], before[*place, "lora_B"]
        np.testing.assert_allclose(
            np.exp(found[*place, SCALE]), np.linalg.svd(a, compute_uv=False), rtol=1e-5
        )
        v = found[*place, "lora_A"]
        gram = v @ v.swapaxes(-1, -2)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(2), gram.shape), atol=1e-5)
        np.testing.assert_allclose(
            mean[*place, "lora_B"] @ mean[*place, "lora_A"], b @ a, atol=1e-5
        )
        deviation = np.exp(found[*place, DEVIATION])
        assert (deviation >= 0.05 / np.sqrt(2) - 1e-7).all() and (deviation <= 0.05).all()


def test_draws_move_the_scales_by_their_deviations_and_nothing_else():
    parameters, place = first(), ("lm_head",)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: VARIANT.draw(parameters, None, key))(keys)
    drawn, found = flat(drawn), flat(parameters)
    np.testing.assert_array_equal(drawn[*place, "lora_B"][7], found[*place, "lora_B"])
    v = found[*place, "lora_A"]
    scales = np.einsum("nri,ri->nr", drawn[*place, "lora_A"], v)
    np.testing.assert_allclose(scales[..., None] * v, drawn[*place, "lora_A"], atol=1e-5)
    np.testing.assert_allclose(scales.mean(0), np.exp(found[*place, SCALE]), atol=5e-3)
    np.testing.assert_allclose(scales.std(0), np.exp(found[*place, DEVIATION]), rtol=0.05)
    q = ("layers", "self_attn", "q_proj", "lora_A")
    rows = np.einsum("nlri,lri->nlr", drawn[q], found[q])
    # Matrices, layers and ranks draw independently.
    every = np.concatenate([scales, rows.reshape(len(rows), -1)], 1)
    off = np.corrcoef(every.T) - np.eye(every.shape[1])
    assert np.abs(off).max() < 0.1


@pytest.mark.parametrize(("mean", "deviation"), [(0.8, 0.05), (2.0, 0.7), (0.01, 1.4)])
def test_the_divergence_is_the_integral_of_posterior_to_prior(mean, deviation):
    """KL(q || p) with p = N(1e-8, 1): not the order of the authors' code, KL(p || q)."""
    posterior, prior = stats.norm(mean, deviation), stats.norm(1e-8, 1)
    wanted, _ = integrate.quad(
        lambda s: posterior.pdf(s) * (posterior.logpdf(s) - prior.logpdf(s)),
        *(mean - 12 * deviation, mean + 12 * deviation),
    )
    log = [nnx.LoRAParam(jnp.log(jnp.array([x, x]))) for x in (mean, deviation)]
    found = VARIANT.divergence(nnx.State({"q": nnx.State({SCALE: log[0], DEVIATION: log[1]})}))
    assert float(found) == pytest.approx(2 * wanted, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_eight_devices_make_the_same_draws_and_updates():
    optimizer = VARIANT.optimizer(make_optimizer(TRAINING, lambda s: 1e-2), lambda s: 1e-2, 1e-2)
    ended = []
    for mesh in (one_device(), make_mesh(MeshConfig(2, 2, 2))):
        stepper = Stepper(mesh, optimizer, variant=VARIANT)
        state = stepper.fresh()
        for _ in range(2):
            state, _ = stepper(state)
        ended.append(jax.tree.map(np.asarray, VARIANT.mean(state.lora)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *ended)


def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path):
    made = trainer()
    made = replace(made, trainable=replace(made.trainable, variant=VARIANT))
    sft = MethodConfig(name="sft").resolve()
    whole = finetune(made, sft, lora(), tmp_path / "style", tmp_path / "whole")
    cut = without_last_checkpoint(tmp_path / "whole", tmp_path / "cut")
    again = finetune(made, sft, lora(), tmp_path / "style", cut)
    assert checksums(tmp_path / "whole") == checksums(cut)
    assert same_bits(whole.draw(jax.random.key(1)), again.draw(jax.random.key(1)))
    moved = flat(whole.lora)["lm_head", "lora_A"] - flat(lora())["lm_head", "lora_A"]
    assert np.abs(moved).max() > 1e-4
