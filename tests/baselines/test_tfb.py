"""TFB against the SVD of numpy, closed forms of its criteria, and its own definition of sigma."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.baselines import tfb
from cogcalib_jax.baselines.rows import Tfb
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.lora import lora_input
from cogcalib_jax.models.parameters import ROOT, split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.inference.tiny import LORA, questions, tiny_decoder, tiny_model
from tests.models.small import one_device

ANCHORS = questions(12, seed=3)
CONFIG = EvaluationConfig(batch_size=8, mc_passes=4)
SETTINGS = Tfb(anchors=10, steps=5, tolerance=0.05)


def flat(state):
    return {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(state)}


@cache
def fitted(**changed):
    model, lora = tiny_model()
    return tfb.fit(replace(SETTINGS, **changed), model, lora, one_device(), ANCHORS, CONFIG)


def test_the_factors_are_numpys_and_the_same_adapter():
    _, lora = tiny_model()
    before, after = flat(lora), flat(tfb.factorised(lora))
    assert before.keys() == after.keys()
    for path, b in before.items():
        if path[-1] != "lora_B":
            continue
        a, path_a = before[*path[:-1], "lora_A"], (*path[:-1], "lora_A")
        np.testing.assert_allclose(after[path] @ after[path_a], b @ a, atol=1e-5)
        d = np.linalg.svd(b, compute_uv=False)
        gram = after[path].swapaxes(-1, -2) @ after[path]
        np.testing.assert_allclose(gram, d[..., None] ** 2 * np.eye(d.shape[-1]), atol=1e-5)


def test_noise_has_the_deviation_sigma_in_every_direction_of_the_output():
    """Cov(B' E x) = sigma^2 |x|^2 U U^T with the left singular vectors U of B."""
    _, lora = tiny_model()
    noisy = fitted(tolerance=1e-9, low=1e-3, high=0.2).lora
    parts = flat(tfb.with_noise(noisy, 0.3, "all"))
    u = np.linalg.svd(flat(lora)["lm_head", "lora_B"], full_matrices=False)[0]
    a, root = (jnp.asarray(parts["lm_head", key], jnp.float32) for key in ("lora_A", ROOT))
    x = np.random.default_rng(0).normal(size=a.shape[1])
    keys = jax.random.split(jax.random.key(0), 20_000)
    vector = jnp.asarray(x, jnp.float32)
    low = jax.vmap(lambda key: lora_input(vector, a, root, 0.0, key))(keys)
    noise = np.asarray(low - vector @ a.T, np.float64) @ parts["lm_head", "lora_B"].T
    wanted = 0.3**2 * (x @ x) * u @ u.T
    found = noise.T @ noise / len(noise)
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())


def test_changes_are_the_formulas():
    before = np.log([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8]])
    after = np.log([[0.6, 0.3, 0.1], [0.3, 0.45, 0.25], [0.2, 0.1, 0.7]])
    answers = np.array([1, 1, 2])
    assert tfb.change("flips", before, after, answers) == pytest.approx(1 / 3)
    own = np.log(0.7 * 0.4 * 0.8), np.log(0.6 * 0.3 * 0.7)
    assert tfb.change("pseudo_nll", before, after, answers) == pytest.approx(own[1] / own[0] - 1)
    gold = np.log(0.2 * 0.35 * 0.8), np.log(0.3 * 0.45 * 0.7)
    # Better is a change, too.
    assert tfb.change("gold_nll", before, after, answers) == pytest.approx(1 - gold[1] / gold[0])


@pytest.mark.parametrize("tolerance", [1e-5, 1e-3, 0.2])
def test_the_search_ends_just_below_the_largest_that_passes(tolerance):
    sigma, trials = tfb.largest_passing(lambda s: s**2, tolerance, 1e-3, 1.0, 12)
    limit = np.sqrt(tolerance)
    assert limit * 1000 ** (-1 / 2**12) * (1 - 1e-9) <= sigma <= limit
    assert len(trials) == 14 and all(t["change"] == t["sigma"] ** 2 for t in trials)
    assert {"sigma": sigma, "change": sigma**2} in trials


def test_the_ends_of_the_search_are_told():
    assert tfb.largest_passing(lambda s: s**2, 2.0, 1e-3, 1.0, 5)[0] == 1.0
    assert tfb.largest_passing(lambda s: s**2, 1e-7, 1e-3, 1.0, 5)[0] == 0.0
    bound, nothing = fitted(tolerance=1e6), fitted(tolerance=1e-9)
    assert bound.sigma == 1.0 and "raise `high`" in bound.words
    assert nothing.sigma == 0 and "no noise passed" in nothing.words


@pytest.mark.parametrize("criterion", ["pseudo_nll", "gold_nll", "flips"])
def test_sigma_passes_on_the_anchors_and_a_larger_one_was_refused(criterion):
    tolerance = {"flips": 0.2}.get(criterion, 0.05)
    found = fitted(criterion=criterion, tolerance=tolerance)
    trials = found.record["trials"]
    (at,) = [t["change"] for t in trials if t["sigma"] == found.sigma]
    above = [t["change"] for t in trials if t["sigma"] > found.sigma]
    assert 0 < found.sigma < 1 and at <= tolerance and min(above) > tolerance
    assert found.record["anchors"] == 10


def test_without_noise_the_answers_are_the_adapters_own():
    model, lora = tiny_model()
    plain = Predictor(model, one_device(), CONFIG)(lora, ANCHORS)
    np.testing.assert_allclose(fitted(tolerance=1e-9)(ANCHORS).probs, plain.probs, atol=1e-5)
    noisy = fitted()(ANCHORS)
    assert np.abs(noisy.probs - plain.probs).max() > 1e-3
    assert noisy.averaged.count == 4 and noisy.scoring.endswith("of 4 noise draws")


def test_the_last_layer_is_the_head_if_it_has_an_adapter():
    roots = {k: v for k, v in flat(fitted(layers="last").lora).items() if k[-1] == ROOT}
    assert {k[0] for k, v in roots.items() if v.any()} == {"lm_head"}
    lora = replace(LORA, target_modules=("q_proj", "v_proj"))
    model, parameters = split_model(tiny_decoder(lora=lora))
    found = tfb.fit(
        replace(SETTINGS, layers="last", steps=1), model, parameters, one_device(), ANCHORS, CONFIG
    )
    for path, root in flat(tfb.with_noise(found.lora, 0.1, "last")).items():
        if path[-1] == ROOT:
            assert not root[:-1].any() and root[-1].all()


def test_dropout_gives_way_to_the_noise():
    model, lora = split_model(tiny_decoder(lora=replace(LORA, lora_dropout=0.5)))
    found = tfb.fit(SETTINGS, model, lora, one_device(), ANCHORS, CONFIG)
    assert found.record == fitted().record


@pytest.mark.parametrize("spec", ["blob", "tfb(of=best_epoch)"])
def test_specs_of_something_else_are_refused(spec):
    with pytest.raises(UserError, match="expected tfb or"):
        tfb.parse(spec)


@pytest.mark.slow
def test_eight_devices_find_the_same_sigma_and_answers():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    model, lora = split_model(tiny_decoder(mesh=mesh))
    found = tfb.fit(SETTINGS, model, lora, mesh, ANCHORS, CONFIG)
    assert found.sigma == fitted().sigma
    np.testing.assert_allclose(found(ANCHORS).probs, fitted()(ANCHORS).probs, atol=1e-5)
