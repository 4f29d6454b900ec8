"""OpenBookQA, ARC, CommonsenseQA: a question, `choices` as texts with labels, `answerKey`.

Labels are letters or "1".."4" (some rows of ARC); the number of choices may differ from row to
row (ARC has rows with 3 and 5).
"""

from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.tasks.fields import labelled, position, text, texts


def lettered(question_field: str) -> Callable[[Mapping[str, Any], int], Example]:
    """The reader of this schema with the question in `question_field`."""

    def read(row: Mapping[str, Any], number: int) -> Example:
        choices = row.get("choices")
        if not isinstance(choices, Mapping) or not {"text", "label"} <= set(choices):
            raise BadRow('has no "choices" with "text" and "label"')
        options = texts(choices["text"], "choices.text")
        labels = texts(choices["label"], "choices.label")
        if len(options) != len(labels) or len(set(labels)) != len(labels):
            raise BadRow(f"{len(options)} choices do not match the labels {', '.join(labels)}")
        usual = labels == tuple(ascii_uppercase[: len(labels)])
        return Example(
            id=text(row, "id"),
            question=text(row, question_field),
            choices=options,
            answer=position(labelled(row, "answerKey"), labels, "answerKey"),
            # Published prompts show the labels of the row.
            extra={} if usual else {"labels": list(labels)},
        )

    return read
