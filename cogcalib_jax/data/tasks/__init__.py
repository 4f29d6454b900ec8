"""The tasks, and the readers of published data sets.

A new task is an entry of `TASKS`: its source, the reader of its rows, its prompt. A reader takes a
row and its number in its file, from which rows without an id get one, and returns an `Example`, or
raises `BadRow`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from configparser import ConfigParser
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any

from cogcalib_jax.data.example import BadRow, Example, NoLabel, Splits, fold_case
from cogcalib_jax.data.sources import Hub
from cogcalib_jax.data.tasks.fields import (
    accepted,
    as_json,
    clean,
    content_id,
    labelled,
    near_misses,
    position,
    text,
    texts,
)

# Share of words in common from which two sentences with the same two options count as twins.
# Measured on winogrande_m train and validation: of 1,563 neighbouring pairs with the same options
# every one is above 0.65; of 2,798 pairs elsewhere in the files 10 or so are, near-copies all.
TWIN_OVERLAP = 0.65
# The answer in TriviaQA's test split.
_UNKNOWN = "<unk>"
_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def lettered(question_field: str) -> Callable[[Mapping[str, Any], int], Example]:
    """Return the reader of OpenBookQA, ARC and CommonsenseQA, whose rows name `answerKey`.

    Labels are letters or "1".."4" (some rows of ARC); the number of choices may differ from row to
    row.
    """

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


def read_boolq(row: Mapping[str, Any], number: int) -> Example:
    """Read a yes-or-no question about a passage; `answer` is true or false, `label` 1 or 0."""
    question, passage = text(row, "question"), text(row, "passage")
    answers = {
        name: _yes_or_no(row, name) for name in ("answer", "label") if row.get(name) is not None
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


def _yes_or_no(row: Mapping[str, Any], name: str) -> bool:
    value = labelled(row, name)
    means = _YES_NO.get(str(value).strip().casefold())
    if means is None:
        raise BadRow(f"{name} is {value!r:.60}; expected true or false, yes or no, or 1 or 0")
    return means


def read_winogrande(row: Mapping[str, Any], number: int) -> Example:
    """Read a sentence with a blank `_` and two ways to fill it; `answer` is "1" or "2"."""
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
    """Return the examples of WinoGrande with twins in one group.

    A twin is the same sentence with a few words changed so that the answer flips. The schema has no
    key for pairs, so a pair is recognised by the same two options and most of the words in common.
    A group that is too large costs a few training rows; a missed pair would leak an answer.
    """
    words = [Counter(re.findall(r"\w+", e.question.casefold())) for e in examples]

    def shared(i: int, j: int) -> float:
        return (words[i] & words[j]).total() / max(words[i].total(), words[j].total(), 1)

    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    names: list[str] = []
    for i, example in enumerate(examples):
        key = tuple(sorted(map(fold_case, example.choices)))
        twin = next((j for j in groups[key] if shared(i, j) > TWIN_OVERLAP), None)
        groups[key].append(i)
        names.append(example.id if twin is None else names[twin])
    return [replace(e, group=name) for e, name in zip(examples, names, strict=True)]


def _open(
    id: str, question: str, answers: tuple[str, ...], extra: dict[str, Any] | None = None
) -> Example:
    return Example(
        id=id,
        question=question,
        choices=answers[:1],
        answer=0,
        aliases=answers,
        extra=as_json(extra or {}),
    )


def read_hotpotqa(row: Mapping[str, Any], number: int) -> Example:
    """Read a question of HotpotQA without its paragraphs."""
    return _open(
        text(row, "id"),
        text(row, "question"),
        accepted([clean(labelled(row, "answer"), "answer")]),
        {name: row[name] for name in ("type", "level") if name in row},
    )


def read_hotpotqa_context(row: Mapping[str, Any], number: int) -> Example:
    """Read a question of HotpotQA with its ten paragraphs, of which two hold the answer.

    A paragraph is a line: title, colon, sentences. Equal questions are one group, because the same
    question with other paragraphs beside the two would give its answer away.
    """
    example = read_hotpotqa(row, number)
    context = row.get("context")
    if not isinstance(context, Mapping) or not {"title", "sentences"} <= set(context):
        raise BadRow('has no "context" with "title" and "sentences"')
    titles, paragraphs = texts(context["title"], "context.title"), context["sentences"]
    if not isinstance(paragraphs, list | tuple) or len(paragraphs) != len(titles):
        raise BadRow(f"its {len(titles)} titles do not match its paragraphs")
    if not titles:
        raise BadRow("its context has no paragraphs")
    passage = "\n".join(
        f"{title}: {_joined(sentences)}"
        for title, sentences in zip(titles, paragraphs, strict=True)
    )
    return replace(example, passage=passage, group=fold_case(example.question))


def _joined(sentences: Any) -> str:
    if not isinstance(sentences, list | tuple):
        raise BadRow(f"a paragraph of its context must be a list of texts, is {sentences!r:.60}")
    return " ".join(clean(s, "context.sentences") for s in sentences if not _blank(s))


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def read_triviaqa(row: Mapping[str, Any], number: int) -> Example:
    """Read a question of TriviaQA: `answer.value` is the reference, its aliases are accepted.

    `question_id` is kept beside a made id, because other configs repeat it.
    """
    question = text(row, "question")
    answer = labelled(row, "answer")
    if not isinstance(answer, Mapping):
        raise BadRow(f'answer must hold "value" and "aliases", is {answer!r:.60}')
    value = labelled(answer, "value")
    if value == _UNKNOWN:
        raise NoLabel(f"has no answer (answer.value is {value!r})")
    names = [value]
    for key in ("aliases", "normalized_aliases"):
        more = answer.get(key) or ()
        if not isinstance(more, list | tuple):
            raise BadRow(f"answer.{key} must be a list of texts, is {more!r:.60}")
        # A name of punctuation alone is normalised to nothing.
        names += [name for name in more if not _blank(name)]
    return _open(
        content_id(number, question),
        question,
        accepted(clean(name, "answer") for name in names),
        {"question_id": row["question_id"]} if row.get("question_id") else {},
    )


def read_nq_open(row: Mapping[str, Any], number: int) -> Example:
    """Read a question of NQ-open, whose `answer` lists the answers of several annotators."""
    question = text(row, "question")
    answers = accepted(texts(labelled(row, "answer"), "answer"))
    return _open(content_id(number, question), question, answers)


# MMLU's subjects by category and subcategory, as its authors publish them (`categories.py` of
# github.com/hendrycks/test). Two names also occur at another level: the subcategory of the subject
# `philosophy` is `philosophy_all` here, and the subcategory "other" is `misc`.
_MMLU = ConfigParser()
_MMLU.read_string(
    """
