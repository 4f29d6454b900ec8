"""The constant prediction, against frequencies counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax.data.example import Encoded, Example
from cogcalib_jax.inference.predict import commonest_answer, counted_by
from cogcalib_jax.metrics import summarize


def row(choices, answer, completions=None):
    example = Example("q", "?", tuple(choices), answer)
    texts = tuple(completions or choices)
    # Options of several tokens, for their number must not count.
    ids = tuple(tuple(range(k + 1)) for k in range(len(texts)))
    return Encoded("q", "?", texts, (0,), ids, answer, example)


def test_rows_with_one_set_of_texts_are_counted_by_text_in_any_order():
    train = [row(["yes", "no"], 0), row(["no", "yes"], 1), row(["yes", "no"], 1)]
    asked = [row(["no", "yes"], 0)]
    assert counted_by(train, asked) == "text"
    # yes twice, no once, and one more of each
    np.testing.assert_allclose(commonest_answer(train, asked).probs, [[2 / 5, 3 / 5]])


def test_other_rows_are_counted_by_position_over_the_options_they_have():
    train = [row("abc", 2), row("dbc", 2), row("dec", 0)]
    asked = [row("xyz", 1), row("xy", 0), row("vwxyz", 4)]
    assert counted_by(train, asked) == "position"
    got = commonest_answer(train, asked)
    expected = [[2 / 6, 1 / 6, 3 / 6, 0, 0], [2 / 3, 1 / 3, 0, 0, 0]]
    np.testing.assert_allclose(got.probs[:2], expected)
    np.testing.assert_allclose(got.probs[2], np.array([2, 1, 3, 1, 1]) / 8)


def test_more_scored_letters_than_choices_are_counted_by_position():
    """A published protocol scores five letters whatever the row has."""
    train = [row(["yes", "no"], 1, "ABCDE")] * 3
    assert counted_by(train, train) == "position"
    np.testing.assert_allclose(
        commonest_answer(train, train).probs[0], np.array([1, 4, 1, 1, 1]) / 8
    )


def test_the_first_option_of_a_tie_is_the_prediction():
    train = [row("ab", 0), row("cd", 1)]
    asked = [row("ef", 0), row("gh", 1)]
    predictions = commonest_answer(train, asked)
    metrics = summarize(predictions.probs, predictions.mask, predictions.answers, resamples=20)
    assert (metrics["accuracy"], metrics["confidence"], metrics["chance"]) == (0.5, 0.5, 0.5)
    assert metrics["nll"] == pytest.approx(np.log(2))


@given(st.lists(st.tuples(st.integers(2, 5), st.integers(0, 4)), min_size=1, max_size=20))
def test_probabilities_sum_to_one_and_never_exclude_an_answer(drawn):
    rows = [row("abcde"[:k], min(answer, k - 1)) for k, answer in drawn]
    predictions = commonest_answer(rows, rows)
    np.testing.assert_allclose(predictions.probs.sum(-1), 1)
    assert (predictions.probs[predictions.mask] > 0).all()
    assert (predictions.probs[~predictions.mask] == 0).all()
