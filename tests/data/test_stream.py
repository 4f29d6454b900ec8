"""The stream of training batches and work ahead: every row once an epoch, few padded tokens."""

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Encoded, EncodedSplit, Example
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.data.stream import AnchorStream, TrainStream, prefetch
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
    stream = TrainStream(RAGGED, 0, 8, tokens_per_shape=300, multiple=8)
    assert 1 < len(stream.buckets) < 8 and all(bucket % 8 == 0 for bucket in stream.buckets)
    seen = Counter()
    for step in range(60):
        batch = stream.batch(step)
        fitting = [b for b in stream.buckets if b >= batch.lengths.max()]
        assert batch.input_ids.shape == (8, min(fitting)) == (8, stream.padded_length(step))
        seen[min(fitting)] += 1
    assert len(seen) > 1


def test_the_number_of_padded_lengths_follows_from_what_one_costs():
    """A further length must save more tokens in all updates than are computed while it compiles."""

    def shapes(steps: int, tokens_per_shape: float) -> int:
        stream = TrainStream(RAGGED, 0, 8, steps=steps, tokens_per_shape=tokens_per_shape)
        return len(stream.buckets)

    assert shapes(1, 1e9) == 1 < shapes(20, 500) < shapes(2000, 500) == 12
    assert shapes(20, 0) == shapes(2000, 0) == 12


def test_with_one_padded_length_rows_are_drawn_purely_at_random():
    """Sorting rows saves nothing there."""
    stream = TrainStream(RAGGED, 5, 8, tokens_per_shape=1e9)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([5, 0])))
    assert stream.rows(0) == rng.permutation(len(RAGGED))[:8].tolist()


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
