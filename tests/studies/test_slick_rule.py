"""SliCK's categories: cases made by hand, and exact probabilities against drawn samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogcalib_jax.studies.slick_rule import SAMPLES, slick_categories, would_be_sampled


@pytest.mark.parametrize(
    ("greedy", "sampled", "category"),
    [
        ([1, 1, 1], False, "HighlyKnown"),  # no sample can take that away
        ([1, 1, 1], True, "HighlyKnown"),
        ([1, 1, 0], True, "MaybeKnown"),
        ([0, 0, 1], False, "MaybeKnown"),
        ([0, 0, 0], True, "WeaklyKnown"),
        ([0, 0, 0], False, "Unknown"),
    ],
)
def test_categories_are_those_of_the_papers_figure(greedy, sampled, category):
    assert slick_categories(np.array([greedy]), np.array([sampled])) == [category]


def test_rows_are_told_apart_and_shapes_must_agree():
    greedy = np.array([[True, True], [False, False]])
    assert list(slick_categories(greedy, [False, True])) == ["HighlyKnown", "WeaklyKnown"]
    with pytest.raises(ValueError, match="prompts"):
        slick_categories(greedy, [True])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-4, 0.002, 0.01, 0.05, 0.3, 1.0]), min_size=1, max_size=6),
    st.integers(1, SAMPLES),
)
def test_exact_probabilities_say_what_most_draws_say(probabilities, samples):
    rng = np.random.default_rng(0)
    drawn = rng.random((2000, len(probabilities), samples)) < np.array(probabilities)[:, None]
    share = drawn.any((1, 2)).mean()
    if abs(share - 0.5) > 0.05:  # nearer than that, draws themselves disagree
        assert would_be_sampled(np.array([probabilities]), samples) == [share > 0.5]


def test_one_sample_of_one_prompt_is_right_from_one_half_on():
    p = np.array([[0.49], [0.5], [1.0]])
    assert list(would_be_sampled(p, 1)) == [False, True, True]
