"""Padded batches, the stream of training batches, and work ahead in a thread."""

import threading
from collections import Counter
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
)
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Encoded, EncodedSplit, Example
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.data.prefetch import prefetch
from cogcalib_jax.data.stream import AnchorStream, TrainStream
from cogcalib_jax.hf.tokenizer import load_tokenizer


def split_of(prompt_lengths):
    return EncodedSplit(
        Encoded(
            f"q{i}",
            "",
            ("a", "b c"),
            (1,) * n,
            ((3,), (4, 5)),
            0,
            Example(f"q{i}", "?", ("a", "b c"), 0),
        )
        for i, n in enumerate(prompt_lengths)
    )


RAGGED = split_of(np.random.default_rng(0).integers(5, 60, 203))


def epochs_of(stream, rows, size, epochs):
    steps = -(-epochs * rows // size)
    flat = [row for step in range(steps) for row in stream.rows(step)]
    return [flat[i * rows : (i + 1) * rows] for i in range(epochs)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=150), st.integers(1, 40), st.integers(0, 5)
)
def test_every_epoch_holds_every_row_exactly_once(lengths, size, seed):
    stream = TrainStream(split_of(lengths), seed, size)
    for epoch in epochs_of(stream, len(lengths), size, 4):
        assert sorted(epoch) == list(range(len(lengths)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=150), st.integers(1, 40), st.integers(0, 5)
)
def test_anchor_rows_come_once_an_epoch_in_an_order_of_their_own(lengths, size, seed):
    stream = AnchorStream(split_of(lengths), seed, size)
    for epoch in epochs_of(stream, len(lengths), size, 3):
        assert sorted(epoch) == list(range(len(lengths)))
    steps = [2, 0, 5]
    asked = {step: stream.rows(step) for step in steps}
    fresh = AnchorStream(split_of(lengths), seed, size)
    assert {step: fresh.rows(step) for step in sorted(steps)} == asked


def test_anchor_rows_are_not_drawn_as_training_rows_are_and_have_one_padded_length():
    anchors, rows = AnchorStream(RAGGED, 3, 7), TrainStream(RAGGED, 3, 7)
    epoch = list(range(29))
    assert [anchors.rows(s) for s in epoch] != [rows.rows(s) for s in epoch]
    whole, part = anchors.batch(4, range(7)), anchors.batch(4, [2, 5])
    assert whole.row.tolist() == anchors.rows(4)
    assert part.row.tolist() == whole.row[[2, 5]].tolist()
    assert whole.input_ids.shape == (7, anchors.padded_length)
    assert anchors.padded_length == max(len(e.prompt_ids) for e in RAGGED)
    assert anchors.real_tokens(4) == whole.lengths.sum()


def test_a_step_is_the_same_whatever_was_asked_before():
    """What makes resuming exact: no step depends on the history of the object."""
    used, fresh = TrainStream(RAGGED, 3, 8), TrainStream(RAGGED, 3, 8)
    steps = [0, 70, 3, 51, 26, 25, 140]
    answers = {step: used.rows(step) for step in steps}
    assert {step: fresh.rows(step) for step in sorted(steps)} == answers
    for a, b in zip(used.batch(26), fresh.batch(26), strict=True):
        np.testing.assert_array_equal(a, b)


def test_epochs_and_seeds_differ():
    stream = TrainStream(RAGGED, 0, 7)  # 203 = 29 x 7: epochs end with a batch
    first, second = epochs_of(stream, 203, 7, 2)
    assert first != second
    assert TrainStream(RAGGED, 1, 7).rows(0) != first[:7]


def test_rows_of_similar_length_share_a_batch_and_batches_come_in_random_order():
    stream = TrainStream(RAGGED, 0, 7)
    batches = [[len(RAGGED[r].prompt_ids) for r in stream.rows(step)] for step in range(29)]
    assert np.mean([max(b) - min(b) for b in batches]) < 15  # rows differ by up to 54
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)
    # Batches of neighbouring steps are no longer alike than others.
    assert np.mean(np.abs(np.diff(longest))) > 8


def test_rows_of_one_length_are_drawn_purely_at_random():
    """Where nothing is to be gained, order costs randomness for nothing."""
    stream = TrainStream(split_of([9] * 64), 5, 8)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([5, 0])))
    assert stream.rows(0) == rng.permutation(64)[:8].tolist()
    assert stream.buckets == (9,)


def test_a_batch_is_padded_to_the_smallest_length_that_holds_it():
    stream = TrainStream(RAGGED, 0, 8, max_shapes=5, multiple=8)
    assert len(stream.buckets) <= 5 and all(bucket % 8 == 0 for bucket in stream.buckets)
    seen = Counter()
    for step in range(60):
        batch = stream.batch(step)
        fitting = [b for b in stream.buckets if b >= batch.lengths.max()]
        assert batch.input_ids.shape == (8, min(fitting)) == (8, stream.padded_length(step))
        seen[min(fitting)] += 1
    assert len(seen) > 1


def test_parts_of_a_batch_make_up_the_batch():
    """Hosts that hold other rows agree on the shape."""
    stream = TrainStream(RAGGED, 0, 8)
    for step in range(12):
        whole = stream.batch(step)
        parts = [stream.batch(step, part) for part in ([0, 1, 4, 5], [2, 3, 6, 7])]
        for name in ("input_ids", "lengths", "targets", "row"):
            a, b = (getattr(part, name) for part in parts)
            joined = np.stack([a.reshape(2, 2, -1), b.reshape(2, 2, -1)], 1)
            np.testing.assert_array_equal(
                joined.reshape(8, -1), getattr(whole, name).reshape(8, -1)
            )


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        TrainStream(EncodedSplit(), 0, 8)


def test_openbookqa_wastes_few_tokens(realdata):
    """At batch 8 at least 92 % of the computed tokens are real, with at most 12 padded lengths."""
    config = DataConfig(task="openbookqa", path=str(realdata / "openbookqa"))
    tokenizer = load_tokenizer(realdata / "tokenizers" / "Qwen2.5-base")
    rows, _ = encode_split("train", load_splits(config, 0).train, tokenizer, config)
    stream = TrainStream(rows, 0, 8)
    assert len(stream.buckets) <= 12
    steps = range(2 * len(rows) // 8)
    padded = sum(8 * stream.padded_length(step) for step in steps)
    real = sum(len(rows[r].prompt_ids) for step in steps for r in stream.rows(step))
    assert real / padded >= 0.92


def test_results_come_in_order_and_from_another_thread():
    threads = set()

    def square(n):
        threads.add(threading.get_ident())
        return n * n

    assert list(prefetch(square, range(20))) == [n * n for n in range(20)]
    assert threading.get_ident() not in threads and len(threads) == 1


def test_work_runs_ahead_but_only_so_far():
    done = []
    results = prefetch(lambda n: done.append(n) or n, range(100), ahead=3)
    assert next(results) == 0
    # Asked for one: that one, and at most three more of which one was started on its behalf.
    results.close()
    assert done[0] == 0 and len(done) <= 4


def test_an_error_is_raised_where_its_result_would_have_come():
    def fail_at_two(n):
        if n == 2:
            raise ValueError("two")
        return n

    results = prefetch(fail_at_two, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_no_items_no_results():
    assert list(prefetch(lambda n: n, [])) == []


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
    assert batch.anchor is None
    for name, array in batch._replace(start=batch.row, anchor=batch.row)._asdict().items():
        floats = name in ("loss_mask", "option_mask", "weight")
        assert array.dtype == (np.float32 if floats else np.int32), name


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
