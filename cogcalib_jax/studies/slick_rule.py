"""SliCK: how well a model knows an answer, told from what it says under several prompts.

Gekhman et al., "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?", EMNLP 2024
(arXiv 2405.05904): section 3, figure 2a, and appendix C for how P_Correct is estimated. For
analysis; no loss and no gate uses it.
"""

from __future__ import annotations

import numpy as np

# Section 3 and appendix C: 10 prompts of 4 solved questions, a greedy answer and 16 samples each.
PROMPTS = 10
SHOTS = 4
SAMPLES = 16
TEMPERATURE = 0.5

UNKNOWN = "Unknown"
KNOWN = ("HighlyKnown", "MaybeKnown", "WeaklyKnown")
CATEGORIES = (*KNOWN, UNKNOWN)


def slick_categories(greedy: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """The category of each question, `[rows]` of `CATEGORIES` (figure 2a).

    greedy `[rows, prompts]` bool: the greedy answer is right. sampled `[rows]` bool: an answer
    sampled at `TEMPERATURE`, under any of the prompts, is right.
    """
    greedy, sampled = np.asarray(greedy, bool), np.asarray(sampled, bool)
    if greedy.ndim != 2 or greedy.shape[1] == 0 or sampled.shape != greedy.shape[:1]:
        raise ValueError(f"need [rows, prompts] and [rows], got {greedy.shape}, {sampled.shape}")
    cases = [greedy.all(1), greedy.any(1), sampled]
    return np.select(cases, KNOWN, default=UNKNOWN)


def would_be_sampled(probability: np.ndarray, samples: int = SAMPLES) -> np.ndarray:
    """Whether samples would sooner hold the right answer than not, `[rows]` bool.

    probability `[rows, prompts]`: of the right answer under each prompt at `TEMPERATURE`. Where it
    is known exactly nothing need be drawn: `samples` answers a prompt hold the right one with
    probability 1 - prod_j (1 - p_j)^samples. Never is not to be had from probabilities, which are
    above 0 for every answer, so the line is drawn at one half: what most draws would say.
    """
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):  # log of 0 where an answer is certain
        log_none = samples * np.log1p(-np.minimum(p, 1.0)).sum(1)
    return -np.expm1(log_none) >= 0.5
