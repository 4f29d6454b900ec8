"""Temperature and vector scaling against other optimisers."""

import logging

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from cogcalib_jax.calibration import AgreementScaler, TemperatureScaler, VectorScaler
from cogcalib_jax.errors import UserError
from tests.calibration.rows import drawn, mean_nll, with_start


def log_probs(scores):
    return scores - np.logaddexp.reduce(scores, -1, keepdims=True)


def test_the_temperature_undoes_what_made_scores_too_sharp():
    scores, labels, mask = drawn(n=20_000, scale=3.0)
    fitted = TemperatureScaler().fit(scores, labels, mask=mask)
    np.testing.assert_allclose(fitted.temperature_, 3.0, rtol=0.05)
    assert fitted.converged_ and fitted.n_rows_ == 20_000 and fitted.warning is None


def test_a_temperature_at_a_bound_is_not_converged_and_is_warned_of(caplog):
    wrong = np.log(np.tile([[0.97, 0.01, 0.01, 0.01]], (10, 1)))
    package = logging.getLogger("cogcalib_jax")  # its records go no further in a test
    package.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, "cogcalib_jax.calibration"):
        fitted = TemperatureScaler().fit(wrong, [0] + [1] * 9)
    package.removeHandler(caplog.handler)
    assert not fitted.converged_
    assert "100, the upper bound" in caplog.text and "10 calibration questions" in caplog.text
    almost = np.where(np.arange(4) == 0, -1e-9, -0.05) * np.ones((1000, 1))
    almost[0] = [-1e-9, -1e-10, -0.05, -0.05]
    lower = TemperatureScaler().fit(almost, np.zeros(1000, int))
    assert not lower.converged_ and "0.01, the lower bound" in lower.warning


def test_rows_without_a_mistake_are_refused_and_leave_the_calibrator_as_it_was():
    scores, labels, mask = drawn()
    fitted = TemperatureScaler().fit(scores, labels, mask=mask)
    before = fitted.to_json()
    with pytest.raises(UserError, match="temperature: all 400 calibration questions"):
        fitted.fit(scores, scores.argmax(-1), mask=mask)
    assert fitted.to_json() == before


def test_of_two_options_the_vector_is_a_logistic_regression():
    scores, labels, _ = drawn(n=600, options=2, scale=2.0, short=False)
    fitted = VectorScaler(l2=0.0).fit(scores, labels)
    z = log_probs(scores)
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    peer.fit(np.stack([-z[:, 0], z[:, 1]], 1), labels)
    np.testing.assert_allclose(fitted.scale_, peer.coef_[0], rtol=1e-4)
    difference = fitted.bias_[1] - fitted.bias_[0]
    np.testing.assert_allclose(difference, peer.intercept_[0], rtol=1e-4, atol=1e-4)
    probs = peer.predict_proba(np.stack([-z[:, 0], z[:, 1]], 1))
    np.testing.assert_allclose(fitted(scores), probs, atol=1e-4)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_the_vector_is_the_one_another_optimiser_finds(l2):
    scores, labels, mask = drawn(n=300)
    fitted = VectorScaler(l2=l2).fit(scores, labels, mask=mask)
    z = np.where(mask, log_probs(scores), 0)
    wanted = np.repeat([1.0, 0.0], 4)

    def loss(x):
        made = log_probs(np.where(mask, x[:4] * z + x[4:], -np.inf))
        return -made[np.arange(300), labels].mean() + l2 / 2 * np.sum((x - wanted) ** 2)

    found = minimize(loss, wanted, method="BFGS", options={"gtol": 1e-7})
    made = np.where(mask, found.x[:4] * z + found.x[4:], -np.inf)
    np.testing.assert_allclose(fitted(scores, mask=mask), np.exp(log_probs(made)), atol=1e-5)
    assert loss(np.concatenate([fitted.scale_, fitted.bias_])) <= found.fun + 1e-10


def test_a_vector_is_at_least_as_good_as_a_temperature_where_it_was_fitted():
    scores, labels, mask = drawn(n=150, seed=4)
    best = VectorScaler(l2=0.0).fit_transform(scores, labels, mask=mask)
    one = TemperatureScaler().fit_transform(scores, labels, mask=mask)
    assert mean_nll(best, labels) <= mean_nll(one, labels)


def test_without_l2_a_vector_that_has_no_best_fit_is_refused():
    scores, labels, _ = drawn(n=60, short=False)
    with pytest.raises(UserError, match="an option is right in none of the 60"):
        VectorScaler(l2=0.0).fit(scores, np.where(labels == 3, 0, labels))
    with pytest.raises(UserError, match="all 60 calibration questions are answered correctly"):
        VectorScaler(l2=0.0).fit(scores, scores.argmax(-1))
    assert VectorScaler().fit(scores, scores.argmax(-1)).converged_
    with pytest.raises(ValueError, match="l2 is -1; expected a number of at least 0"):
        VectorScaler(l2=-1.0).fit(scores, labels)


def test_daca_is_the_temperature_nearest_to_the_start_where_both_agree():
    scores, labels, mask, start = with_start(n=300)
    fitted = AgreementScaler().fit(scores, mask=mask, start_scores=start)
    agree = scores.argmax(-1) == start.argmax(-1)
    target = np.exp(log_probs(start[agree]))

    def divergence(log_t):
        log_p = log_probs(scores[agree] / np.exp(log_t))
        log_q = np.log(np.maximum(target, 1e-300))
        return (target * np.where(mask[agree], log_q - log_p, 0)).sum(-1).mean()

    found = minimize(lambda x: divergence(x[0]), [0.0], method="Nelder-Mead", tol=1e-9)
    np.testing.assert_allclose(fitted.temperature_, np.exp(found.x[0]), rtol=1e-5)
    np.testing.assert_allclose(fitted.agreement_, agree.mean())
    # Neither labels nor questions without agreement have a say.
    other = np.where(agree[:, None], start, start * 9)
    again = AgreementScaler().fit(scores, 1 - labels % 2, mask=mask, start_scores=other)
    assert again.temperature_ == fitted.temperature_
    assert fitted.fit(scores, mask=mask, start_scores=start).temperature_ == again.temperature_


def test_daca_refuses_a_model_that_never_agrees_with_its_start():
    with pytest.raises(UserError, match="agree on none of 2 questions"):
        AgreementScaler().fit(np.eye(2, 3), start_scores=-np.eye(2, 3))
