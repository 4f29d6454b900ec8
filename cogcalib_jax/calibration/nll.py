"""The negative log-likelihood of option scores, and the convex fits that minimise it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from cogcalib_jax.calibration.base import OptionRows, refuse_without_mistake
from cogcalib_jax.metrics.checks import FloatArray

# log-temperatures: 1/100 to 100.
LOG_RANGE = np.log(100.0)


def softmax(scores: FloatArray) -> FloatArray:
    """Probabilities `[n, k]` of scores `[n, k]`; 0 where a score is -inf."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def log_softmax(scores: FloatArray) -> FloatArray:
    """Log-probabilities `[n, k]` of scores `[n, k]`; -inf where a score is -inf."""
    return scores - np.logaddexp.reduce(scores, -1, keepdims=True)


def best_temperature(rows: OptionRows, name: str = "temperature") -> float:
    """Return the temperature that minimises the mean NLL of `rows` (Guo et al. 2017, section 4.2).

    The NLL is convex in 1 / T, so the bounded search over log T, from 1/100 to 100, has one
    minimum. Rows that are answered without a mistake have none; UserError is raised, with `name`
    before it.
    """
    scores = rows.scores
    right = rows.of_labels(scores)
    if np.all(right >= scores.max(-1)):
        raise refuse_without_mistake(name, len(scores))

    def nll(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        highest = scaled.max(-1)
        log_sum = highest + np.log(np.exp(scaled - highest[:, None]).sum(-1))
        return float(np.mean(log_sum - rows.of_labels(scaled)))

    found = minimize_scalar(
        nll, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))


def minimise_nll(
    rows: OptionRows,
    scores: Callable[[FloatArray], FloatArray],
    pull_back: Callable[[FloatArray], FloatArray],
    start: FloatArray,
    l2: float = 0.0,
) -> tuple[FloatArray, bool]:
    """Minimise mean NLL + l2 / 2 |x - start|^2 over x `[p]`, for scores that are linear in x.

    Args:
        scores: from x to scores `[n, k]`, finite wherever an option exists.
        pull_back: from the gradient by those scores `[n, k]` to that by x `[p]`.
        start: `[p]`, where the search begins, and what `l2` pulls towards.

    Returns:
        x, and whether the gradient there is 0 to seven digits.
    """
    chosen = np.zeros(rows.scores.shape)
    chosen[np.arange(len(chosen)), rows.labels] = 1.0

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        made = np.where(rows.mask, scores(x), -np.inf)
        off = x - start
        value = -np.mean(rows.of_labels(log_softmax(made))) + l2 / 2 * (off @ off)
        gradient = (softmax(made) - chosen) / len(made)
        return float(value), pull_back(gradient) + l2 * off

    settings = {"gtol": 1e-10, "ftol": 0.0, "maxiter": 5000, "maxfun": 20000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=settings)
    return found.x, bool(np.abs(loss(found.x)[1]).max() < 1e-7)
