"""Packed rows: every question once, as the texts it stands for, with little else beside it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogcalib_jax.data.example import Encoded, EncodedSplit, Example
from cogcalib_jax.data.packing import PackedBatch, pack, packed_batches

NOTHING = Example("x", "", ("a", "b"), 0)


def question(prompt, *completions):
    completions = tuple(map(tuple, completions))
    texts = ("",) * len(completions)
    return Encoded("x", "", texts, tuple(prompt), completions, 0, NOTHING)


def own_text(line: PackedBatch, at: int) -> list[int]:
    """The tokens that the one at `at` follows in its own text, itself included: those above it in
    the tree, ordered by position."""
    on_the_way = ((line.question == 0) | (line.question == line.question[at])) & (
        (line.option == 0) | (line.option == line.option[at])
    )
    before = np.flatnonzero(on_the_way & (line.positions <= line.positions[at]))
    before = before[np.argsort(line.positions[before])]
    assert line.positions[before].tolist() == list(range(len(before)))
    return line.input_ids[before].tolist()


def read_back(batches) -> dict[int, list[tuple[list[int], tuple[int, ...]]]]:
    """Row of the split -> (prompt, completion) of each option, from the arrays alone."""
    found = {}
    for batch in batches:
        for b in range(len(batch.row)):
            line = PackedBatch(*(array[b] for array in batch))
            for q in np.flatnonzero(line.weight > 0):
                end = line.scored[line.prompt_end[q]]
                options = []
                for k, first in enumerate(line.first_ids[q]):
                    prompt, completion = own_text(line, end), [int(first)]
                    where = np.flatnonzero(line.place == q * line.first_ids.shape[1] + k)
                    for s in where[np.argsort(line.positions[line.scored[where]])]:
                        # What is scored next follows exactly what was scored so far.
                        assert own_text(line, line.scored[s]) == prompt + completion
                        completion.append(int(line.targets[s]))
                    options.append((prompt, tuple(completion)))
                assert int(line.row[q]) not in found
                found[int(line.row[q])] = options
    return found


token = st.integers(1, 9)
prompts = st.lists(token, min_size=1, max_size=40)
options = st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(token, max_size=30),
    st.lists(st.tuples(prompts, options), min_size=1, max_size=25),
    st.integers(1, 6),
    st.sampled_from([1, 2, 8]),
)
def test_every_option_of_every_question_can_be_read_back(beginning, rows, batch_size, multiple):
    split = EncodedSplit(question(beginning + prompt, *choices) for prompt, choices in rows)
    batches = list(packed_batches(split, batch_size, multiple))
    found = read_back(batches)
    assert sorted(found) == list(range(len(split)))
    for row, e in enumerate(split):
        got = found[row][: len(e.completion_ids)]
        assert got == [(list(e.prompt_ids), ids) for ids in e.completion_ids]
    (shape,) = {tuple(array.shape for array in batch) for batch in batches}
    assert shape[0][0] % multiple == 0


def test_what_all_prompts_begin_with_stands_once_a_row():
    beginning = tuple(range(100, 200))
    split = [question((*beginning, n), (1,), (2, 3)) for n in range(60)]
    packing = pack(split)
    # Two tokens a question, its own one and one of the second option's, in room for 128.
    assert packing.shared == 100 and len(packing.rows) == 1
    (batch,) = packed_batches(split, 32)
    assert (batch.question == 0).sum() == 100
    assert (batch.question > 0).sum() == 2 * 60


def test_one_prompt_may_be_the_beginning_of_all_others():
    split = [question((5, 6), (1,), (2,)), question((5, 6, 7), (1,), (2, 4))]
    assert pack(split).shared == 1
    found = read_back(packed_batches(split, 4))
    assert found[0] == [([5, 6], (1,)), ([5, 6], (2,))]
    assert found[1] == [([5, 6, 7], (1,)), ([5, 6, 7], (2, 4))]


def test_rows_are_full_and_scored_positions_spread_over_them():
    rng = np.random.default_rng(0)
    # As real questions are: most short, a few long.
    lengths = np.minimum(5 + rng.exponential(20, 400), 110).astype(int)
    split = [
        question((n, *np.ones(length, int)), *np.split(np.ones(tokens, int), [1, 2, 5]))
        for n, (length, tokens) in enumerate(zip(lengths, rng.integers(8, 30, 400), strict=True))
    ]
    batches = list(packed_batches(split, 16))
    real = sum((b.question >= 0).sum() for b in batches)
    assert real > 0.9 * sum(b.question.size for b in batches)
    scored = sum(len(e.completion_ids[k]) - 1 for e in split for k in range(4)) + len(split)
    assert scored > 0.7 * sum(b.scored.size for b in batches)


@pytest.mark.parametrize("longest, beginning", [(9, 0), (300, 0), (40, 500)])
def test_a_batch_holds_no_more_tokens_than_its_size_in_longest_sequences(longest, beginning):
    shared = tuple(range(beginning))
    split = [question((*shared, 1000 + n, *[1] * (longest - 1)), (1,), (2,)) for n in range(200)]
    for batch in packed_batches(split, 8):
        assert batch.input_ids.size <= 8 * max(beginning + longest, 128)
