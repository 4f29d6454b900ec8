"""Checks of the rows that a metric gets, in float64 and padded.

Metrics run in float64 on the CPU, whatever accelerator trains the model, since they are compared
with other float64 implementations. JAX's global configuration is left alone.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cogcalib_jax.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A float32 softmax may return 1 + 6e-8.
PROBABILITY_SLACK = 1e-6
# Sums of bfloat16 probabilities miss 1 by a few thousandths; unnormalised scores miss it by more.
SUM_SLACK = 1e-2

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class InvalidRows(UserError, ValueError):
    """Rows from which no metric can be computed; the message names the first bad row."""


def cpu_float64(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Run `function` with 64-bit types on this process's CPU device."""

    @functools.wraps(function)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            return function(*args, **kwargs)

    return run


def padded_length(rows: int) -> int:
    """Return the next of 64, 128, ... 512, 640, 768, 896, 1024, 1280, ...: four sizes an octave.

    Padded rows have weight 0. Fixed sizes save a compilation of every metric for every number of
    rows, and waste at most a quarter of the work.
    """
    step = 64
    while rows > 8 * step:
        step *= 2
    return -(-rows // step) * step


def pad_rows(values: NDArray) -> NDArray:
    """Return `values` with zeros appended along axis 0 up to `padded_length`."""
    missing = padded_length(len(values)) - len(values)
    return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))


def _refuse(bad: NDArray[np.bool_], values: NDArray, name: str, requirement: str) -> None:
    """Raise InvalidRows for the first row in which `bad` [rows, ...] is true."""
    if not bad.any():
        return
    row, *column = (int(i) for i in np.argwhere(bad)[0])
    where = f"row {row}" + (f", option {column[0]}" if column else "")
    raise InvalidRows(f"{name}, {where}: {values[tuple([row, *column])]} {requirement}")


def as_numbers(values: ArrayLike, name: str) -> FloatArray:
    """Return `values` as float64 (InvalidRows: texts, dates, complex numbers, rows of different
    lengths, masked entries)."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in "cSUMm":
            raise TypeError(f"{array.dtype} is no real number")
        if np.ma.is_masked(values):
            raise ValueError("some entries are masked")
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRows(f"{name} must be an array of numbers ({reason:.100})") from error


def check_probabilities(values: ArrayLike, name: str, ndim: int) -> FloatArray:
    """Return `values` as float64 in [0, 1], with `ndim` axes and at least one row."""
    array = as_numbers(values, name)
    if array.ndim != ndim:
        raise InvalidRows(f"{name} has shape {array.shape}: expected {ndim} axes, rows first")
    if len(array) == 0:
        raise InvalidRows(f"{name} has no rows: a metric needs at least one")
    # NaN is refused, too: every comparison with it is false.
    inside = (array >= -PROBABILITY_SLACK) & (array <= 1 + PROBABILITY_SLACK)
    _refuse(~inside, array, name, "is not a probability (must be a number from 0 to 1)")
    return np.clip(array, 0.0, 1.0)


def check_correct(correct: ArrayLike) -> FloatArray:
    """Return correctness [rows] as float64 0 and 1."""
    hits = check_probabilities(correct, "correct", 1)
    _refuse((hits != 0) & (hits != 1), hits, "correct", "is neither 0 nor 1")
    return hits


def check_confidence(confidence: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return confidence [rows] and correctness [rows] as float64."""
    confidence = check_probabilities(confidence, "confidence", 1)
    hits = check_correct(correct)
    if len(hits) != len(confidence):
        raise InvalidRows(f"confidence has {len(confidence)} rows and correct has {len(hits)}")
    return confidence, hits


