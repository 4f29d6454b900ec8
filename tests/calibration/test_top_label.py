"""Platt and isotonic calibration against scikit-learn, and what they must not do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from cogcalib_jax.calibration import Calibrator, IsotonicCalibrator, PlattScaler
from cogcalib_jax.calibration.top_label import log_odds
from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics import InvalidRows
from tests.calibration.rows import drawn


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
    fitted = PlattScaler().fit(logprobs, correct)
    p = np.exp(logprobs)
    a, b = _sigmoid_calibration(np.log(p / (1 - p)), correct)
    np.testing.assert_allclose([fitted.slope_, fitted.intercept_], [-a, -b], rtol=1e-4, atol=1e-4)
    new = np.linspace(-30, -0.01, 50)
    wanted = 1 / (1 + np.exp(a * np.log(np.exp(new) / -np.expm1(new)) + b))
    np.testing.assert_allclose(fitted(new), wanted, atol=1e-4)


def test_platt_that_changes_nothing_changes_nothing():
    logprobs = np.array([-20.0, -1.0, -0.01])
    same = restored("platt", slope_=1.0, intercept_=0.0)
    np.testing.assert_allclose(same(logprobs), np.exp(logprobs), rtol=1e-12)
    scores, _, mask = drawn()
    raw = np.where(mask, np.exp(scores - np.logaddexp.reduce(scores, -1, keepdims=True)), 0)
    np.testing.assert_allclose(same(scores, mask=mask), raw, atol=1e-12)


def test_certain_answers_stay_finite():
    assert np.isfinite(log_odds(np.array([0.0, -1e-12, -700.0]))).all()
    fitted = PlattScaler().fit(
        np.array([0.0, 0.0, -3.0, -5.0]), np.array([True, False, True, False])
    )
    assert np.isfinite(fitted(np.array([0.0, -1e4]))).all()


def test_a_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="wieghts"):
        PlattScaler().fit(np.full(2, -2.0), np.array([True, False]), wieghts=np.ones(2))
    with pytest.raises(TypeError, match="masks"):
        restored("platt", slope_=1.0, intercept_=0.0)(np.array([-1.0]), masks=None)


def test_answers_all_equally_likely_get_their_smoothed_accuracy():
    correct = np.array([True, True, True, False])
    fitted = PlattScaler().fit(np.full(4, -2.0), correct)
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
    fitted = IsotonicCalibrator().fit(np.log(probability), correct)
    peer = IsotonicRegression(out_of_bounds="clip").fit(np.exp(np.log(probability)), correct)
    new = np.concatenate([new, probability])
    np.testing.assert_allclose(fitted(np.log(new)), peer.predict(new), atol=1e-6)
    assert len(fitted.knots_) == len(fitted.values_) <= len(set(probability))


def test_isotonic_is_linear_between_points_and_constant_beyond():
    fitted = restored("isotonic", knots_=[0.2, 0.6], values_=[0.1, 0.9])
    got = fitted(np.log([0.01, 0.2, 0.4, 0.6, 0.99]))
    np.testing.assert_allclose(got, [0.1, 0.1, 0.5, 0.9, 0.9])


@pytest.mark.parametrize("cls", [PlattScaler, IsotonicCalibrator])
@pytest.mark.parametrize(("right", "word"), [(True, "correctly"), (False, "wrongly")])
def test_one_class_is_refused_in_words(cls, right, word):
    with pytest.raises(UserError, match=f"all 5 calibration questions are answered {word}"):
        cls().fit(-np.arange(1.0, 6.0), np.full(5, right))


@pytest.mark.parametrize("cls", [PlattScaler, IsotonicCalibrator])
def test_of_options_the_top_one_is_mapped_and_the_others_share_the_rest(cls):
    scores, labels, mask = drawn()
    fitted = cls().fit(scores, labels, mask=mask)
    probs = fitted(scores, mask=mask)
    logprobs = scores - np.logaddexp.reduce(scores, -1, keepdims=True)
    rows, top = np.arange(len(scores)), scores.argmax(-1)
    alone = cls().fit(logprobs[rows, top], top == labels)
    np.testing.assert_array_equal(probs[rows, top], alone(logprobs[rows, top]))
    raw = np.where(mask, np.exp(logprobs), 0)
    raw[rows, top] = 0
    others = raw / raw.sum(-1, keepdims=True) * (1 - probs[rows, top, None])
    others[rows, top] = probs[rows, top]
    np.testing.assert_allclose(probs, others, atol=1e-12)


def test_beside_a_certain_option_the_others_share_and_an_only_option_keeps_all():
    half = restored("isotonic", knots_=[0.5, 1.0], values_=[0.5, 0.5])
    scores = np.array([[0.0, -900.0, -900.0], [0.0, 1.0, 2.0]])
    probs = half(scores, mask=np.array([3, 1]))
    np.testing.assert_allclose(probs, [[0.5, 0.25, 0.25], [1, 0, 0]])


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([np.nan, -1.0], [0, 1]),
        ([], []),
        ([-1.0, -2.0], [0, 2]),
        ([-1.0, -2.0], [1]),
        ([0.4, 0.9], [0, 1]),
    ],
)
def test_answers_that_mean_nothing_are_refused(scores, labels):
    with pytest.raises(InvalidRows):
        PlattScaler().fit(np.array(scores), np.array(labels))


def restored(name, **fitted):
    stored = {"calibrator": name, **fitted, "converged_": True, "n_rows_": 3}
    return Calibrator.from_json(stored)
