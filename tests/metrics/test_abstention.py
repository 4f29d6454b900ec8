"""Cut-offs and what lies beyond them, against plain loops and the beta distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from cogcalib_jax.metrics.scores import cutoff_for, expected_accuracy
from tests.metrics.cases import SETTINGS, rows

CONFIDENCE = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.4])
CORRECT = np.array([1, 1, 0, 1, 0, 0])


def test_the_lowest_cutoff_that_reaches_the_target_is_taken():
    assert cutoff_for(1.0, CONFIDENCE, CORRECT) == 0.9
    assert cutoff_for(0.75, CONFIDENCE, CORRECT) == 0.6  # lower than the 2 of 3 before it
    assert cutoff_for(0.5, CONFIDENCE, CORRECT) == 0.4
    assert cutoff_for(0.5, CONFIDENCE, 1 - CORRECT) == 0.4
    assert cutoff_for(0.6, CONFIDENCE, 1 - CORRECT) is None


@SETTINGS
@given(rows(), st.sampled_from([0.2, 0.5, 2 / 3, 0.9, 1.0]))
def test_cutoffs_are_those_of_a_plain_search(data, target):
    confidence, correct = data
    fitting = [
        c for c in set(confidence.tolist()) if correct[confidence >= c].mean() >= target - 1e-12
    ]
    assert cutoff_for(target, confidence, correct) == (min(fitting) if fitting else None)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (3, 7), (180, 200)])
def test_the_interval_is_clopper_and_pearsons(right, n):
    confidence = np.r_[np.full(n, 0.8), np.full(5, 0.1)]
    correct = np.r_[np.ones(right), np.zeros(n - right), np.ones(5)]
    found = expected_accuracy(0.8, confidence, correct)
    assert (found.answered, found.questions, found.right) == (n, n + 5, right)
    assert found.accuracy == right / n
    low = 0.0 if right == 0 else beta.ppf(0.025, right, n - right + 1)
    high = 1.0 if right == n else beta.ppf(0.975, right + 1, n - right)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


def test_nothing_is_expected_where_no_question_is_that_confident():
    assert expected_accuracy(0.95, CONFIDENCE, CORRECT) is None
