"""The tasks. A new one is an entry here: where its rows are, how one is read, its prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogcalib_jax.data import world
from cogcalib_jax.data.example import Example, Splits
from cogcalib_jax.data.sources import Hub
from cogcalib_jax.data.tasks.boolq import read_boolq
from cogcalib_jax.data.tasks.custom import read_custom
from cogcalib_jax.data.tasks.lettered import lettered
from cogcalib_jax.data.tasks.winogrande import group_twins, read_winogrande
from cogcalib_jax.data.world import WorldConfig


@dataclass(frozen=True)
class RowTask:
    """A task whose rows are stored somewhere and split by us."""

    read: Callable[[Mapping[str, Any], int], Example]
    """(row, number in its file from 1) -> Example; raises BadRow"""
    hub: Hub | None = None
    """where the rows are; None: in the user's own files only"""
    labelled_test: bool = True
    """False: the Hub's test split has no answers, so its validation split is the test set"""
    prompt: str = "letters"
    group: Callable[[Sequence[Example]], list[Example]] | None = None
    """finds the rows that belong together, over all splits at once"""


@dataclass(frozen=True)
class MadeTask:
    """A task that makes its own splits from a seed."""

    build: Callable[[WorldConfig, int], Splits]
    prompt: str


Task = RowTask | MadeTask


def _winogrande(size: str) -> RowTask:
    return RowTask(
        read_winogrande, Hub("allenai/winogrande", size), labelled_test=False, group=group_twins
    )


TASKS: dict[str, Task] = {
    "world": MadeTask(world.build_splits, prompt="cloze"),
    "openbookqa": RowTask(lettered("question_stem"), Hub("allenai/openbookqa", "main")),
    "arc_challenge": RowTask(lettered("question"), Hub("allenai/ai2_arc", "ARC-Challenge")),
    "arc_easy": RowTask(lettered("question"), Hub("allenai/ai2_arc", "ARC-Easy")),
    "winogrande_s": _winogrande("winogrande_s"),
    "winogrande_m": _winogrande("winogrande_m"),
    "boolq": RowTask(read_boolq, Hub("google/boolq"), labelled_test=False),
    "commonsense_qa": RowTask(lettered("question"), Hub("tau/commonsense_qa"), labelled_test=False),
    "custom": RowTask(read_custom),
}
