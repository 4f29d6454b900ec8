"""Scores of questions whose answers are drawn from a known distribution."""

import numpy as np


def drawn(n=400, options=4, scale=3.0, seed=0, short=True):
    """Return scores [n, k] that are `scale` times too sharp, labels [n] and mask [n, k].

    short: whether every third question has an option less, whose score is -inf.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, options))
    mask = np.ones((n, options), bool)
    if short:
        mask[::3, -1] = False
    probs = np.where(mask, np.exp(logits), 0)
    probs /= probs.sum(-1, keepdims=True)
    labels = np.array([rng.choice(options, p=p) for p in probs])
    return np.where(mask, scale * logits, -np.inf), labels, mask


def with_start(n=400, options=4, seed=0, short=True):
    """Return scores, labels, mask, and scores of a start that knows other things."""
    scores, labels, mask = drawn(n, options, seed=seed, short=short)
    rng = np.random.default_rng(seed + 1)
    hint = np.eye(options)[labels] * 1.5
    start = np.where(mask, rng.normal(0, 1.2, scores.shape) + hint, -np.inf)
    return scores, labels, mask, start


def mean_nll(probs, labels):
    return -np.mean(np.log(probs[np.arange(len(labels)), labels]))
