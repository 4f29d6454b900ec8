"""Facts about rows before training: overlaps, labels, lengths, cut passages, the text fed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
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


class References(NamedTuple):
    """The accepted answers of a split of open questions."""

    fewest: int
    mean: float
    most: int
    """accepted answers of a question"""
    commonest: str
    """the reference that most questions share, case and white space aside"""
    share: float
    """share of the questions with it"""


class Lengths(NamedTuple):
    """Tokens of prompts with their longest option (open questions: with the reference)."""

    shortest: int
    median: float
    p95: float
    longest: int


class Overlap(NamedTuple):
    """Questions of one split that are also in another."""

    first: str
    second: str
    rows: int
    """rows of `second`"""
    example: str
    """the question of one of them"""


class Cut(NamedTuple):
    """The place at which a passage lost its middle or end."""

    id: str
    beginning: str
    """beginning of the prompt"""
    before: str
    """end of the passage before the cut"""
    after: str
    """text after the cut"""


def labels(rows: Sequence[Example]) -> Labels:
    """Count the right answers of questions with options, at least one."""
    options = Counter(len(row.choices) for row in rows)
    positions = np.bincount([row.answer for row in rows], minlength=max(options))
    chance = sum(count / size for size, count in options.items()) / len(rows)
    shares = tuple(float(share) for share in positions / len(rows))
    return Labels(dict(sorted(options.items())), shares, chance)


def references(rows: Sequence[Example]) -> References:
    """Count the accepted answers of open questions, at least one."""
    counts = [len(row.aliases) for row in rows]
    answers = Counter(fold_case(row.aliases[0]) for row in rows)
    (commonest, times), *_ = answers.most_common(1)
    return References(
        min(counts), float(np.mean(counts)), max(counts), commonest, times / len(rows)
    )


def lengths(split: EncodedSplit) -> Lengths:
    """Measure a split with at least one row."""
    # `split.lengths` counts inputs: the last token of a text is predicted and never read.
    counts = split.lengths + 1
    return Lengths(
        int(counts.min()),
        float(np.median(counts)),
        float(np.percentile(counts, 95)),
        int(counts.max()),
    )


def repeated(rows: Sequence[Example]) -> int:
    """Return the number of rows whose question stands earlier in the same split."""
    return len(rows) - len({question_key(row) for row in rows})


def overlaps(splits: Mapping[str, Sequence[Example]]) -> list[Overlap]:
    """Find equal questions in every pair of splits, compared by `question_key`."""
    keys = {name: {question_key(row) for row in rows} for name, rows in splits.items()}
    found = []
    for first, second in combinations(splits, 2):
        same = [row for row in splits[second] if question_key(row) in keys[first]]
        if same:
            found.append(Overlap(first, second, len(same), same[0].question))
    return found


def near_overlaps(
    sources: Mapping[str, Sequence[Example]], rows: Sequence[Example]
) -> list[Example]:
    """Return the rows whose question has the same words as a row of `sources`, but not its
    passage, options, punctuation or case.

    Splitting keeps them, for they may be two questions.
    """
    earlier = [row for source in sources.values() for row in source]
    words, equal = set(map(_words, earlier)), set(map(question_key, earlier))
    return [row for row in rows if _words(row) in words and question_key(row) not in equal]


def _words(row: Example) -> str:
    text = fold_case(row.question)
    return " ".join(re.findall(r"\w+", text)) or text


def cut_rows(split: EncodedSplit) -> list[Encoded]:
    """Return the rows whose prompt does not hold the whole passage."""
    return [e for e in split if e.example.passage and e.example.passage not in e.prompt]


def show_cut(row: Encoded, width: int = 60) -> Cut:
    """Return the text on both sides of the cut, `width` characters each."""
    passage, prompt = row.example.passage, row.prompt
    # Bisection for the longest beginning of the passage that the prompt holds.
    low, high = 0, len(passage)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if passage[:middle] in prompt else (low, middle - 1)
    end = prompt.find(passage[:low]) + low if low else 0
    return Cut(row.id, prompt[:width], prompt[max(0, end - width) : end], prompt[end : end + width])


def fed_text(row: Encoded, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> str:
    """Return the text that a model is fed: special tokens written out, with a mark at line ends
    and before the right completion."""
    special = tokenizer.convert_ids_to_tokens(prompt_prefix(config, tokenizer))
    text = "".join(special) + row.prompt + BORDER + row.completions[row.answer]
    return text.replace("\n", f"{LINE_END}\n")
