"""The bootstrap by counts: a resample is the number of times that each row was drawn.

Rows are sorted once; a statistic is a weighted reduction over rows in that order. Resamples are
processed in chunks to bound the memory.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    InvalidRows,
    check_confidence,
    cluster_numbers,
    cpu_float64,
    pad_rows,
    padded_length,
)

# Counts in a chunk (rows x resamples). With 1,000,000 rows one resample at a time is a third faster
# than sixteen, whose temporaries leave the cache (measured).
_CHUNK_ELEMENTS = 2**20


def count_chunks(
    rows: int, resamples: int, rng: np.random.Generator, clusters: IntArray | None = None
) -> Iterator[NDArray]:
    """Yield int32 counts [chunk, padded rows] of one shape; lines beyond `resamples` are 0.

    A resample draws as many rows as there are. With `clusters` [rows] (`cluster_numbers`) it draws
    as many clusters as there are, and takes all rows of each.
    """
    if resamples < 1:
        raise InvalidRows(f"resamples is {resamples}: must be at least 1")
    width = padded_length(rows)
    units = rows if clusters is None else int(clusters.max()) + 1
    chunk = min(resamples, max(1, _CHUNK_ELEMENTS // width))
    for start in range(0, resamples, chunk):
        counts = np.zeros((chunk, width), np.int32)
        for i in range(min(chunk, resamples - start)):
            # 4 ms for 1,000,000 rows; JAX's threefry alone takes 24.
            drawn = rng.integers(0, units, units, dtype=np.uint32)
            if clusters is None:
                counts[i] = np.bincount(drawn, minlength=width)
            else:
                counts[i, :rows] = np.bincount(drawn, minlength=units)[clusters]
        yield counts


def over_resamples(
    statistic: Callable[[NDArray], jax.Array],
    rows: int,
    resamples: int,
    seed: int,
    clusters: IntArray | None = None,
) -> FloatArray:
    """Return `statistic` (counts [chunk, padded rows] -> [chunk, ...]) of all resamples."""
    rng = np.random.default_rng([seed, 1])
    values: list[NDArray] = []
    running: NDArray | jax.Array | None = None
    # JAX computes one chunk while NumPy draws the next.
    for counts in count_chunks(rows, resamples, rng, clusters):
        started = statistic(counts)
        if running is not None:
            values.append(np.asarray(running))
        running = started
    return np.concatenate([*values, np.asarray(running)])[:resamples]


def tie_groups(ordered: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last index of the run of equal values around each sorted row."""
    starts = np.flatnonzero(np.diff(ordered, prepend=np.nan) != 0)
    lengths = np.diff(starts, append=len(ordered))
    return np.repeat(starts, lengths), np.repeat(starts + lengths - 1, lengths)


@jax.jit
def weighted_mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the means [chunk, columns] of values [rows, columns] under counts [chunk, rows]."""
    weights = counts.astype(jnp.float64)
    return weights @ values / weights.sum(axis=1, keepdims=True)


@jax.jit
def weighted_auroc(
    correct: jax.Array, first: jax.Array, last: jax.Array, counts: jax.Array
) -> jax.Array:
    """Return the tie-corrected AUROC [chunk] of rows sorted by confidence; NaN if all are equal.

    Args:
        correct: [rows] 0 or 1.
        first, last: [rows] `tie_groups`.
        counts: [chunk, rows] int32.
    """
    # Integers are exact, with half the memory traffic of float64. "clip" saves the bounds checks.
    hit = correct.astype(jnp.int32)
    right, wrong = counts * hit, counts * (1 - hit)
    up_to_row = jnp.cumsum(wrong, axis=1)
    # A correct row wins over the wrong rows below its tie group, and over half of those in it.
    below = jnp.take(up_to_row - wrong, first, axis=1, mode="clip")
    below_or_tied = jnp.take(up_to_row, last, axis=1, mode="clip")
    wins = (right * ((below.astype(jnp.float64) + below_or_tied) / 2)).sum(axis=1)
    return wins / (right.sum(axis=1, dtype=jnp.float64) * wrong.sum(axis=1, dtype=jnp.float64))


@jax.jit
def weighted_ece(gap: jax.Array, bin_of_row: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the ECE [chunk] under counts [chunk, rows].

    Args:
        gap: [rows] confidence - correct.
        bin_of_row: [rows, bins] one-hot.
        counts: [chunk, rows] int32.
    """
    weights = counts.astype(jnp.float64)
    per_bin = weights @ (bin_of_row * gap[:, None])
    return jnp.abs(per_bin).sum(axis=1) / weights.sum(axis=1)


def on_device(values: NDArray) -> jax.Array:
    """Return padded rows as a JAX array, which is copied once and not for every chunk."""
    return jnp.asarray(pad_rows(values))


def sorted_for_auroc(
    confidence: FloatArray, correct: FloatArray
) -> tuple[NDArray, jax.Array, jax.Array, jax.Array]:
    """Return the order of rows by confidence, and the arguments of `weighted_auroc`, padded."""
    order = np.argsort(confidence, kind="stable")
    first, last = tie_groups(confidence[order])
    return order, on_device(correct[order]), on_device(first), on_device(last)


def percentile_interval(values: FloatArray, level: float) -> list[float] | None:
    """Return the percentile interval of the values that are not NaN; None if all are."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return None
    return [float(v) for v in np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])]


@cpu_float64
def bootstrap_intervals(
    confidence: ArrayLike,
    correct: ArrayLike,
    means_of: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float] | None]:
    """Return percentile bootstrap intervals over rows (Efron 1979) of AUROC and of means.

    Not for calibration errors: they are biased upwards, and resampling adds that bias once more.

    Args:
        confidence: [rows] probabilities.
        correct: [rows] of 0 and 1.
        means_of: name -> finite values [rows], such as the rows' NLL.
        clusters: [rows] labels; rows with one label (repeats of a question) are drawn together.
            None: every row by itself.
        resamples: number of resamples.
        seed: of the resampling.
        level: nominal coverage.

    Returns:
        [low, high] for "accuracy", "confidence", "auroc" and every name of `means_of`; None for
        AUROC if every resample has one class only.
    """
    confidence, correct = check_confidence(confidence, correct)
    columns = {"accuracy": correct, "confidence": confidence}
    columns |= {name: np.asarray(values, np.float64) for name, values in means_of.items()}
    for name, values in columns.items():
        if values.shape != confidence.shape or not np.isfinite(values).all():
            raise InvalidRows(f"{name}: expected {len(confidence)} finite values, one a row")
    # Sorted by every column, so that the interval does not depend on the order of the rows.
    order = np.lexsort([*reversed(columns.values()), confidence])
    table = np.stack([values[order] for values in columns.values()], axis=1)
    numbers = cluster_numbers(clusters, len(confidence))
    if numbers is not None:
        numbers = cluster_numbers(numbers[order], len(order))
    _, hits, first, last = sorted_for_auroc(confidence[order], correct[order])
    table = on_device(table)

    def statistics(counts: NDArray) -> jax.Array:
        auroc = weighted_auroc(hits, first, last, counts)
        return jnp.concatenate([weighted_mean(table, counts), auroc[:, None]], axis=1)

    values = over_resamples(statistics, len(confidence), resamples, seed, numbers)
    names = [*columns, "auroc"]
    return {name: percentile_interval(values[:, i], level) for i, name in enumerate(names)}
