"""Questions to be answered: rows as of task custom, of which nobody has to know the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.reading import read_line
from cogcalib_jax.data.sources import Stored, stored_rows
from cogcalib_jax.data.tasks.custom import Reader, settle
from cogcalib_jax.data.tasks.fields import check
from cogcalib_jax.errors import UserError


class Question(NamedTuple):
    """An example without an answer, and where it stands."""

    where: str
    """FILE:LINE"""
    example: Example
    """its `answer` is 0 and means nothing"""


class Questions(NamedTuple):
    """All questions of a file."""

    questions: list[Question]
    note: str
    """what was read, in words"""


def load_questions(path: Path, columns: Mapping[str, tuple[str, ...]] | None = None) -> Questions:
    """Return all questions of a file of rows, in its order; an answer that is there is not read.

    columns: field -> columns, as for the training rows; usual names are looked for in a file that
    has none of these.

    Raises UserError with file and line for a row that cannot be used, and for a file without rows.
    """
    stored = stored_rows([path], str(path))
    if not stored.rows:
        raise UserError(f"{path}: has no rows; give one question a line")
    questions, read = read_questions(stored, columns or {})
    examples = [question.example for question in questions]
    return Questions(questions, read_line({"": stored}, examples, read, ()))


def read_questions(
    stored: Stored, columns: Mapping[str, tuple[str, ...]]
) -> tuple[list[Question], Reader]:
    """Return the questions among stored rows, and how they were read.

    Arguments and errors as for `load_questions`.
    """
    held = {
        str(name) for row in stored.rows if isinstance(row.content, Mapping) for name in row.content
    }
    asked = {
        field: names
        for field, names in columns.items()
        if all(part.strip() in held for name in names for part in name.split("+"))
    }
    read = settle(stored.rows, asked, needs_answer=False)
    questions = []
    for row in stored.rows:
        try:
            if isinstance(row.content, BadRow):
                raise row.content
            questions.append(Question(row.where, check(read(row.content, row.number, row.where))))
        except BadRow as reason:
            raise UserError(f"{row.where}: {reason}; mend it or leave it out") from reason
    _require_distinct(questions)
    return questions, read


def _require_distinct(questions: Sequence[Question]) -> None:
    """Answers are told apart by the ids of their questions."""
    seen: dict[str, str] = {}
    for where, example in questions:
        if example.id in seen:
            raise UserError(
                f"{where}: its id {example.id!r} stands at {seen[example.id]} already;"
                " give each an id of its own, or none"
            )
        seen[example.id] = where
