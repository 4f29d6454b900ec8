"""MMLU: a question with four choices, from one of 57 subjects; `answer` is an index from 0.

Subjects lie in 17 subcategories and these in 4 categories, as the authors of MMLU publish them
(`categories.py` of github.com/hendrycks/test); each of the three levels can be evaluated alone.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.tasks.fields import clean, content_id, labelled, near_misses, text, texts

SUBCATEGORIES: Mapping[str, tuple[str, ...]] = {
    "physics": ("astronomy", "college_physics", "conceptual_physics", "high_school_physics"),
    "chemistry": ("college_chemistry", "high_school_chemistry"),
    "biology": ("college_biology", "high_school_biology"),
    "computer_science": (
        "college_computer_science",
        "computer_security",
        "high_school_computer_science",
        "machine_learning",
    ),
    "math": (
        "abstract_algebra",
        "college_mathematics",
        "elementary_mathematics",
        "high_school_mathematics",
        "high_school_statistics",
    ),
    "engineering": ("electrical_engineering",),
    "history": (
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "prehistory",
    ),
    "philosophy_all": (
        "formal_logic",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "world_religions",
    ),
    "law": ("international_law", "jurisprudence", "professional_law"),
    "politics": (
        "high_school_government_and_politics",
        "public_relations",
        "security_studies",
        "us_foreign_policy",
    ),
    "culture": ("human_sexuality", "sociology"),
    "economics": ("econometrics", "high_school_macroeconomics", "high_school_microeconomics"),
    "geography": ("high_school_geography",),
    "psychology": ("high_school_psychology", "professional_psychology"),
    "misc": ("global_facts", "miscellaneous", "professional_accounting"),
    "business": ("business_ethics", "management", "marketing"),
    "health": (
        "anatomy",
        "clinical_knowledge",
        "college_medicine",
        "human_aging",
        "medical_genetics",
        "nutrition",
        "professional_medicine",
        "virology",
    ),
}
"""The authors' words with `_` for a space, but for two that are names of another level too.
`philosophy` is the subject, so its subcategory is `philosophy_all`. `other` is the category, as in
published tables, so the subcategory "other" is `misc` (the category is "other (business, health,
misc.)" in full)."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "stem": ("physics", "chemistry", "biology", "computer_science", "math", "engineering"),
    "humanities": ("history", "philosophy_all", "law"),
    "social_sciences": ("politics", "culture", "economics", "geography", "psychology"),
    "other": ("misc", "business", "health"),
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
"""Every name that `mmlu:NAME` accepts -> the subjects of its questions: categories, subcategories,
subjects."""


def read_mmlu(row: Mapping[str, Any], number: int) -> Example:
    """Rows have no id, and some stand twice in a split: it is made from number and content.

    The subject of a training row may be empty: `auxiliary_train` is taken from other data sets.
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
    """Whether a question read by `read_mmlu` belongs to the group of this name."""
    return example.extra.get("subject") in GROUPS[name]


def _levels(subject: Any) -> dict[str, str]:
    """What a question is about, by level; nothing where its row does not say."""
    if subject in (None, ""):
        return {}
    subject = clean(subject, "subject")
    if subject not in _SUBCATEGORY:
        near = near_misses(subject, SUBJECTS)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise BadRow(f"subject {subject!r:.60} is none of MMLU's {len(SUBJECTS)} subjects{hint}")
    subcategory = _SUBCATEGORY[subject]
    return {
        "subject": subject,
        "subcategory": subcategory,
        "category": _CATEGORY[subcategory],
    }
