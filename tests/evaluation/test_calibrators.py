"""Platt and isotonic calibration against scikit-learn, and what they must not do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.calibrators import (
    Isotonic,
    Platt,
    fit_isotonic,
    fit_platt,
    log_odds,
)


def answers(n=300, seed=0, sharpness=0.4):
    """Log-probabilities of long answers, right far more often than their probability says."""
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(4, n)
    return logprobs, rng.random(n) < np.exp(sharpness * logprobs)


@pytest.mark.parametrize(
    "data",
    [
        answers(),
        answers(seed=1, n=40, sharpness=2.0),
        # Separable: without smoothed targets the slope would grow for ever.
        (np.array([-9.0, -8.0, -7.0, -1.0, -0.5]), np.array([False, False, False, True, True])),
        # Upside down.
        (-np.arange(1.0, 9.0), np.arange(8) > 5),
    ],
)
def test_platt_equals_scikit_learns_sigmoid(data):
    logprobs, correct = data
    fitted = fit_platt(logprobs, correct)
    p = np.exp(logprobs)
    a, b = _sigmoid_calibration(np.log(p / (1 - p)), correct)
    np.testing.assert_allclose([fitted.slope, fitted.intercept], [-a, -b], rtol=1e-4, atol=1e-4)
    new = np.linspace(-30, -0.01, 50)
    wanted = 1 / (1 + np.exp(a * np.log(np.exp(new) / -np.expm1(new)) + b))
    np.testing.assert_allclose(fitted(new), wanted, atol=1e-4)


def test_platt_that_changes_nothing_changes_nothing():
    logprobs = np.array([-20.0, -1.0, -0.01])
    np.testing.assert_allclose(Platt(1.0, 0.0)(logprobs), np.exp(logprobs), rtol=1e-12)


def test_certain_answers_stay_finite():
    assert np.isfinite(log_odds(np.array([0.0, -1e-12, -700.0]))).all()
    fitted = fit_platt(np.array([0.0, 0.0, -3.0, -5.0]), np.array([True, False, True, False]))
    assert np.isfinite(fitted(np.array([0.0, -1e4]))).all()


def test_answers_all_equally_likely_get_their_smoothed_accuracy():
    correct = np.array([True, True, True, False])
    fitted = fit_platt(np.full(4, -2.0), correct)
    target = (3 * 4 / 5 + 1 / 3) / 4
    np.testing.assert_allclose(fitted(np.array([-2.0])), target, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=2, max_size=40),
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=10),
)
def test_isotonic_equals_scikit_learns_with_ties_and_beyond_its_ends(rows, new):
    probability = np.array([k / 15 for k, _ in rows])
    correct = np.array([right for _, right in rows])
    if correct.all() or not correct.any():
        return
    fitted = fit_isotonic(np.log(probability), correct)
    peer = IsotonicRegression(out_of_bounds="clip").fit(np.exp(np.log(probability)), correct)
    new = np.concatenate([new, probability])
    np.testing.assert_allclose(fitted(np.log(new)), peer.predict(new), atol=1e-6)
    assert len(fitted.knots) == len(fitted.values) <= len(set(probability))


def test_isotonic_is_linear_between_points_and_constant_beyond():
    fitted = Isotonic((0.2, 0.6), (0.1, 0.9))
    got = fitted(np.log([0.01, 0.2, 0.4, 0.6, 0.99]))
    np.testing.assert_allclose(got, [0.1, 0.1, 0.5, 0.9, 0.9])


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
@pytest.mark.parametrize(("right", "word"), [(True, "correctly"), (False, "wrongly")])
def test_one_class_is_refused_in_words(fit, right, word):
    with pytest.raises(UserError, match=f"all 5 calibration questions are answered {word}"):
        fit(-np.arange(1.0, 6.0), np.full(5, right))
