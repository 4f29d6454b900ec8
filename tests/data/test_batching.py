"""Batches hold every row once, whole, and are a pure function of (seed, step)."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogcalib_jax.data.batching import (
    eval_batches,
    length_buckets,
    option_batches,
    question_batches,
    tree_batches,
)
from cogcalib_jax.data.example import Encoded, EncodedSplit, Example
from cogcalib_jax.data.stream import TrainStream


def row(prompt, completions, answer=0):
    name = f"r{prompt[0]}"
    texts = tuple(str(ids) for ids in completions)
    return Encoded(
        id=name,
        prompt=str(prompt),
        completions=texts,
        prompt_ids=tuple(prompt),
        completion_ids=tuple(map(tuple, completions)),
        answer=answer,
        example=Example(id=name, question="?", choices=texts, answer=answer),
    )


SINGLE = EncodedSplit(
    [
        row([1, 2, 3], [[10], [11], [12]], answer=1),
        row([4, 5], [[10], [11]], answer=0),
        row([6, 7, 8, 9, 3, 2, 1, 1, 1], [[10], [11], [12], [13]], answer=3),
    ]
)
SEVERAL = EncodedSplit(
    [row([1, 2, 3], [[10], [11, 12, 13]], answer=1), row([4, 5], [[10, 12], [10, 14]], answer=0)]
)


@st.composite
def splits(draw):
    single = draw(st.booleans())
    rows = []
    for i in range(draw(st.integers(1, 12))):
        tokens = st.lists(st.integers(20, 90), min_size=1, max_size=1 if single else 4)
        completions = draw(st.lists(tokens, min_size=2, max_size=5, unique_by=tuple))
        prompt = [i + 1, *draw(st.lists(st.integers(1, 9), max_size=30))]
        rows.append(row(prompt, completions, draw(st.integers(0, len(completions) - 1))))
    return EncodedSplit(rows)


def sequence(batch, i):
    """The tokens of row i as a reader of the arrays finds them: inputs, then the last target."""
    n = int(batch.loss_mask[i].sum())
    return [*batch.input_ids[i, : batch.lengths[i]].tolist(), int(batch.targets[i, n - 1])]


def check_batch(batch, split, options, buckets):
    """`options[i]`: the option whose tokens are row i's targets."""
    assert batch.input_ids.shape[1] in buckets
    for i, option in enumerate(options):
        e = split[batch.row[i]]
        completion = e.completion_ids[option]
        n = len(completion)
        assert sequence(batch, i) == [*e.prompt_ids, *completion]
        assert not batch.input_ids[i, batch.lengths[i] :].any()
        assert batch.loss_mask[i].tolist() == [1] * n + [0] * (batch.targets.shape[1] - n)
        assert batch.targets[i, :n].tolist() == list(completion)
        # The hidden state at a position has seen the input there and predicts the next token.
        whole = sequence(batch, i)
        assert [whole[p + 1] for p in batch.positions[i, :n]] == list(completion)
        assert batch.answer[i] == e.answer
        if split.single_token_options:
            k = len(e.completion_ids)
            assert batch.option_ids[i, :k].tolist() == [ids[0] for ids in e.completion_ids]
            assert batch.option_mask[i].tolist() == [1] * k + [0] * (split.options - k)
    assert batch.option_ids.shape[1] == (split.options if split.single_token_options else 0)
    assert batch.start is None  # only a term that compares with the start has it added
    assert batch.anchor is None and batch.tree is None
    arrays = batch._replace(start=batch.row, anchor=batch.row, tree=batch.row)
    for name, array in arrays._asdict().items():
        floats = name in ("loss_mask", "option_mask", "weight")
        assert array.dtype == (np.float32 if floats else np.int32), name


@settings(max_examples=60, deadline=None)
@given(splits(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 9))
def test_trees_hold_the_prompt_once_and_every_option_as_a_branch(split, size, seed, step):
    stream = TrainStream(split, seed, size, option_score="mean")
    batches = [stream.batch(step)]
    batches += tree_batches(split, size, length_buckets(split.tree_lengths), "mean")
    for batch in batches:
        tree = batch.tree
        for i, row in enumerate(batch.row):
            e, n = split[row], len(split[row].prompt_ids)
            assert batch.input_ids[i][tree.option[i] == 0].tolist() == list(e.prompt_ids)
            assert (tree.option[i] >= 0).sum() == batch.lengths[i]
            assert tree.positions[i, :n].tolist() == list(range(n))
            for k, ids in enumerate(e.completion_ids):
                branch, scored = tree.option[i] == k + 1, tree.place[i] == k
                assert batch.input_ids[i][branch].tolist() == list(ids[:-1])
                assert tree.positions[i][branch].tolist() == list(range(n, n + len(ids) - 1))
                assert batch.targets[i][scored].tolist() == list(ids)
                seen = [n - 1, *np.flatnonzero(branch)]
                assert batch.positions[i][scored].tolist() == seen
                assert (batch.loss_mask[i][scored] == (k == e.answer)).all()
                assert tree.divisor[i, k] == len(ids)
            exist = len(e.completion_ids)
            assert batch.option_mask[i].tolist() == [1] * exist + [0] * (split.options - exist)
            assert batch.loss_mask[i].sum() == len(e.completion_ids[e.answer])
    rows = [row for batch in batches[1:] for row in batch.row[batch.weight > 0]]
    assert sorted(rows) == list(range(len(split)))


