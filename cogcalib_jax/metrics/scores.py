"""Accuracy, confidence and the proper scores, from probabilities over options.

In the vocabulary space the options' probabilities sum to less than 1; the rest is one more class,
"other", which is never the answer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    check_correct,
    check_options,
    check_probabilities,
    cpu_float64,
    pad_rows,
)


class TopLabel(NamedTuple):
    """The most probable option of each row."""

    prediction: IntArray
    """[rows] option index; the first of several equally probable ones."""
    confidence: FloatArray
    """[rows] its probability."""
    correct: FloatArray
    """[rows] 1 where it is the answer, else 0."""


def top_label(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> TopLabel:
    """Prediction, confidence and correctness of each row."""
    probs, mask, answers = check_options(option_probs, option_mask, answers)
    # -1 where no option exists: a row of padded zeros must not win against real zeros.
    prediction = np.where(mask, probs, -1.0).argmax(axis=1)
    confidence = probs[np.arange(len(probs)), prediction]
    return TopLabel(prediction, confidence, (prediction == answers).astype(np.float64))


@cpu_float64
def accuracy(correct: ArrayLike) -> float:
    """Share of correct rows."""
    return float(jnp.mean(check_correct(correct)))


@cpu_float64
def mean_confidence(confidence: ArrayLike) -> float:
    """Mean confidence; above the accuracy means overconfident on average."""
    return float(jnp.mean(check_probabilities(confidence, "confidence", 1)))


def _smallest_positive(probs: ArrayLike) -> float:
    """What a probability of 0 is read as: the smallest normal number of the type it came in."""
    dtype = np.asarray(probs).dtype
    # JAX's, for NumPy does not know that bfloat16 is a float.
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64).tiny)


@jax.jit
def _nll_rows(probs: jax.Array, answers: jax.Array, smallest: jax.Array) -> jax.Array:
    of_answer = jnp.take_along_axis(probs, answers[:, None], axis=1)[:, 0]
    return -jnp.log(jnp.maximum(of_answer, smallest))


@jax.jit
def _brier_rows(probs: jax.Array, answers: jax.Array) -> jax.Array:
    return jnp.sum(
        (probs - jax.nn.one_hot(answers, probs.shape[1], dtype=probs.dtype)) ** 2, axis=1
    )


@cpu_float64
def _nll_of_rows(probs: FloatArray, answers: IntArray, smallest: float) -> FloatArray:
    padded = _nll_rows(pad_rows(probs), pad_rows(answers), smallest)
    return np.asarray(padded)[: len(probs)]


@cpu_float64
def _brier_of_rows(probs: FloatArray, answers: IntArray) -> FloatArray:
    return np.asarray(_brier_rows(pad_rows(probs), pad_rows(answers)))[: len(probs)]


def _with_other(probs: FloatArray) -> FloatArray:
    """Append the probability of everything that is no option: [rows, options + 1]."""
    other = np.maximum(1 - probs.sum(axis=1, keepdims=True), 0.0)
    return np.concatenate([probs, other], axis=1)


def nll_per_row(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> FloatArray:
    """-log of the answer's probability [rows], in nats; finite, see `docs/metrics.md`."""
    probs, _, answers = check_options(option_probs, option_mask, answers)
    return _nll_of_rows(probs, answers, _smallest_positive(option_probs))


def brier_per_row(
    option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike
) -> FloatArray:
    """Multiclass Brier score [rows] in the sum form, from 0 to 2 (Brier 1950)."""
    probs, _, answers = check_options(option_probs, option_mask, answers)
    return _brier_of_rows(probs, answers)


def vocab_nll_per_row(
    vocab_option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike
) -> FloatArray:
    """NLL [rows] over the options and "other": -log of the answer's vocabulary probability.

    Args:
        vocab_option_probs: [rows, options], summing to at most 1; the rest belongs to "other".
    """
    probs, _, answers = check_options(vocab_option_probs, option_mask, answers, complete=False)
    return _nll_of_rows(probs, answers, _smallest_positive(vocab_option_probs))


def vocab_brier_per_row(
    vocab_option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike
) -> FloatArray:
    """Multiclass Brier score [rows] over the options and "other", which is never the answer."""
    probs, _, answers = check_options(vocab_option_probs, option_mask, answers, complete=False)
    return _brier_of_rows(_with_other(probs), answers)


def nll(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> float:
    """Mean of `nll_per_row`."""
    return float(nll_per_row(option_probs, option_mask, answers).mean())


def brier(option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike) -> float:
    """Mean of `brier_per_row`."""
    return float(brier_per_row(option_probs, option_mask, answers).mean())