def cluster_numbers(clusters: ArrayLike | None, rows: int) -> IntArray | None:
    """Return clusters [rows] numbered from 0 by first appearance of their labels, which can be
    sorted; None if no two rows share one."""
    if clusters is None:
        return None
    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        raise InvalidRows(f"clusters have shape {labels.shape}: expected {(rows,)}, one a row")
    if labels.dtype == object:
        missing = np.array([_is_missing(label) for label in labels])
        labels = labels.astype(str)
    else:
        missing = labels != labels  # NaN, NaT
    _refuse(missing, labels, "clusters", "is missing: every row needs a label")
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    if len(first) == rows:
        return None
    return np.argsort(np.argsort(first))[inverse]


def _is_missing(label: Any) -> bool:
    """Return whether a label is None, NaN, or what pandas has in its place."""
    try:
        return label is None or bool(label != label)
    except TypeError:  # pandas.NA
        return True


def check_mask(option_mask: ArrayLike, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask [rows, options] of options that exist, from a mask or from counts [rows]."""
    mask = as_numbers(option_mask, "option_mask")
    if mask.shape == shape[:1]:
        counts = mask
        whole = (counts % 1 == 0) & (counts >= 1) & (counts <= shape[1])
        _refuse(~whole, counts, "option count", f"is no whole number in 1..{shape[1]}")
        return np.arange(shape[1]) < counts[:, None]
    if mask.shape != shape:
        raise InvalidRows(
            f"option_mask has shape {mask.shape}: expected {shape}, or option counts {shape[:1]}"
        )
    _refuse((mask != 0) & (mask != 1), mask, "option_mask", "is neither 0 nor 1")
    mask = mask != 0
    _refuse(~mask.any(axis=1), mask.sum(axis=1), "option_mask", "options exist: a row needs one")
    return mask


def check_options(
    option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike, *, complete: bool = True
) -> tuple[FloatArray, NDArray[np.bool_], IntArray]:
    """Return probabilities [rows, options], mask [rows, options] and answers [rows], checked.

    Options that do not exist must have probability 0. With `complete` the options of a row must sum
    to 1, otherwise to at most 1: the rest belongs to strings that are no option.
    """
    name = "option_probs" if complete else "vocab_option_probs"
    probs = check_probabilities(option_probs, name, 2)
    mask = check_mask(option_mask, probs.shape)
    _refuse(~mask & (probs != 0), probs, name, "is given to an option that does not exist")
    total = probs.sum(axis=1)
    too_much = total > 1 + SUM_SLACK
    too_little = complete & (total < 1 - SUM_SLACK)
    _refuse(
        too_much | too_little, total, f"sum of {name}", f"is not {'' if complete else 'at most '}1"
    )
    return probs, mask, check_answers(answers, mask)


def check_answers(answers: ArrayLike, mask: NDArray[np.bool_], name: str = "answers") -> IntArray:
    """Return the option indices [rows] as int64; each must exist in mask [rows, options]."""
    answers = np.asarray(answers)
    if answers.shape != mask.shape[:1]:
        raise InvalidRows(f"{name} has shape {answers.shape}: expected {mask.shape[:1]}")
    if not np.issubdtype(answers.dtype, np.integer):
        raise InvalidRows(f"{name} has dtype {answers.dtype}: expected integer option indices")
    _refuse((answers < 0) | (answers >= mask.shape[1]), answers, name, "is no option's index")
    exists = mask[np.arange(len(mask)), answers]
    _refuse(~exists, answers, name, "is the index of an option that does not exist")
    return answers.astype(np.int64)


def check_scores(scores: ArrayLike, name: str, mask: ArrayLike | None) -> FloatArray:
    """Return scores [rows, options] as float64, -inf for options that do not exist.

    Args:
        scores: [rows, options], finite for options that exist.
        name: for messages.
        mask: bool [rows, options], or the number of options of each row [rows]; None: all exist.
    """
    values = as_numbers(scores, name)
    if values.ndim != 2 or 0 in values.shape:
        raise InvalidRows(
            f"{name} has shape {values.shape}: expected [rows, options], at least one"
        )
    exists = np.ones(values.shape, bool) if mask is None else check_mask(mask, values.shape)
    _refuse(exists & ~np.isfinite(values), values, name, "is not a finite number")
    return np.where(exists, values, -np.inf)
