"""BoolQ: a yes-or-no question about a passage; `answer` is a boolean."""

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.tasks.fields import content_id, labelled, text


def read_boolq(row: Mapping[str, Any], number: int) -> Example:
    """Rows have no id: it is made from their number and content."""
    question, passage = text(row, "question"), text(row, "passage")
    answer = labelled(row, "answer")
    if not isinstance(answer, bool):
        raise BadRow(f"answer must be true or false, is {answer!r:.60}")
    return Example(
        id=content_id(number, question, passage),
        question=question,
        choices=("yes", "no"),
        answer=0 if answer else 1,
        passage=passage,
    )
