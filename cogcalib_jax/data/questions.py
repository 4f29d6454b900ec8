"""Questions to be answered: rows as of task custom, of which nobody has to know the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.sources import Row, read_file
from cogcalib_jax.data.tasks.custom import read_custom
from cogcalib_jax.data.tasks.fields import check
from cogcalib_jax.errors import UserError


class Question(NamedTuple):
    """An example without an answer, and where it stands."""

    where: str
    """FILE:LINE"""
    example: Example
    """its `answer` is 0 and means nothing"""


def load_questions(path: Path) -> list[Question]:
    """All questions of a JSONL or Parquet file, in its order; an answer that is there is not read.

    Raises UserError with file and line for a row that cannot be used, and for a file without rows.
    """
    rows = read_file(path)
    if not rows:
        raise UserError(f"{path}: has no rows; give one question a line")
    questions = [_question(row) for row in rows]
    _require_distinct(questions)
    return questions


def _question(row: Row) -> Question:
    try:
        if isinstance(row.content, BadRow):
            raise row.content
        if row.content.get("choices") is None:
            raise BadRow("has no choices; give the options to choose from")
        return Question(row.where, check(read_custom({**row.content, "answer": 0}, row.number)))
    except BadRow as reason:
        raise UserError(f"{row.where}: {reason}; mend it or leave it out") from reason


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
