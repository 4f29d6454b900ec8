"""Facts about rows before training: labels, overlaps, cut passages, the text fed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import prompt_prefix
from cogcalib_jax.data.example import Encoded, EncodedSplit, Example, fold_case, question_key

# Marks between prompt and completion, and at line ends, in a text shown to a person.
BORDER = "▶"
LINE_END = "⏎"


class Labels(NamedTuple):
    """The right answers of a split of questions with options."""

    options: dict[int, int]
    """number of options -> questions, ascending"""
    shares: tuple[float, ...]
    """share of the questions with the right answer at each position"""
    chance: float
    """expected accuracy of guessing: the mean of 1 / options"""

    @property
    def commonest(self) -> int:
        """The position, from 0, that is right most often, in `shares[commonest]` of the rows."""
        return int(np.argmax(self.shares))


def labels(rows: Sequence[Example]) -> Labels:
    """Count the right answers of questions with options, at least one."""
    options = Counter(len(row.choices) for row in rows)
    positions = np.bincount([row.answer for row in rows], minlength=max(options))
    chance = sum(count / size for size, count in options.items()) / len(rows)
    shares = tuple(float(share) for share in positions / len(rows))
    return Labels(dict(sorted(options.items())), shares, chance)


def repeated(rows: Sequence[Example]) -> int:
    """Return the number of rows whose question stands earlier in the same split."""
    return len(rows) - len({question_key(row) for row in rows})


def near_overlaps(
    earlier_splits: Iterable[Sequence[Example]], rows: Sequence[Example]
) -> list[Example]:
    """Return the rows whose question has the same words as an earlier row, but not its
    passage, options, punctuation or case.

    Splitting keeps them, for they may be two questions.
    """
    earlier = [row for split in earlier_splits for row in split]
    words, equal = set(map(_words, earlier)), set(map(question_key, earlier))
    return [row for row in rows if _words(row) in words and question_key(row) not in equal]


def _words(row: Example) -> str:
    text = fold_case(row.question)
    return " ".join(re.findall(r"\w+", text)) or text


def cut_rows(split: EncodedSplit) -> list[Encoded]:
    """Return the rows whose prompt does not hold the whole passage."""
    return [e for e in split if e.example.passage and e.example.passage not in e.prompt]


def fed_text(row: Encoded, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> str:
    """Return the text that a model is fed: special tokens written out, with a mark at line ends
    and before the right completion."""
    special = tokenizer.convert_ids_to_tokens(prompt_prefix(config, tokenizer))
    text = "".join(special) + row.prompt + BORDER + row.completions[row.answer]
    return text.replace("\n", f"{LINE_END}\n")
