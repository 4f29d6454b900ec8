"""A task in memory: questions in five splits, each with the way it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import say
from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.encoding import template_of
from cogcalib_jax.data.example import BadRow, Example, KeptTuple
from cogcalib_jax.data.formats import Row, require_distinct
from cogcalib_jax.data.loading import load_splits, read_line
from cogcalib_jax.data.prompts import Template
from cogcalib_jax.data.sources import Stored, stored_rows
from cogcalib_jax.data.tasks.columns import Columns
from cogcalib_jax.data.tasks.custom import Reader, settle
from cogcalib_jax.data.tasks.fields import check
from cogcalib_jax.errors import UserError

IN_MEMORY = "rows in memory"


class Frame(Protocol):
    """The part of a pandas DataFrame that is used."""

    columns: Any

    def to_dict(self, orient: str) -> Any: ...


RowSource = str | Path | Frame | Iterable[Mapping[str, Any]]
"""A file (CSV, TSV, JSON, JSON lines, Parquet; text also with gzip), a pandas DataFrame, a
`datasets.Dataset`, or an iterable of dicts"""


@dataclass(frozen=True)
class Prompting:
    """The settings by which questions become prompts."""

    data: DataConfig = field(default_factory=lambda: DataConfig(task="custom", path=IN_MEMORY))
    shots: tuple[Example, ...] = ()
    """solved questions before every prompt"""
    template: Template | None = None
    """the prompt itself; None: the one that `data` names"""

    def with_options(self, tokenizer: PreTrainedTokenizerBase) -> Template:
        """Return the template of every prompt of questions with choices, solved ones included."""
        if self.template is None:
            return template_of(self.data, tokenizer, self.shots, is_open=False)
        return self.template.after(self.shots) if self.shots else self.template


def stored_prompting(calibration: Mapping[str, Any]) -> Prompting:
    """Return the prompting that `calibration.json` stores.

    Its template already holds the solved questions of a few-shot prompt.
    """
    pieces = {
        name: tuple(piece) if isinstance(piece, list) else piece
        for name, piece in calibration["prompt"].items()
    }
    is_chat = calibration["chat_template_sha256"] is not None
    data = DataConfig(
        task="custom",
        path=IN_MEMORY,
        prompt=CHAT if is_chat else "auto",
        max_length=calibration["max_length"],
    )
    return Prompting(data, template=Template(**pieces))


class Examples(KeptTuple[Example]):
    """Questions of one split with their prompting; a slice keeps it."""

    kept = ("split", "prompting")
    split: str
    prompting: Prompting

    @classmethod
    def of(cls, rows: Iterable[Example], split: str, prompting: Prompting) -> Self:
        """Return `rows` with their prompting."""
        made = cls(rows)
        made.split, made.prompting = split, prompting
        return made


@dataclass(frozen=True)
class Task:
    """Questions in five splits that share no question and no group.

    Style adaptation uses `style`, fine-tuning `train`; the threshold and calibrators are fitted on
    `calibration`, choices are made on `validation`, and results are measured on `test`.
    """

    name: str
    style: Examples
    train: Examples
    calibration: Examples
    validation: Examples
    test: Examples
    notes: tuple[str, ...] = ()
    """how rows were read, and rows that were left out and why, a line each"""

    @classmethod
    def from_rows(
        cls,
        rows: RowSource,
        *,
        validation: RowSource | None = None,
        test: RowSource | None = None,
        prompt: str | Template = "auto",
        columns: Mapping[str, str | Sequence[str]] | None = None,
        name: str = "custom",
        seed: int = 0,
        **settings: Any,
    ) -> Task:
        """Split your own rows.

        Args:
            rows: training rows. Each has a question, choices (none for open questions) and an
                answer, in the usual columns (docs/tasks.md).
            validation: rows of that split; None: 15 % of `rows`, at most 500.
            test: rows of that split; None: 20 % of `rows`, at most 2,000.
            prompt: the name of a prompt (letters, cloze, qa, chat ...), auto, or a `Template`.
            columns: field -> column, or columns, with unusual names:
                `{"question": "stem", "choices": ["A", "B"], "answer": "key"}`.
            name: the task's name in messages.
            seed: decides which rows go where.
            settings: further fields of `DataConfig`, such as few_shot, max_length,
                calibration_rows, validation_rows, test_rows, train_rows, on_bad_row.

        Raises:
            UserError: rows that cannot be read or used, with their place; too few of them.
        """
        given = {"train": rows, "validation": validation, "test": test}
        stored = {
            split: stored_source(source, split)
            for split, source in given.items()
            if source is not None
        }
        named = [
            f"{field}={names if isinstance(names, str) else '+'.join(names)}"
            for field, names in (columns or {}).items()
        ]
        own = tuple(named) or None
        config = _config("custom", IN_MEMORY, prompt, seed, columns=own, **settings)
        return _task(name, config, prompt, seed, stored)

    @classmethod
    def from_path(
        cls, path: str | Path, *, prompt: str | Template = "auto", seed: int = 0, **settings: Any
    ) -> Task:
        """Split the rows of a file, or of a folder with train, validation and test files.

        Arguments and errors as for `from_rows`.
        """
        config = _config("custom", str(path), prompt, seed, **settings)
        return _task(Path(path).stem, config, prompt, seed)

    @classmethod
    def from_hub(
        cls,
        name: str,
        *,
        path: str | Path | None = None,
        prompt: str | Template = "auto",
        seed: int = 0,
        **settings: Any,
    ) -> Task:
        """Load a task that docs/tasks.md lists, such as "openbookqa" or "invented_facts".

        path: a folder with its rows in the Hub's schema; None: the Hugging Face Hub. Other
        arguments and errors as for `from_rows`.
        """
        config = _config(name, None if path is None else str(path), prompt, seed, **settings)
        return _task(name, config, prompt, seed)


def stored_source(source: RowSource, name: str) -> Stored:
    """Return the rows of `source`, at least one, each with its place for messages (UserError:
    none)."""
    if isinstance(source, str | Path):
        stored = stored_rows([Path(source)], str(source))
    else:
        if hasattr(source, "notna"):
            require_distinct(f"{name} rows", list(map(str, source.columns)))
            # Missing values of a table (NaN, NA, NaT) become None.
            source = source.astype(object).where(source.notna(), None).to_dict("records")
        rows = [Row(f"{name} row {n}", n, _content(row)) for n, row in enumerate(source, start=1)]
        stored = Stored(rows, f"{name} rows")
    if not stored.rows:
        raise UserError(f"{stored.source}: there are none; expected at least one. Give more rows")
    return stored


class Question(NamedTuple):
    """An example without an answer, and its place."""

    where: str
    """FILE:LINE"""
    example: Example
    """its `answer` is 0 and means nothing"""


def load_questions(path: Path, columns: Columns | None = None) -> tuple[list[Question], str]:
    """Return all questions of a file of rows, in its order, and a line about what was read.

    Their answers are not read.

    columns: field -> columns, as for the training rows; a field whose columns the file lacks is
        looked for under its usual names.

    Raises:
        UserError: a row that cannot be used, with file and line; a file without rows.
    """
    stored = stored_rows([path], str(path))
    if not stored.rows:
        raise UserError(f"{path}: has no rows; give one question a line")
    questions, read = read_questions(stored, columns or {})
    examples = [question.example for question in questions]
    return questions, read_line({"": stored}, examples, read, ())


def read_questions(stored: Stored, columns: Columns) -> tuple[list[Question], Reader]:
    """Return the questions among stored rows, and their reader; else as `load_questions`."""
    held = {
        str(name) for row in stored.rows if isinstance(row.content, Mapping) for name in row.content
    }
    asked = {
        field: names
        for field, names in columns.items()
        if all(part.strip() in held for part in names.split("+"))
    }
    read = settle(stored.rows, asked, needs_answer=False)
    questions: list[Question] = []
    for row in stored.rows:
        try:
            if isinstance(row.content, BadRow):
                raise row.content
            questions.append(Question(row.where, check(read(row.content, row.number, row.where))))
        except BadRow as reason:
            raise UserError(f"{row.where}: {reason}; fix it or leave it out") from reason
    seen: dict[str, str] = {}
    for where, example in questions:
        if example.id in seen:
            raise UserError(
                f"{where}: its id {example.id!r} is already used at {seen[example.id]};"
                " give each question its own id, or none"
            )
        seen[example.id] = where
    return questions, read


def questions_of(source: RowSource, prompting: Prompting) -> Examples:
    """Return questions without answers, whose `answer` means nothing (UserError: an unusable
    row)."""
    questions, _ = read_questions(stored_source(source, "questions"), {})
    return Examples.of([one.example for one in questions], "questions", prompting)


def question_row(question: str, choices: Any, passage: str) -> dict[str, Any]:
    """Return one question as a row (UserError: choices that are no texts)."""
    found = [*(choices.values() if isinstance(choices, Mapping) else choices)]
    if isinstance(choices, str) or not all(isinstance(text, str) for text in found):
        raise UserError(
            f"choices are {choices!r:.60}; expected a list of texts, as in ['red', 'green']"
        )
    return {"question": question, "choices": found} | ({"passage": passage} if passage else {})


def are_examples(rows: Any) -> bool:
    """Return whether `rows` are a task's questions, and no rows to be read."""
    if isinstance(rows, Examples):
        return True
    listed = isinstance(rows, Sequence) and not isinstance(rows, str)
    return listed and all(isinstance(row, Example) for row in rows)


