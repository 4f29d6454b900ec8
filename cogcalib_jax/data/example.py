"""The shapes rows take on their way from a data set to a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cogcalib_jax.data.prompts import Template


class BadRow(Exception):
    """A row that cannot be used. The message says why; whoever reads rows adds where."""


class NoLabel(BadRow):
    """A row without an answer, as in the unlabelled test splits of the Hub."""


@dataclass(frozen=True)
class Example:
    """One question: with options to choose from, or open, with the answers that are accepted."""

    id: str
    question: str
    choices: tuple[str, ...]
    """the options; of an open question its reference answer alone, which training completes"""
    answer: int
    """index of the right choice; 0 for an open question"""
    passage: str = ""
    group: str | None = None
    """rows of one group never lie in two splits (twin sentences, questions about one person)"""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts about the row, carried into predictions"""
    aliases: tuple[str, ...] = ()
    """accepted answers of an open question, the reference first; () for one with options"""

    @property
    def is_open(self) -> bool:
        """Whether the answer is written freely instead of chosen."""
        return bool(self.aliases)


@dataclass(frozen=True)
class Splits:
    """Rows by use; disjoint in rows, duplicate questions and groups."""

    style: tuple[Example, ...]
    train: tuple[Example, ...]
    calibration: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    shots: tuple[Example, ...] = ()
    """solved questions that stand before every prompt (`data.few_shot`), in none of the five"""
    notes: tuple[str, ...] = ()
    """what was left out and why, a line each, to be shown to the user"""
    read: str = field(default="", compare=False)
    """which files were read and how, in a line; "" if there are none"""

    def items(self) -> tuple[tuple[str, tuple[Example, ...]], ...]:
        """(name, rows) of the five splits."""
        names = ("style", "train", "calibration", "validation", "test")
        return tuple((name, getattr(self, name)) for name in names)


@dataclass(frozen=True)
class Encoded:
    """An example as text and token ids: ids(prompt + completion) = prompt_ids + completion_ids."""

    id: str
    prompt: str
    """the exact text, already truncated"""
    completions: tuple[str, ...]
    """the exact text appended to the prompt for each option"""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    answer: int
    example: Example

    @property
    def characters(self) -> tuple[int, ...]:
        """Unicode code points of each completion without outer white space."""
        return tuple(len(text.strip()) for text in self.completions)


def exclude_one_another(completions: Sequence[Sequence[int]]) -> bool:
    """Whether no completion `[tokens]` begins with all of another one.

    Then at most one of them can follow a prompt, and their probabilities over the vocabulary sum to
    at most 1. "cat" and "cat food" can both: what begins with the second begins with the first.
    """
    # In order, what begins with a completion comes right behind it.
    in_order = pairwise(sorted(map(tuple, completions)))
    return all(longer[: len(shorter)] != shorter for shorter, longer in in_order)


class EncodedSplit(tuple[Encoded, ...]):
    """A tuple of encoded rows that remembers what batches need to know about all of them.

    Shapes of batches depend on the split and not on the rows drawn, so that one split compiles
    once per padded length; with 100,000 rows that must not be worked out at every step.
    """

    template: "Template | None" = None
    """what its prompts are made of, as `encode_split` says; None for rows put together since"""

    pmi_prefix_ids: tuple[int, ...] | None = None
    """the ids after which an option is scored without its question, as `encode_split` says; None
    for open questions and for tokenizers with neither BOS nor end-of-text token"""

    protocol: str = "clean"
    """the protocol they are asked by"""

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> "EncodedSplit":
        """`rows` themselves where they are a split already, else a copy that is one."""
        return rows if isinstance(rows, cls) else cls(rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[rows] int32: input length with the longest option (its last token is no input)."""
        return np.array(
            [len(row.prompt_ids) + max(map(len, row.completion_ids)) - 1 for row in self],
            dtype=np.int32,
        )

    @cached_property
    def answer_tokens(self) -> int:
        """Tokens of the longest right answer."""
        return max((len(row.completion_ids[row.answer]) for row in self), default=0)

    @cached_property
    def option_tokens(self) -> int:
        """Tokens of the longest option."""
        return max((len(ids) for row in self for ids in row.completion_ids), default=0)

    @cached_property
    def options(self) -> int:
        """The largest number of options of a row."""
        return max((len(row.completion_ids) for row in self), default=0)

    @cached_property
    def exclusive_options(self) -> bool:
        """Whether the options of every row exclude one another over the vocabulary."""
        return all(exclude_one_another(row.completion_ids) for row in self)

    @cached_property
    def is_open(self) -> bool:
        """Whether its questions are open; loading refuses a split of both kinds."""
        return bool(self) and all(row.example.is_open for row in self)

    @cached_property
    def single_token_options(self) -> bool:
        """Whether every option is one token, and another one for every option of a row.

        An open question has no options, however short its answer.
        """
        return (
            not self.is_open
            and all(len(ids) == 1 for row in self for ids in row.completion_ids)
            and all(len(set(row.completion_ids)) == len(row.completion_ids) for row in self)
        )
