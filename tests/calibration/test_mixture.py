"""Mixtures with the start: what they hold as special cases, and another optimiser's fit."""

import numpy as np
import pytest
from scipy.optimize import minimize

from cogcalib_jax.calibration import Calibrator, LinearMixture, LogitMixture, TemperatureScaler
from cogcalib_jax.errors import UserError
from tests.calibration.rows import mean_nll, with_start

MIXTURES = [LogitMixture(), LogitMixture(use_prior=True), LinearMixture()]


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("seed", range(3))
def test_no_temperature_is_better_where_a_mixture_was_fitted(mixture, seed):
    scores, labels, mask, start = with_start(n=120, seed=seed)
    mixed = mixture.fit_transform(scores, labels, mask=mask, start_scores=start)
    one = TemperatureScaler().fit_transform(scores, labels, mask=mask)
    assert mean_nll(mixed, labels) < mean_nll(one, labels)
    assert mixture.converged_ and mixture.start_weight_ > 0


def test_a_temperature_is_a_logit_mixture():
    scores, labels, mask, start = with_start()
    one = TemperatureScaler().fit(scores, labels, mask=mask)
    stored = {"calibrator": "mixture", "use_prior": False, "prior_": [], "prior_weight_": 0.0}
    stored |= {"tuned_weight_": 1 / one.temperature_, "start_weight_": 0.0}
    same = Calibrator.from_json(stored | {"converged_": True, "n_rows_": 400})
    np.testing.assert_allclose(
        same(scores, mask=mask, start_scores=start), one(scores, mask=mask), atol=1e-12
    )


@pytest.mark.parametrize("use_prior", [False, True])
def test_the_logit_mixture_is_the_one_another_optimiser_finds(use_prior):
    scores, labels, mask, start = with_start(n=300)
    fitted = LogitMixture(use_prior=use_prior).fit(scores, labels, mask=mask, start_scores=start)
    prior = np.exp(start) / np.exp(start).sum(-1, keepdims=True)
    if use_prior:
        np.testing.assert_allclose(fitted.prior_, prior.mean(0), rtol=1e-12)

    def nll(x):
        tuned, first = np.where(mask, scores, 0), np.where(mask, start, 0)
        mixed = x[0] * tuned + x[1] * first - use_prior * x[2] * np.log(prior.mean(0))
        mixed = np.exp(np.where(mask, mixed, -np.inf))
        return mean_nll(mixed / mixed.sum(-1, keepdims=True), labels)

    found = minimize(nll, np.array([0.5, 0.5, 0.0]), method="BFGS", options={"gtol": 1e-7})
    weights = [fitted.tuned_weight_, fitted.start_weight_, fitted.prior_weight_]
    np.testing.assert_allclose(weights, found.x, rtol=1e-4, atol=1e-4)


def test_the_linear_weight_is_the_best_of_a_grid_and_reaches_its_ends():
    scores, labels, mask, start = with_start(n=300)
    fitted = LinearMixture().fit(scores, labels, mask=mask, start_scores=start)
    tuned = TemperatureScaler().fit_transform(scores, labels, mask=mask)
    first = TemperatureScaler().fit_transform(start, labels, mask=mask)
    grid = np.linspace(0, 1, 2001)
    best = grid[np.argmin([mean_nll((1 - w) * tuned + w * first, labels) for w in grid])]
    np.testing.assert_allclose(fitted.start_weight_, best, atol=1e-3)
    np.testing.assert_allclose(
        fitted(scores, mask=mask, start_scores=start),
        (1 - fitted.start_weight_) * tuned + fitted.start_weight_ * first,
        atol=1e-12,
    )
    knows_nothing = np.where(mask, np.random.default_rng(99).normal(size=scores.shape), -np.inf)
    alone = LinearMixture().fit(scores, labels, mask=mask, start_scores=knows_nothing)
    assert alone.start_weight_ < 0.05
    same = LinearMixture().fit(scores, labels, mask=mask, start_scores=scores)
    np.testing.assert_allclose(same(scores, mask=mask, start_scores=scores), tuned, atol=1e-12)


def test_rows_without_a_mistake_are_refused():
    scores, _, mask, start = with_start()
    for mixture in MIXTURES:
        with pytest.raises(UserError, match="mixture: all 400 calibration questions"):
            type(mixture)().fit(scores, scores.argmax(-1), mask=mask, start_scores=start)