@settings(max_examples=60, deadline=None)
@given(splits(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 9))
def test_batches_hold_whole_rows_with_their_answers(split, size, seed, step):
    buckets = length_buckets(split.lengths)
    stream = TrainStream(split, seed, size)
    batch = stream.batch(step)
    check_batch(batch, split, [split[r].answer for r in batch.row], stream.buckets)
    assert batch.weight.tolist() == [1.0] * size
    for batch in eval_batches(split, size, buckets):
        check_batch(batch, split, [split[r].answer for r in batch.row], buckets)
    for batch, options in option_batches(split, size, buckets):
        assert options.dtype == np.int32 and options.shape == (size,)
        check_batch(batch, split, options, buckets)


@settings(max_examples=60, deadline=None)
@given(splits(), st.integers(1, 5))
def test_evaluation_sees_every_row_and_every_option_once(split, size):
    buckets = length_buckets(split.lengths)
    batches = list(eval_batches(split, size, buckets))
    real = [b.row[b.weight > 0] for b in batches]
    assert sorted(np.concatenate(real).tolist()) == list(range(len(split)))
    picks = [
        (int(r), int(o))
        for batch, options in option_batches(split, size, buckets)
        for r, o, w in zip(batch.row, options, batch.weight, strict=True)
        if w
    ]
    assert sorted(picks) == [(r, o) for r, e in enumerate(split) for o in range(len(e.completions))]
    assert sum((b.weight == 0).sum() for b in batches) < size


def test_one_batch_by_hand():
    (batch,) = eval_batches(SEVERAL, 3, (8,))
    assert batch.input_ids.tolist() == [
        [4, 5, 10, 0, 0, 0, 0, 0],
        [1, 2, 3, 11, 12, 0, 0, 0],
        [1, 2, 3, 11, 12, 0, 0, 0],
    ]
    assert batch.positions.tolist() == [[1, 2, 0], [2, 3, 4], [2, 3, 4]]
    assert batch.targets.tolist() == [[10, 12, 0], [11, 12, 13], [11, 12, 13]]
    assert batch.weight.tolist() == [1, 1, 0]
    assert batch.option_ids.shape == (3, 0)


@settings(max_examples=60, deadline=None)
@given(splits(), st.integers(1, 5))
def test_questions_end_where_their_answers_would_begin_and_show_none_of_them(split, size):
    seen = []
    for batch in question_batches(split, size, (40,)):
        assert (batch.targets, batch.loss_mask, batch.answer) == (None, None, None)
        seen += batch.row[batch.weight > 0].tolist()
        for i, row in enumerate(batch.row):
            e, n = split[row], batch.lengths[i]
            assert batch.input_ids[i, :n].tolist() == list(e.prompt_ids)
            assert not batch.input_ids[i, n:].any()
            assert batch.positions[i].tolist() == [n - 1]
            if split.single_token_options:
                options = batch.option_ids[i][batch.option_mask[i] > 0].tolist()
                assert options == [ids[0] for ids in e.completion_ids]
    assert sorted(seen) == list(range(len(split)))


def test_a_row_that_fits_no_bucket_is_an_error():
    with pytest.raises(ValueError, match="9 tokens fit into none"):
        list(eval_batches(SINGLE, 4, (4, 8)))


def padded(lengths, buckets):
    return sum(min(b for b in buckets if b >= n) for n in lengths)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 4))
def test_buckets_waste_the_least_of_all_choices(lengths, max_buckets):
    buckets = length_buckets(lengths, max_buckets, multiple=8)
    assert len(buckets) <= max_buckets
    assert list(buckets) == sorted(set(buckets))
    assert all(b % 8 == 0 for b in buckets)
    sizes = range(8, max(lengths) + 8, 8)
    best = min(
        padded(lengths, choice)
        for k in range(1, max_buckets + 1)
        for choice in combinations(sizes, k)
        if choice[-1] >= max(lengths)
    )
    assert padded(lengths, buckets) == best
