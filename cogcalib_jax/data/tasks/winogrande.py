"""WinoGrande: a sentence with a blank `_` and two ways to fill it; `answer` is "1" or "2"."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.tasks.fields import content_id, fold_case, labelled, position, text

# Share of words in common from which two sentences with the same two options count as twins.
# Measured on winogrande_m train and validation: of 1,563 neighbouring pairs with the same options
# every one is above 0.65; of 2,798 pairs elsewhere in the files 10 or so are, near-copies all.
TWIN_OVERLAP = 0.65


def read_winogrande(row: Mapping[str, Any], number: int) -> Example:
    """Rows have no id: it is made from their number and content."""
    sentence = text(row, "sentence")
    if "_" not in sentence:
        raise BadRow("sentence has no blank (_)")
    options = (text(row, "option1"), text(row, "option2"))
    return Example(
        id=content_id(number, sentence, *options),
        question=sentence,
        choices=options,
        answer=position(labelled(row, "answer"), ("1", "2"), "answer"),
    )


def group_twins(examples: Sequence[Example]) -> list[Example]:
    """The examples with twins in one group.

    A twin is the same sentence with a few words changed so that the answer flips. The Hub's schema
    has no key for pairs, so a pair is recognised by the same two options (in either order) and
    most of the words in common. That errs on the side of too large groups, which costs a few
    training rows; a missed pair would leak the answer of a test sentence.
    """
    words = [Counter(re.findall(r"\w+", e.question.casefold())) for e in examples]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    names: list[str] = []
    for i, example in enumerate(examples):
        key = tuple(sorted(map(fold_case, example.choices)))
        twin = next((j for j in groups[key] if _overlap(words[i], words[j]) > TWIN_OVERLAP), None)
        groups[key].append(i)
        names.append(example.id if twin is None else names[twin])
    return [replace(e, group=name) for e, name in zip(examples, names, strict=True)]


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    return (a & b).total() / max(a.total(), b.total(), 1)