def as_examples(rows: Sequence[Example], prompting: Prompting) -> Examples:
    """Return questions with their own prompting, or with `prompting` if they have none.

    Raises:
        UserError: rows that are no questions yet; none.
    """
    if len(rows) == 0:
        raise UserError("questions: there are none; expected at least one. Give more")
    if isinstance(rows, Examples):
        return rows
    if not are_examples(rows):
        raise UserError(
            f"questions are {rows!r:.40}; expected a split of a Task, such as task.calibration."
            " Make one with Task.from_rows"
        )
    return Examples.of(rows, "questions", prompting)


def _content(row: Any) -> Mapping[str, Any] | BadRow:
    if not isinstance(row, Mapping):
        return BadRow(f"must be a dict of columns, is a {type(row).__name__}")
    return {str(key): _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    """Return arrays and NumPy scalars of Parquet and pandas, however deep, as Python values."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _config(
    task: str, path: str | None, prompt: str | Template, seed: int, **settings: Any
) -> DataConfig:
    word = prompt if isinstance(prompt, str) else "auto"
    try:
        return DataConfig(task=task, path=path, prompt=word, split_seed=seed, **settings)
    except TypeError as error:
        raise UserError(f"Task: {error}; expected a field of DataConfig") from error


def _task(
    name: str,
    config: DataConfig,
    prompt: str | Template,
    seed: int,
    stored: Mapping[str, Stored] | None = None,
) -> Task:
    splits = load_splits(config, seed, stored)
    template = prompt if isinstance(prompt, Template) else None
    prompting = Prompting(config, splits.shots, template)
    notes = tuple(filter(None, (splits.read, *splits.notes)))
    for note in notes:
        say(f"   {note}")
    made = {split: Examples.of(rows, split, prompting) for split, rows in splits.items()}
    return Task(name, **made, notes=notes)
