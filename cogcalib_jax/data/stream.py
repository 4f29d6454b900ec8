"""The endless stream of training batches, and work ahead in a thread.

The rows of a batch are a pure function of (seed, step): resuming needs no iterator state, and every
host of a run finds the same rows from their lengths alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from cogcalib_jax.data.batching import (
    Batch,
    length_buckets,
    make_batch,
    make_questions,
    make_trees,
    prompt_lengths,
    without_answers,
)
from cogcalib_jax.data.example import Encoded, EncodedSplit

# Wanted share of real tokens. Rows are sorted by length within windows of a permutation; the
# smallest window that reaches the share is taken, so that batches stay random. Measured on
# OpenBookQA (letters, Qwen2.5's tokenizer, batch of 8, 12 padded lengths): .65 without order,
# .88 / .92 / .94 with windows of 64 / 128 / 256 rows.
WANTED_REAL_TOKENS = 0.92
WINDOWS = (64, 128, 256, 512, 1024)
# The numbers of padded lengths that a stream chooses from.
SHAPES = (1, 2, 3, 4, 6, 8, 12)
# One result to hand out and one being computed: more would only hold more batches in memory.
AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Endless:
    """Row numbers of batches, one permutation of a split after the other."""

    def __init__(
        self,
        encoded: Sequence[Encoded],
        lengths: np.ndarray,
        seed: int,
        batch_size: int,
        option_score: str | None,
    ):
        """lengths: of the rows without their other options; others as for `TrainStream`."""
        if not encoded:
            raise ValueError("a training batch needs at least one row")
        self._split = EncodedSplit.of(encoded)
        self._seed, self._size, self._option_score = seed, batch_size, option_score
        self._lengths = self._split.tree_lengths if option_score is not None else lengths
        self._orders: dict[int, np.ndarray] = {}

    def rows(self, step: int) -> list[int]:
        """Return the row numbers of the batch of `step`."""
        n = len(self._split)
        first = step * self._size
        return [
            int(self._order(position // n)[position % n])
            for position in range(first, first + self._size)
        ]

    def real_tokens(self, step: int) -> int:
        """Return the tokens of the batch of `step` without padding."""
        return int(self._lengths[self.rows(step)].sum())

    def _order(self, epoch: int) -> np.ndarray:
        """Return the row numbers `[rows]` of an epoch."""
        # Two epochs meet in one batch, so two are kept.
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = self._arranged(epoch)
        return self._orders[epoch]

    def _arranged(self, epoch: int) -> np.ndarray:
        raise NotImplementedError


class TrainStream(_Endless):
    """Batches of a split, one permutation of it after the other.

    Every row occurs exactly once per epoch; a batch may hold the end of one epoch and the start of
    the next. Within an epoch, rows of similar length share a batch (see `WANTED_REAL_TOKENS`), and
    the batches come in random order.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        seed: int,
        batch_size: int,
        *,
        steps: int | None = None,
        tokens_per_shape: float = 0.0,
        multiple: int = 1,
        option_score: str | None = None,
    ):
        """Choose the padded lengths.

        Args:
            encoded: the split (ValueError if it has no rows).
            steps: the number of updates; None: one epoch.
            tokens_per_shape: how many tokens are computed in the time that a further padded length
                takes to compile.
            multiple: every padded length is a multiple of this.
            option_score: the rule that scores options, for rows with all their options; None: rows
                with the right answer alone.
        """
        answers = [len(e.prompt_ids) + len(e.completion_ids[e.answer]) - 1 for e in encoded]
        super().__init__(encoded, np.array(answers, np.int32), seed, batch_size, option_score)
        tokens = (steps or -(-len(encoded) // batch_size)) * self._lengths.mean() * batch_size
        longest = {window: self._longest_in_first_epoch(window) for window in (0, *WINDOWS)}
        found = []
        for shapes in SHAPES:
            window, buckets, share = self._fitted(longest, shapes, multiple)
            found.append((tokens / share + tokens_per_shape * len(buckets), window, buckets))
            if len(buckets) < shapes:
                break
        _, window, self.buckets = min(found)
        self._set_window(window)

    def padded_length(self, step: int) -> int:
        """Return the padded length of the batch of `step`."""
        longest = int(self._lengths[self.rows(step)].max())
        return min(bucket for bucket in self.buckets if bucket >= longest)

    def batch(self, step: int, part: Sequence[int] | None = None) -> Batch:
        """Return the batch of `step`, or the rows of it at the positions `part`, for one host."""
        rows = self.rows(step)
        if part is not None:
            rows = [rows[position] for position in part]
        buckets, answer_axis = (self.padded_length(step),), self._split.answer_tokens
        if self._option_score is not None:
            return make_trees(self._split, rows, len(rows), buckets, self._option_score)
        picks = [(row, self._split[row].answer) for row in rows]
        return make_batch(self._split, picks, len(picks), buckets, answer_axis)

    def _arranged(self, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
        n = len(self._split)
        order = rng.permutation(n)
        if not self._window:
            return order
        # The batches that this epoch shares with its neighbours keep their rows as drawn.
        head = -epoch * n % self._size
        tail = max(head, n - (epoch + 1) * n % self._size)
        if tail <= head:
            return order
        middle = order[head:tail]
        for start in range(0, len(middle), self._window):
            window = middle[start : start + self._window]
            middle[start : start + self._window] = window[
                np.argsort(self._lengths[window], kind="stable")
            ]
        batches = middle.reshape(-1, self._size)
        return np.concatenate([order[:head], rng.permutation(batches).ravel(), order[tail:]])

    def _set_window(self, window: int) -> None:
        self._window = window // self._size * self._size
        self._orders.clear()

    def _fitted(
        self, longest: dict[int, np.ndarray], shapes: int, multiple: int
    ) -> tuple[int, tuple[int, ...], float]:
        """Return a window with its padded lengths and its share of real tokens in the first epoch:
        the smallest that reaches the wanted share, or else the one with the largest.

        longest: the length of the longest row of every batch, by window.
        """
        best = 0, (), 0.0
        sizes = np.minimum(
            self._size, len(self._split) - np.arange(0, len(self._split), self._size)
        )
        for window, ends in longest.items():
            buckets = length_buckets([*ends, self._lengths.max()], shapes, multiple)
            padded = np.array(buckets)[np.searchsorted(buckets, ends)]
            share = float(self._lengths.sum() / (padded * sizes).sum())
            if share > best[-1]:
                best = window, buckets, share
            if share >= WANTED_REAL_TOKENS:
                break
        return best

    def _longest_in_first_epoch(self, window: int) -> np.ndarray:
        self._set_window(window)
        order = self._order(0)
        return np.maximum.reduceat(self._lengths[order], np.arange(0, len(order), self._size))


class AnchorStream(_Endless):
    """Batches of questions without answers, in an order of their own.

    All have one padded length: each further one would compile the update again for every padded
    length of the training rows.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        seed: int,
        batch_size: int,
        *,
        multiple: int = 1,
        option_score: str | None = None,
    ):
        """Choose the padded length; arguments as for `TrainStream`."""
        super().__init__(encoded, prompt_lengths(encoded), seed, batch_size, option_score)
        (self.padded_length,) = length_buckets(self._lengths, 1, multiple)

    def batch(self, step: int, part: Sequence[int]) -> Batch:
        """Return the questions of `step` at the positions `part`."""
        rows = self.rows(step)
        rows, buckets = [rows[position] for position in part], (self.padded_length,)
        if self._option_score is None:
            return make_questions(self._split, rows, len(rows), buckets)
        return without_answers(
            make_trees(self._split, rows, len(rows), buckets, self._option_score)
        )

    def _arranged(self, epoch: int) -> np.ndarray:
        # The last number makes this order differ from that of as many training rows.
        entropy = np.random.SeedSequence([self._seed, epoch, 1])
        return np.random.Generator(np.random.Philox(entropy)).permutation(len(self._split))


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Result]:
    """Yield `function` of each item, in order, computed ahead in a thread.

    An exception of `function` is raised in place of its result. Leaving the iterator early ends the
    thread after the running call.

    ahead: results that are computed before they are asked for.
    """
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(remaining, ahead))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
