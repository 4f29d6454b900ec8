"""BoolQ: a yes-or-no question about a passage; `answer` is true or false, `label` 1 or 0."""

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.data.example import BadRow, Example, NoLabel
from cogcalib_jax.data.tasks.fields import content_id, labelled, text

_MEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_boolq(row: Mapping[str, Any], number: int) -> Example:
    """Return the question of a row. Rows have no id: it is made from their number and content."""
    question, passage = text(row, "question"), text(row, "passage")
    answers = {
        name: _answer(row, name) for name in ("answer", "label") if row.get(name) is not None
    }
    if not answers:
        raise NoLabel(f"has no answer and no label (its fields are: {', '.join(map(str, row))})")
    if len(set(answers.values())) > 1:
        raise BadRow(f"answer is {row['answer']!r} and label is {row['label']!r}; remove one")
    return Example(
        id=content_id(number, question, passage),
        question=question,
        choices=("yes", "no"),
        answer=0 if next(iter(answers.values())) else 1,
        passage=passage,
    )


def _answer(row: Mapping[str, Any], name: str) -> bool:
    value = labelled(row, name)
    means = _MEANS.get(str(value).strip().casefold())
    if means is None:
        raise BadRow(f"{name} is {value!r:.60}; expected true or false, yes or no, or 1 or 0")
    return means
