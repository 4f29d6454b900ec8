"""Questions, encoded questions and splits, and the rule by which two rows ask the same question.

Repeats are one unit in intervals, paired differences, noise floors and p-values: a model that knows
a question is right in all of them, so they add no information.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self, SupportsIndex, TypeVar, overload

import numpy as np

from cogcalib_jax.errors import UserError

if TYPE_CHECKING:
    from cogcalib_jax.data.prompts import Template

Kept = TypeVar("Kept")

HASH = "question_hash"
"""the field of a prediction row that `question_hash` fills"""
_OPTIONS = ("choices", "options", "completions")


class BadRow(Exception):
    """A row that cannot be used. The message is the reason; the reader of rows adds the place."""


class NoLabel(BadRow):
    """A row without an answer, as in the unlabelled test splits of the Hub."""


@dataclass(frozen=True)
class Example:
    """One question: with options to choose from, or open, with the answers that are accepted."""

    id: str
    question: str
    choices: tuple[str, ...]
    """the options; for an open question its reference answer alone, which training completes"""
    answer: int
    """index of the right choice; 0 for an open question"""
    passage: str = ""
    group: str | None = None
    """rows of one group never lie in two splits (twin sentences, questions about one person)"""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON values about the row, carried into predictions"""
    aliases: tuple[str, ...] = ()
    """accepted answers of an open question, the reference first; () for one with options"""

    @property
    def is_open(self) -> bool:
        """True if the answer is written freely instead of chosen."""
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
    """solved questions before every prompt (`data.few_shot`), in none of the five splits"""
    anchor: tuple[Example, ...] = ()
    """questions without answers, in a split of their own (see `AnchorConfig`)"""
    notes: tuple[str, ...] = ()
    """rows that were left out and why, a line each"""
    read: str = field(default="", compare=False)
    """which files were read and how, in a line; "" if there are none"""

    def items(self) -> tuple[tuple[str, tuple[Example, ...]], ...]:
        """Return (name, rows) of the five splits."""
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


class KeptTuple(tuple[Kept, ...]):
    """A tuple whose slices keep the attributes that `kept` names."""

    kept: ClassVar[tuple[str, ...]]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Kept: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Kept | Self:
        found = super().__getitem__(index)
        if not isinstance(index, slice):
            return found
        part = type(self)(found)
        for name in self.kept:
            setattr(part, name, getattr(self, name))
        return part


class EncodedSplit(KeptTuple[Encoded]):
    """A tuple of encoded rows that caches what the shapes of batches depend on.

    Shapes depend on the split and not on the rows drawn, so a split compiles once per padded
    length. A slice is a split with the same prompts.
    """

    kept = ("template", "pmi_prefix_ids", "protocol")

    template: Template | None = None
    """the template of its prompts, set by `encode_split`"""

    pmi_prefix_ids: tuple[int, ...] | None = None
    """the ids after which an option is scored without its question, set by `encode_split`; None
    for open questions and for tokenizers with neither BOS nor end-of-text token"""

    protocol: str = "clean"
    """the protocol of its prompts"""

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> EncodedSplit:
        """Return `rows` as a split; a split is returned as it is."""
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
    def tree_lengths(self) -> np.ndarray:
        """[rows] int32: tokens of each prompt and of all its options but for their last ones."""
        return np.array(
            [len(row.prompt_ids) + sum(len(ids) - 1 for ids in row.completion_ids) for row in self],
            dtype=np.int32,
        )

    @cached_property
    def scored_tokens(self) -> np.ndarray:
        """[rows] int32: tokens of all options of each row."""
        return np.array([sum(map(len, row.completion_ids)) for row in self], dtype=np.int32)

    @cached_property
    def options(self) -> int:
        """The largest number of options of a row."""
        return max((len(row.completion_ids) for row in self), default=0)

    @cached_property
    def exclusive_options(self) -> bool:
        """True if the options of every row exclude one another over the vocabulary."""
        return all(exclude_one_another(row.completion_ids) for row in self)

    @cached_property
    def is_open(self) -> bool:
        """True for open questions; loading refuses a split of both kinds."""
        return bool(self) and all(row.example.is_open for row in self)

    @cached_property
    def single_token_options(self) -> bool:
        """True if every option is one token, different for every option of a row.

        An open question has no options, however short its answer.
        """
        return (
            not self.is_open
            and all(len(ids) == 1 for row in self for ids in row.completion_ids)
            and all(len(set(row.completion_ids)) == len(row.completion_ids) for row in self)
        )

    def needs_trees(self, option_score: str) -> bool:
        """Return False if the rule scores every option by the log-probability of its one token.

        Otherwise batches must hold all options of a question. chars divides one token, too, unless
        it is one character.
        """
        by_length = option_score == "chars" and any(n != 1 for row in self for n in row.characters)
        return by_length or not self.single_token_options


def unlabelled(example: Example) -> Example:
    """Return the question alone: without its answer and the other columns of its row."""
    nothing = ("?",) if example.is_open else ()
    choices = nothing or example.choices
    return replace(example, choices=choices, answer=0, extra={}, aliases=nothing)


