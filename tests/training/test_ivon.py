"""IVON: the paper's recurrences in numpy, what its Hessian estimates, and exact resume."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogcalib_jax.errors import FieldError
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.finetune import finetune, style_phase
from cogcalib_jax.training.variant import Ivon, variant_of
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

IVON = Ivon(learning_rate=0.2, ess=50.0, hess_init=0.1, beta1=0.8, beta2=0.9, weight_decay=0.02)
SHAPES = {"a": (3, 4), "b": (5,)}
SPEC = "ivon(ess=1e4, hess_init=0.01)"


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in SHAPES.items()}


def schedule(step):
    return 1e-3 / (1 + step)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_updates_are_the_papers_recurrences(clip):
    """Algorithm 1 of Shen et al. 2024, written out in float64."""
    ivon = replace(IVON, clip_radius=clip)
    optimizer = ivon.optimizer(None, schedule, 1e-3)
    m = parameters()
    state = optimizer.init(m)
    wanted = {k: np.asarray(v, np.float64) for k, v in m.items()}
    u = {k: np.zeros(s) for k, s in SHAPES.items()}
    h = {k: np.full(s, 0.1) for k, s in SHAPES.items()}
    for t in range(1, 5):
        key = jax.random.key(t)
        noise = jax.tree.map(jnp.subtract, ivon.draw(m, state, key), m)
        gradient = parameters(t)
        updates, state = optimizer.update(gradient, state, m, key=key)
        m = optax.apply_updates(m, updates)
        rate = 0.2 / t * (0.1 + 0.02)
        for k in SHAPES:
            n, g = (np.asarray(x[k], np.float64) for x in (noise, gradient))
            sigma_squared = 1 / (50 * (h[k] + 0.02))
            estimate = g * n / sigma_squared
            u[k] = 0.8 * u[k] + 0.2 * g
            distance = (h[k] - estimate) ** 2 / (h[k] + 0.02)
            h[k] = 0.9 * h[k] + 0.1 * estimate + 0.5 * 0.1**2 * distance
            step = (u[k] / (1 - 0.8**t) + 0.02 * wanted[k]) / (h[k] + 0.02)
            wanted[k] = wanted[k] - rate * (np.clip(step, -clip, clip) if clip else step)
    for k in SHAPES:
        np.testing.assert_allclose(state.momentum[k], u[k], rtol=1e-5)
        np.testing.assert_allclose(state.hessian[k], h[k], rtol=1e-4)
        np.testing.assert_allclose(m[k], wanted[k], rtol=1e-5, atol=1e-6)


def test_draws_have_the_posteriors_deviation():
    m, optimizer = parameters(), IVON.optimizer(None, schedule, 1e-3)
    state = optimizer.init(m)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda key: IVON.draw(m, state, key))(keys)
    for k, values in m.items():
        np.testing.assert_allclose(draws[k].mean(0), values, atol=0.03)
        np.testing.assert_allclose(draws[k].std(0), 1 / np.sqrt(50 * 0.12), rtol=0.05)


def test_the_hessian_of_a_quadratic_is_found():
    """For sum a x^2 / 2 the expected estimate is a; `ess` large, so that draws stay near."""
    a = jnp.array([0.5, 2.0, 5.0])
    ivon = replace(IVON, ess=1e3, beta2=0.995, weight_decay=0.0, learning_rate=0.01)
    optimizer = ivon.optimizer(None, lambda step: 1.0, 1.0)

    def update(carry, key):
        m, state = carry
        gradient = a * ivon.draw(m, state, key)
        updates, state = optimizer.update(gradient, state, m, key=key)
        return (m + updates, state), state.hessian

    first = jnp.zeros(3)
    keys = jax.random.split(jax.random.key(1), 20_000)
    (m, _), hessians = jax.lax.scan(update, (first, optimizer.init(first)), keys)
    np.testing.assert_allclose(hessians[5000:].mean(0), a, rtol=0.1)
    np.testing.assert_allclose(m, 0, atol=0.1)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sgd", "expected one of adamw, ivon"),
        ("ivon(ess=0)", "ess is 0; expected a number above 0"),
        ("ivon(beta2=1)", "beta2 is 1; expected at least 0, below 1"),
        ("ivon(clip_radius=-1)", "clip_radius is -1; expected at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(spec, words):
    with pytest.raises(FieldError, match=words):
        TrainingConfig(optimizer=spec)


@pytest.mark.slow
def test_eight_devices_make_the_same_draws_and_updates():
    ivon = replace(IVON, ess=1e4)
    optimizer = ivon.optimizer(None, lambda step: 1.0, 1.0)
    ended = []
    for mesh in (one_device(), make_mesh(MeshConfig(2, 2, 2))):
        stepper = Stepper(mesh, optimizer, variant=ivon)
        state = stepper.fresh()
        for _ in range(2):
            state, _ = stepper(state)
        ended.append(jax.tree.map(np.asarray, (state.lora, state.opt_state)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *ended)


@pytest.mark.slow
def test_a_resumed_run_draws_and_ends_as_if_it_had_not_stopped(tmp_path):
    made = trainer(replace(TRAINING, optimizer=SPEC))
    made = replace(made, trainable=replace(made.trainable, variant=variant_of(SPEC)))
    sft = MethodConfig(name="sft").resolve()
    start = style_phase(made, lora(), tmp_path / "style")
    plain = style_phase(trainer(), lora(), tmp_path / "plain")
    assert same_bits(start, plain)
    whole = finetune(made, sft, start, tmp_path / "style", tmp_path / "whole")
    cut = without_last_checkpoint(tmp_path / "whole", tmp_path / "cut")
    again = finetune(made, sft, start, tmp_path / "style", cut)
    assert checksums(tmp_path / "whole") == checksums(cut)
    key = jax.random.key(3)
    assert same_bits(whole.draw(key), again.draw(key))
    assert not same_bits(whole.draw(key), whole.lora)
    # The adapter is the mean, and another optimizer's adapter is another one.
    assert not same_bits(whole.lora, start)
