"""Encoded questions of which only what is given matters."""

from collections.abc import Mapping, Sequence
from typing import Any

from cogcalib_jax.data.example import Encoded, EncodedSplit, Example


def encoded_rows(rows: Sequence[Mapping[str, Any]]) -> EncodedSplit:
    """Questions with two options; `rows` gives fields of their examples."""
    made = []
    for i, fields in enumerate(rows):
        example = Example(
            **{"id": str(i), "question": "q", "choices": ("a", "b"), "answer": 0} | fields
        )
        made.append(
            Encoded(
                id=example.id,
                prompt=example.question,
                completions=(" a", " b"),
                prompt_ids=(1, 2),
                completion_ids=((3,), (4,)),
                answer=example.answer,
                example=example,
            )
        )
    return EncodedSplit(made)
