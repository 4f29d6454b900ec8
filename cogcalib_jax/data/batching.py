"""Encoded rows as padded arrays.

Padded lengths come from a few buckets, and every other axis is fixed for a whole split, so a split
compiles once per bucket. stream.py chooses the rows of a training batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.errors import any_of

Item = TypeVar("Item")
MAX_BUCKETS = 12


class StartBelief(NamedTuple):
    """Log-probabilities of the start at the right answer's positions, for terms that use them."""

    log_p: np.ndarray
    """float32 nats. Options space: [B, 1, K], of the options. Vocabulary: [B, A, k], of the k
    likeliest tokens"""
    ids: np.ndarray | None = None
    """[B, A, k] int32: those tokens; None in options space"""
    rest: np.ndarray | None = None
    """[B, A] float32 nats: log-probability of all other tokens together; None in options space"""


class OptionTree(NamedTuple):
    """The places of tokens in rows that hold a prompt once and every option as a branch."""

    positions: np.ndarray
    """[B, T] int32: index of each token in the text of its own option"""
    option: np.ndarray
    """[B, T] int32: number of the token's option from 1; 0 in prompts, -1 for padding"""
    place: np.ndarray
    """[B, A] int32: index of the option that a scored token belongs to; K for padding"""
    divisor: np.ndarray
    """[B, K] float32: what the scoring rule divides an option's log-probability by; 1 for options
    that do not exist"""


class Batch(NamedTuple):
    """Numpy arrays of one batch: B rows of T input tokens, A scored positions, K options.

    A row holds its right answer alone or, with a `tree`, all its options. Rows without answers
    (anchors) have one position, where an answer would begin, or those of a tree.
    """

    input_ids: np.ndarray
    """[B, T] int32: prompt and completion without its last token, right-padded with 0; without an
    answer the prompt alone; in a tree the prompt and every option without its last token"""
    lengths: np.ndarray
    """[B] int32: real tokens of each row of input_ids"""
    positions: np.ndarray
    """[B, A] int32: index of the hidden state that predicts each target"""
    targets: np.ndarray | None
    """[B, A] int32: tokens of the completion, in a tree those of all options; None in rows without
    either"""
    loss_mask: np.ndarray | None
    """[B, A] float32: 1 for the tokens of the right answer; None in rows without one"""
    option_ids: np.ndarray
    """[B, K] int32: the options' tokens; K = 0 if any option of the split has several"""
    option_mask: np.ndarray
    """[B, K] float32: 1 for options that exist; K = 0 as for `option_ids`, except in a tree"""
    answer: np.ndarray | None
    """[B] int32: index of the right option; None in rows without answers"""
    row: np.ndarray
    """[B] int32: index of the example in its split"""
    weight: np.ndarray
    """[B] float32: 0 for a row that only fills the batch (a copy of a real one)"""
    start: StartBelief | None = None
    """only for a term that asks for it"""
    tree: OptionTree | None = None
    """only in options space, for options of several tokens"""
    anchor: Batch | None = None
    """the rows without answers of a step or micro-batch"""


def eval_batches(
    encoded: Sequence[Encoded], batch_size: int, buckets: Sequence[int]
) -> Iterator[Batch]:
    """Yield every row once with its right answer, shortest first; the last batch is filled up.

    Such a batch scores options of one token. `option_batches` scores options of several tokens.
    """
    split = EncodedSplit.of(encoded)
    for rows in _by_length(split.lengths, batch_size):
        picks = [(row, split[row].answer) for row in rows]
        yield make_batch(split, picks, batch_size, buckets, split.answer_tokens)


def question_batches(
    encoded: Sequence[Encoded], batch_size: int, buckets: Sequence[int]
) -> Iterator[Batch]:
    """Yield every row once without its answer, shortest first; the last batch is filled up."""
    split = EncodedSplit.of(encoded)
    for rows in _by_length(prompt_lengths(split), batch_size):
        yield make_questions(split, rows, batch_size, buckets)


def prompt_lengths(encoded: Sequence[Encoded]) -> np.ndarray:
    """Return [rows] int32: tokens of each prompt."""
    return np.array([len(e.prompt_ids) for e in encoded], np.int32)


