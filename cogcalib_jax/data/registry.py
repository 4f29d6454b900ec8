"""The tasks. A new one is an entry here: where its rows are, how one is read, its prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cogcalib_jax.data import world
from cogcalib_jax.data.example import Example, Splits
from cogcalib_jax.data.sources import Hub
from cogcalib_jax.data.tasks.boolq import read_boolq
from cogcalib_jax.data.tasks.custom import read_custom
from cogcalib_jax.data.tasks.lettered import lettered
from cogcalib_jax.data.tasks.winogrande import group_twins, read_winogrande
from cogcalib_jax.data.world import WorldConfig

AS_STORED = {"train": "train", "validation": "validation", "test": "test"}
# The Hub's test split has no answers: the literature then scores the validation split.
UNLABELLED_TEST = {"train": "train", "test": "validation"}


@dataclass(frozen=True)
class RowTask:
    """A task whose rows are stored somewhere and split by us."""

    read: Callable[[Mapping[str, Any], int], Example]
    """(row, number in its file from 1) -> Example; raises BadRow"""
    hub: Hub | None = None
    """where the rows are; None: in the user's own files only"""
    splits: Mapping[str, str] = field(default_factory=lambda: AS_STORED)
    """our split -> the stored one it is read from; a validation split not named is carved"""
    prompt: str = "letters"
    group: Callable[[Sequence[Example]], list[Example]] | None = None
    """finds the rows that belong together, over all splits at once"""
    groups: Mapping[str, Callable[[Example], bool]] = field(default_factory=dict)
    """name -> which rows: parts of the test split that can be evaluated alone, as TASK:NAME"""


@dataclass(frozen=True)
class MadeTask:
    """A task that makes its own splits from a seed."""

    build: Callable[[WorldConfig, int], Splits]
    prompt: str
    groups: Mapping[str, Callable[[WorldConfig, int], tuple[Example, ...]]] = field(
        default_factory=dict
    )
    """name -> rows beside the test split, evaluated with it and alone, as TASK:NAME"""


Task = RowTask | MadeTask


def _winogrande(size: str) -> RowTask:
    return RowTask(
        read_winogrande, Hub("allenai/winogrande", size), UNLABELLED_TEST, group=group_twins
    )


TASKS: dict[str, Task] = {
    "world": MadeTask(
        world.build_splits, prompt="cloze", groups={"taught_form_b": world.taught_form_b}
    ),
    "openbookqa": RowTask(lettered("question_stem"), Hub("allenai/openbookqa", "main")),
    "arc_challenge": RowTask(lettered("question"), Hub("allenai/ai2_arc", "ARC-Challenge")),
    "arc_easy": RowTask(lettered("question"), Hub("allenai/ai2_arc", "ARC-Easy")),
    "winogrande_s": _winogrande("winogrande_s"),
    "winogrande_m": _winogrande("winogrande_m"),
    "boolq": RowTask(read_boolq, Hub("google/boolq"), UNLABELLED_TEST),
    "commonsense_qa": RowTask(lettered("question"), Hub("tau/commonsense_qa"), UNLABELLED_TEST),
    "custom": RowTask(read_custom),
}