def exclude_one_another(completions: Sequence[Sequence[int]]) -> bool:
    """Return whether no completion `[tokens]` begins with all of another one.

    At most one of such completions can follow a prompt, so their probabilities over the vocabulary
    sum to at most 1. "cat" and "cat food" do not exclude one another.
    """
    # Sorted, a completion stands right before those that begin with it.
    in_order = pairwise(sorted(map(tuple, completions)))
    return all(longer[: len(shorter)] != shorter for shorter, longer in in_order)


def as_read(value: str) -> str:
    """Return `value` as a reader sees it: Unicode NFC, runs of white space as one space.

    Case stays, because 5 mW is not 5 MW; so do compatibility forms, because 5² is not 52.
    Choices and questions are compared in this form.
    """
    return " ".join(unicodedata.normalize("NFC", value).split())


def fold_case(value: str) -> str:
    """Return `as_read(value)` without case, for comparisons in which a wrong match costs little."""
    return as_read(as_read(value).casefold())


def question_key(example: Example) -> tuple[str, ...]:
    """Return a key that is equal for two rows that ask the same, as a reader sees it.

    The order of choices does not count. Two references do not make an open question two.
    """
    return _key(example.passage, example.question, () if example.is_open else example.choices)


def question_hash(example: Example) -> str:
    """Return 16 hexadecimal digits of a hash of `question_key`."""
    return hashlib.sha256("\x1f".join(question_key(example)).encode()).hexdigest()[:16]


def question_clusters(rows: Iterable[Example]) -> np.ndarray:
    """Return [rows] int64: the number of each row's question, by first appearance."""
    return _numbers(map(question_key, rows))


def clusters_of_predictions(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return [rows] int64: the number of the question of each row of a file of predictions.

    Two rows have one question if they have the same `question_hash`; else the same passage,
    question and options; else the same prompt and options; else the same id. A row with none of
    these is a question of its own.
    """
    return _numbers(_prediction_key(row, place) for place, row in enumerate(rows))


def repeats_note(name: str, clusters: np.ndarray) -> tuple[str, ...]:
    """Return a note on the repeated questions of the rows `name`; () if there are none.

    clusters: [rows], as the functions above return them.
    """
    questions = len(np.unique(clusters))
    if questions == len(clusters):
        return ()
    return (
        f"{name}: {len(clusters):,} rows, {questions:,} different questions; repeats of a question"
        " count as one in intervals, noise floors and p-values",
    )


def contradictions_note(name: str, rows: Iterable[Example]) -> tuple[str, ...]:
    """Return a note on the questions of the rows `name` whose right choice differs between rows."""
    right: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        if not row.is_open:
            right.setdefault(question_key(row), set()).add(as_read(row.choices[row.answer]))
    differ = [key for key, answers in right.items() if len(answers) > 1]
    if not differ:
        return ()
    return (
        f"{name}: {len(differ):,} of {len(right):,} questions have different right answers in"
        f" different rows (the first: {differ[0][1]!r:.80}); no model can be right in all of them",
    )


def _key(passage: str, question: str, options: Iterable[str]) -> tuple[str, ...]:
    return (as_read(passage), as_read(question), *sorted(map(as_read, options)))


def _numbers(keys: Iterable[Hashable]) -> np.ndarray:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)


def _prediction_key(row: Mapping[str, Any], place: int) -> Hashable:
    if isinstance(row.get(HASH), str):
        return (HASH, row[HASH])
    passage = row["passage"] if isinstance(row.get("passage"), str) else ""
    options = next((texts for name in _OPTIONS if (texts := _texts(row.get(name)))), ())
    for name in ("question", "prompt"):
        if isinstance(row.get(name), str):
            return (name, _key(passage, row[name], options))
    name = row.get("id")
    if isinstance(name, float) and name.is_integer():
        name = int(name)  # tables with an empty cell hold 1.0 for 1
    if isinstance(name, str | int):
        return ("id", str(name))
    return ("place", place)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return ()


def require_shared_options(
    rows: EncodedSplit, setting: str, name: str, options: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Return the one list of options that all rows have.

    Args:
        setting: what needs it, for the message: "method.term is mdca".
        name: what the message calls the rows.
        options: the list that the rows must have; None: any.

    Raises:
        UserError: rows with other options.
    """
    if options is not None:
        other = next((row for row in rows if row.completions != options), None)
        if other is not None:
            raise UserError(
                f"{setting}, fitted on questions with the options {list(options)!r}; expected the"
                f" same, and {other.id} has {list(other.completions)!r}. Use another"
            )
        return options
    lists = len({row.completion_ids for row in rows})
    if lists > 1:
        raise UserError(
            f"{setting}; expected one list of options for all questions, and {name} has"
            f" {lists:,} lists. Use another, or a prompt whose options are letters"
            " (--data.prompt letters) with as many options in every row"
        )
    return rows[0].completions if rows else ()