def option_batches(
    encoded: Sequence[Encoded], batch_size: int, buckets: Sequence[int]
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield every (row, option) once, with that option as targets, and the options' indices [B]."""
    split = EncodedSplit.of(encoded)
    picks = [(row, option) for row, e in enumerate(split) for option in range(len(e.completions))]
    lengths = np.array(
        [len(split[r].prompt_ids) + len(split[r].completion_ids[o]) - 1 for r, o in picks]
    )
    for chosen in _by_length(lengths, batch_size):
        part = [picks[i] for i in chosen]
        batch = make_batch(split, part, batch_size, buckets, split.option_tokens)
        options = [option for _, option in part]
        options += options[-1:] * (batch_size - len(options))
        yield batch, np.array(options, dtype=np.int32)


def tree_batches(
    encoded: Sequence[Encoded], batch_size: int, buckets: Sequence[int], option_score: str
) -> Iterator[Batch]:
    """Yield every row once with all its options, shortest first; the last batch is filled up."""
    split = EncodedSplit.of(encoded)
    for rows in _by_length(split.tree_lengths, batch_size):
        yield make_trees(split, rows, batch_size, buckets, option_score)


def scored_batches(
    encoded: Sequence[Encoded],
    batch_size: int,
    option_score: str | None,
    max_buckets: int = MAX_BUCKETS,
    multiple: int = 8,
) -> Iterator[Batch]:
    """Yield every row once: as a tree, whose options the rule `option_score` scores, or with its
    right answer alone (None); other arguments as for `length_buckets`."""
    split = EncodedSplit.of(encoded)
    if option_score is None:
        buckets = length_buckets(split.lengths, max_buckets, multiple)
        return eval_batches(split, batch_size, buckets)
    buckets = length_buckets(split.tree_lengths, max_buckets, multiple)
    return tree_batches(split, batch_size, buckets, option_score)


def _by_length(lengths: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Yield indices in order of length (ties in order of index), in batches."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()


def make_batch(
    split: EncodedSplit,
    picks: Sequence[tuple[int, int]],
    batch_size: int,
    buckets: Sequence[int],
    answer_axis: int,
) -> Batch:
    """Return the batch of (row, option) picks, filled up with copies of the last one."""
    picks, weight = _filled(picks, batch_size)
    sequences = [split[row].prompt_ids + split[row].completion_ids[option] for row, option in picks]
    input_ids, lengths = _inputs([ids[:-1] for ids in sequences], buckets)
    positions = np.zeros((batch_size, answer_axis), np.int32)
    targets = np.zeros((batch_size, answer_axis), np.int32)
    loss_mask = np.zeros((batch_size, answer_axis), np.float32)
    for i, ((row, option), ids) in enumerate(zip(picks, sequences, strict=True)):
        example = split[row]
        completion = example.completion_ids[option]
        n = len(completion)
        targets[i, :n] = completion
        positions[i, :n] = np.arange(len(ids) - n - 1, len(ids) - 1)
        loss_mask[i, :n] = 1.0
    option_ids, option_mask = _options(split, [row for row, _ in picks])
    return Batch(
        input_ids=input_ids,
        lengths=lengths,
        positions=positions,
        targets=targets,
        loss_mask=loss_mask,
        option_ids=option_ids,
        option_mask=option_mask,
        answer=np.array([split[row].answer for row, _ in picks], np.int32),
        row=np.array([row for row, _ in picks], np.int32),
        weight=weight,
    )


def make_questions(
    split: EncodedSplit, rows: Sequence[int], batch_size: int, buckets: Sequence[int]
) -> Batch:
    """Return the batch of `rows` without their answers, filled up with copies of the last one."""
    rows, weight = _filled(rows, batch_size)
    input_ids, lengths = _inputs([split[row].prompt_ids for row in rows], buckets)
    option_ids, option_mask = _options(split, rows)
    return Batch(
        input_ids=input_ids,
        lengths=lengths,
        positions=lengths[:, None] - 1,
        targets=None,
        loss_mask=None,
        option_ids=option_ids,
        option_mask=option_mask,
        answer=None,
        row=np.array(rows, np.int32),
        weight=weight,
    )


def make_trees(
    split: EncodedSplit,
    rows: Sequence[int],
    batch_size: int,
    buckets: Sequence[int],
    option_score: str,
) -> Batch:
    """Return the batch of `rows` with all their options, filled up with copies of the last one.

    The number of scored positions is the largest of all rows of the split that fit into the padded
    length.

    option_score: the rule that scores the options, not pmi.
    """
    rows, weight = _filled(rows, batch_size)
    bucket = _bucket(int(split.tree_lengths[rows].max()), buckets)
    scored = int(split.scored_tokens[split.tree_lengths <= bucket].max())
    tokens, places = (batch_size, bucket), (batch_size, scored)
    options = batch_size, split.options
    batch = Batch(
        input_ids=np.zeros(tokens, np.int32),
        lengths=split.tree_lengths[rows],
        positions=np.zeros(places, np.int32),
        targets=np.zeros(places, np.int32),
        loss_mask=np.zeros(places, np.float32),
        option_ids=np.zeros((batch_size, 0), np.int32),
        option_mask=np.zeros(options, np.float32),
        answer=np.array([split[row].answer for row in rows], np.int32),
        row=np.array(rows, np.int32),
        weight=weight,
        tree=OptionTree(
            positions=np.zeros(tokens, np.int32),
            option=np.full(tokens, -1, np.int32),
            place=np.full(places, split.options, np.int32),
            divisor=np.ones(options, np.float32),
        ),
    )
    for i, row in enumerate(rows):
        _write_tree(batch, i, split[row], option_score)
    return batch


def without_answers(trees: Batch) -> Batch:
    """Return trees without the right options."""
    return trees._replace(loss_mask=None, answer=None)


def _write_tree(batch: Batch, i: int, e: Encoded, option_score: str) -> None:
    """Write a question and its options into row `i`."""
    tree, prompt = batch.tree, len(e.prompt_ids)
    batch.input_ids[i, :prompt] = e.prompt_ids
    tree.positions[i, :prompt] = np.arange(prompt)
    tree.option[i, :prompt] = 0
    end, first = prompt, 0
    for k, ids in enumerate(e.completion_ids):
        own, scored = slice(end, end + len(ids) - 1), slice(first, first + len(ids))
        batch.input_ids[i, own] = ids[:-1]
        tree.positions[i, own] = np.arange(prompt, prompt + len(ids) - 1)
        tree.option[i, own] = k + 1
        # The end of the prompt predicts the first token of every option.
        batch.positions[i, scored] = [prompt - 1, *range(own.start, own.stop)]
        batch.targets[i, scored] = ids
        batch.loss_mask[i, scored] = k == e.answer
        tree.place[i, scored] = k
        end, first = own.stop, scored.stop
    exist = len(e.completion_ids)
    batch.option_mask[i, :exist] = 1.0
    tree.divisor[i, :exist] = _option_lengths(e, option_score)


def _option_lengths(e: Encoded, option_score: str) -> list[int]:
    tokens = [len(ids) for ids in e.completion_ids]
    lengths = {"mean": tokens, "sum": [1] * len(tokens), "chars": e.characters}
    if option_score not in lengths:
        raise ValueError(f"option_score is {option_score}; expected {any_of(lengths)} to train")
    return [max(1, length) for length in lengths[option_score]]


def _filled(items: Sequence[Item], size: int) -> tuple[list[Item], np.ndarray]:
    """Return `items` filled up to `size` with copies of the last one, and their weights [size]."""
    weight = np.zeros(size, np.float32)
    weight[: len(items)] = 1.0
    return [*items, *[items[-1]] * (size - len(items))], weight


def _inputs(rows: Sequence[Sequence[int]], buckets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return `input_ids` and `lengths` of a batch of `rows`."""
    lengths = np.array([len(ids) for ids in rows], np.int32)
    input_ids = np.zeros((len(rows), _bucket(int(lengths.max()), buckets)), np.int32)
    for i, ids in enumerate(rows):
        input_ids[i, : len(ids)] = ids
    return input_ids, lengths


def _options(split: EncodedSplit, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return `option_ids` and `option_mask` of a batch of `rows`."""
    shape = len(rows), split.options if split.single_token_options else 0
    option_ids, option_mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    if shape[1]:
        for i, row in enumerate(rows):
            k = len(split[row].completion_ids)
            option_ids[i, :k] = [ids[0] for ids in split[row].completion_ids]
            option_mask[i, :k] = 1.0
    return option_ids, option_mask


def _bucket(length: int, buckets: Sequence[int]) -> int:
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise ValueError(f"{length} tokens fit into none of the buckets {tuple(buckets)}")
    return min(fitting)


def length_buckets(
    lengths: Sequence[int] | np.ndarray, max_buckets: int = MAX_BUCKETS, multiple: int = 8
) -> tuple[int, ...]:
    """Return the increasing padded lengths that waste the fewest tokens.

    Every row is padded to the next one. The result is exact, by dynamic programming over the
    distinct multiples that occur.

    Args:
        lengths: input lengths of the rows, any order, at least one.
        multiple: every padded length is a multiple of this.
    """
    rounded = -(-np.asarray(lengths, dtype=np.int64) // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    n = len(sizes)
    # cost[j]: padded tokens of all rows up to size j - 1 with the buckets used so far; a bucket at
    # size j - 1 that follows one at size i - 1 pads rows[j] - rows[i] rows to sizes[j - 1].
    cost = np.concatenate([[0.0], sizes * rows[1:].astype(float)])
    choices = []
    for _ in range(min(max_buckets, n) - 1):
        table = np.full((n + 1, n + 1), np.inf)
        for j in range(1, n + 1):
            table[j, :j] = cost[:j] + sizes[j - 1] * (rows[j] - rows[:j])
        choices.append(table.argmin(axis=1))
        cost = np.concatenate([[0.0], table.min(axis=1)[1:]])
    buckets, end = [int(sizes[-1])], n
    for previous in reversed(choices):
        end = int(previous[end])
        if end == 0:
            break
        buckets.append(int(sizes[end - 1]))
    return tuple(sorted(buckets))
