"""The tasks. A new one is an entry of `TASKS`: its source, the reader of its rows, its prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from cogcalib_jax.data.example import Example, Splits
from cogcalib_jax.data.sources import Hub
from cogcalib_jax.data.tasks.published import (
    GROUPS,
    group_twins,
    in_group,
    lettered,
    read_boolq,
    read_hotpotqa,
    read_hotpotqa_context,
    read_mmlu,
    read_nq_open,
    read_triviaqa,
    read_winogrande,
)

AS_STORED = {"train": "train", "validation": "validation", "test": "test"}
# The Hub's test split has no answers: the literature then scores the validation split.
UNLABELLED_TEST = {"train": "train", "test": "validation"}
# MMLU has no training rows of its own, but rows of other data sets.
AUXILIARY_TRAIN = {**AS_STORED, "train": "auxiliary_train"}


@dataclass(frozen=True)
class RowTask:
    """A task of stored rows, which are split here."""

    read: Callable[[Mapping[str, Any], int], Example] | None
    """(row, number in its file from 1) -> Example; raises BadRow. None: the rows are the user's
    own, and their columns are found over all files of the task (tasks/custom.py)"""
    hub: Hub | None = None
    """source of the rows; None: the user's own files only"""
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

    module: str
    """imported when rows are made: `build_splits(settings, seed)`, a function per group, and
    `wordings(example)`"""
    section: str
    """the section of a config with its settings"""
    prompt: str
    groups: tuple[str, ...] = ()
    """sets of questions beside the test split, evaluated as TASK:NAME"""
    always: tuple[str, ...] = ()
    """the groups that every evaluation of the task answers, too"""

    def build(self, made: Any, seed: int) -> Splits:
        """Make the splits; `made` holds the settings of every such task, None: the defaults."""
        return import_module(self.module).build_splits(self._settings(made), seed)

    def group(self, name: str, made: Any, seed: int) -> tuple[Example, ...]:
        """Make the questions of a group; `made` as for `build`."""
        return getattr(import_module(self.module), name)(self._settings(made), seed)

    def wordings(self, example: Example) -> tuple[Example, ...]:
        """Return a question of the task in several wordings, for SliCK's categories."""
        return import_module(self.module).wordings(example)

    def _settings(self, made: Any) -> Any:
        return None if made is None else getattr(made, self.section)


Task = RowTask | MadeTask


def _winogrande(size: str) -> RowTask:
    return RowTask(
        read_winogrande, Hub("allenai/winogrande", size), UNLABELLED_TEST, group=group_twins
    )


def _hotpotqa(read: Callable[[Mapping[str, Any], int], Example]) -> RowTask:
    # The config "fullwiki" has the same questions with retrieved paragraphs, which may lack the
    # two that are needed.
    return RowTask(read, Hub("hotpotqa/hotpot_qa", "distractor"), UNLABELLED_TEST, prompt="qa")


TASKS: dict[str, Task] = {
    "world": MadeTask(
        "cogcalib_jax.world.corpus",
        section="world",
        prompt="cloze",
        groups=("taught_form_b", "taught_fit", "unseen_fit", "unseen_template", "other_relations"),
        always=("taught_form_b",),
    ),
    "invented_facts": MadeTask(
        "cogcalib_jax.world.facts",
        section="facts",
        prompt="cloze",
        groups=("taught_form_b", "taught_fit", "unseen_fit"),
        always=("taught_form_b",),
    ),
    "openbookqa": RowTask(lettered("question_stem"), Hub("allenai/openbookqa", "main")),
    "arc_challenge": RowTask(lettered("question"), Hub("allenai/ai2_arc", "ARC-Challenge")),
    "arc_easy": RowTask(lettered("question"), Hub("allenai/ai2_arc", "ARC-Easy")),
    "winogrande_s": _winogrande("winogrande_s"),
    "winogrande_m": _winogrande("winogrande_m"),
    "boolq": RowTask(read_boolq, Hub("google/boolq"), UNLABELLED_TEST),
    "commonsense_qa": RowTask(lettered("question"), Hub("tau/commonsense_qa"), UNLABELLED_TEST),
    "mmlu": RowTask(
        read_mmlu,
        Hub("cais/mmlu", "all"),
        AUXILIARY_TRAIN,
        groups={name: partial(in_group, name) for name in GROUPS},
    ),
    "hotpotqa": _hotpotqa(read_hotpotqa),
    "hotpotqa_context": _hotpotqa(read_hotpotqa_context),
    "triviaqa": RowTask(
        read_triviaqa,
        # The configs "rc" hold a question once for each of its sources, so some of them twice.
        Hub("mandarjoshi/trivia_qa", "unfiltered.nocontext"),
        UNLABELLED_TEST,
        prompt="qa",
    ),
    "nq_open": RowTask(
        read_nq_open,
        Hub("google-research-datasets/nq_open", "nq_open"),
        UNLABELLED_TEST,
        prompt="qa",
    ),
    "custom": RowTask(read=None),
}
