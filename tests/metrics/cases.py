"""Rows that the tests of metrics share, and the plainest oracle of ECE."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

SETTINGS = settings(max_examples=60, deadline=None)


def calibrated_rows(n, seed, low=0.0):
    """Confidence [n] and correctness [n] of a calibrated model."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(low, 1, n)
    return confidence, (rng.random(n) < confidence).astype(float)


def option_rows(n, options=4, seed=0):
    """Probabilities [n, options] with one option missing in a third of the rows; mask; answers."""
    rng = np.random.default_rng(seed)
    mask = np.ones((n, options), bool)
    mask[rng.random(n) < 1 / 3, -1] = False
    probs = rng.dirichlet(np.ones(options), n) * mask
    probs /= probs.sum(1, keepdims=True)
    answers = np.array([rng.choice(options, p=p) for p in probs])
    return probs, mask, answers


def ece_by_loop(confidence, correct, bins):
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [
            i for i, c in enumerate(confidence) if low <= c < high or (b == bins - 1 and c == 1)
        ]
        if inside:
            total += abs(sum(confidence[i] - correct[i] for i in inside))
    return total / len(confidence)


@st.composite
def rows(draw, min_size=1, max_size=40):
    """Confidence with ties, zeros, ones and bin edges; correctness of one or two classes."""
    n = draw(st.integers(min_size, max_size))
    value = st.one_of(
        st.sampled_from([0.0, 1.0, 0.2, 0.6, 1 / 15, 14 / 15, 0.5, 0.9]),
        st.floats(0, 1, allow_subnormal=False),
    )
    confidence = np.array(draw(st.lists(value, min_size=n, max_size=n)))
    correct = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), float)
    return confidence, correct