[stem]
physics = astronomy college_physics conceptual_physics high_school_physics
chemistry = college_chemistry high_school_chemistry
biology = college_biology high_school_biology
computer_science = college_computer_science computer_security high_school_computer_science
  machine_learning
math = abstract_algebra college_mathematics elementary_mathematics high_school_mathematics
  high_school_statistics
engineering = electrical_engineering
[humanities]
history = high_school_european_history high_school_us_history high_school_world_history prehistory
philosophy_all = formal_logic logical_fallacies moral_disputes moral_scenarios philosophy
  world_religions
law = international_law jurisprudence professional_law
[social_sciences]
politics = high_school_government_and_politics public_relations security_studies us_foreign_policy
culture = human_sexuality sociology
economics = econometrics high_school_macroeconomics high_school_microeconomics
geography = high_school_geography
psychology = high_school_psychology professional_psychology
[other]
misc = global_facts miscellaneous professional_accounting
business = business_ethics management marketing
health = anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition
  professional_medicine virology
"""
)
CATEGORIES: Mapping[str, tuple[str, ...]] = {c: tuple(_MMLU[c]) for c in _MMLU.sections()}
SUBCATEGORIES: Mapping[str, tuple[str, ...]] = {
    name: tuple(subjects.split()) for c in CATEGORIES for name, subjects in _MMLU[c].items()
}
_SUBCATEGORY = {subject: name for name, subjects in SUBCATEGORIES.items() for subject in subjects}
_CATEGORY = {subcategory: name for name, parts in CATEGORIES.items() for subcategory in parts}

SUBJECTS: tuple[str, ...] = tuple(sorted(_SUBCATEGORY))

GROUPS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        name: frozenset(s for part in parts for s in SUBCATEGORIES[part])
        for name, parts in CATEGORIES.items()
    }
    | {name: frozenset(subjects) for name, subjects in SUBCATEGORIES.items()}
    | {subject: frozenset({subject}) for subject in SUBJECTS}
)
"""a name that `mmlu:NAME` accepts (category, subcategory, subject) -> its subjects"""


def read_mmlu(row: Mapping[str, Any], number: int) -> Example:
    """Read a question of MMLU; `answer` is an index from 0.

    Training rows may have no subject: `auxiliary_train` comes from other data sets.
    """
    question = text(row, "question")
    choices = texts(row.get("choices"), "choices")
    answer = labelled(row, "answer")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise BadRow(f"answer must be the index of a choice, a whole number, is {answer!r:.60}")
    return Example(
        id=content_id(number, question, *choices),
        question=question,
        choices=choices,
        answer=answer,
        extra=_levels(row.get("subject")),
    )


def in_group(name: str, example: Example) -> bool:
    """Return whether a question that `read_mmlu` read belongs to the group of this name."""
    return example.extra.get("subject") in GROUPS[name]


def _levels(subject: Any) -> dict[str, str]:
    if subject in (None, ""):
        return {}
    subject = clean(subject, "subject")
    if subject not in _SUBCATEGORY:
        near = near_misses(subject, SUBJECTS)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise BadRow(f"subject {subject!r:.60} is not one of MMLU's {len(SUBJECTS)} subjects{hint}")
    subcategory = _SUBCATEGORY[subject]
    return {"subject": subject, "subcategory": subcategory, "category": _CATEGORY[subcategory]}


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
    """imported when rows are made: it has `build_splits(settings, seed)`,
    `group(name, settings, seed)` and `wordings(example)`"""
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
        return import_module(self.module).group(name, self._settings(made), seed)

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
