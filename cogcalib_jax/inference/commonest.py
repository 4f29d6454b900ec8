"""The constant prediction: how often each answer is right among the fine-tuning rows.

A model that does not beat it has learnt nothing about single questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from cogcalib_jax.data.example import Encoded
from cogcalib_jax.inference.predictions import Predictions

BY_TEXT, BY_POSITION = "text", "position"


def commonest_answer(train: Sequence[Encoded], encoded: Sequence[Encoded]) -> Predictions:
    """Predict the same for every question of `encoded`: the smoothed frequencies of right answers.

    Answers are counted by their text if all rows of `train` and `encoded` share one set of option
    texts (yes and no; the relations of a table), else by their position. One is added to each
    count, and the counts of the options that a question has are divided by their sum. The first of
    the options with the largest probability is the prediction.

    Args:
        train: rows with options, at least one.
    """
    by = counted_by(train, encoded)
    counts = Counter(_keys(row, by)[row.answer] for row in train)
    options = np.array([len(row.completions) for row in encoded])
    exists = np.arange(options.max()) < options[:, None]
    probs = np.ones(exists.shape)
    for i, row in enumerate(encoded):
        probs[i, : options[i]] += [counts[key] for key in _keys(row, by)]
    probs = np.where(exists, probs, 0.0)
    probs /= probs.sum(-1, keepdims=True)
    return Predictions(
        # Each option counts as one token, so that no rule for several tokens changes its score.
        logprobs=np.log(probs, out=np.full(probs.shape, np.nan), where=exists),
        tokens=exists.astype(int),
        answers=np.array([row.answer for row in encoded]),
        option_score="sum",
    )


def counted_by(train: Sequence[Encoded], encoded: Sequence[Encoded]) -> str:
    """Return "text" if all rows share one set of option texts, else "position"."""
    texts = {frozenset(row.example.choices) for row in (*train, *encoded)}
    # A published protocol may score more letters than a row has options.
    whole = all(len(row.completions) == len(row.example.choices) for row in (*train, *encoded))
    return BY_TEXT if len(texts) == 1 and whole else BY_POSITION


def _keys(row: Encoded, by: str) -> Sequence[Hashable]:
    return row.example.choices if by == BY_TEXT else range(len(row.completions))
