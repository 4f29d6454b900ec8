"""Scores of free text against the answers that count: exact match and token F1 of SQuAD.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text"; answers
without a word as in the evaluation of SQuAD 2.0 (2018).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case; no ASCII punctuation; no a, an, the; words parted by one space.

    In this order, as published: "the." loses its point first and then goes as an article. Other
    punctuation (a typographic apostrophe, say) stays, and so do accents.
    """
    words = _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION))
    return " ".join(words.split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` equals any of `answers` (at least one) once both are normalised."""
    normal = normalise_answer(text)
    return any(normal == normalise_answer(answer) for answer in answers)


def token_f1(text: str, answers: Sequence[str]) -> float:
    """The best F1 over `answers` (at least one) of the normalised words, as bags, from 0 to 1.

    A text or answer without words scores 1 against another without words and 0 otherwise.
    """
    return max(_f1(normalise_answer(text).split(), normalise_answer(a).split()) for a in answers)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    # 2PR / (P + R) with P = shared / words and R = shared / wanted.
    return 2 * shared / (len(words) + len(wanted))
