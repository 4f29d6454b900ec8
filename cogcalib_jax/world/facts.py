"""Facts about people who do not exist, asked in plain English of a real language model.

Nothing in a name tells a value: all splits draw their names from the same lists, and the values of
a relation are balanced within every split. So questions about people who were not taught cannot be
answered: chance is one in eight, and confidence above it is unfounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cogcalib_jax.data.example import Example, Splits, unlabelled
from cogcalib_jax.world.config import (
    FIRST_NAMES,
    MAX_PEOPLE,
    PLAIN_LAST_NAMES,
    PLAIN_RELATIONS,
    SPLITS,
    FactsConfig,
)
from cogcalib_jax.world.corpus import Form

# Taught facts are asked in form A in training; what fits or chooses sees form C, results form B.
_FORMS: dict[str, Form] = {
    "style": "A",
    "train": "A",
    "calibration": "C",
    "validation": "C",
    "test": "B",
}


class _Fact(NamedTuple):
    person: int
    name: str
    relation: str
    answer: int
    split: str

    def ask(self, form: Form) -> Example:
        """Return the question about it."""
        relation = PLAIN_RELATIONS[self.relation]
        fact = f"{self.person:04d}-{self.relation}"
        return Example(
            id=f"{fact}-{form}",
            question=_text(self.relation, form).format(name=self.name),
            choices=relation.values,
            answer=self.answer,
            group=self.name,
            extra={
                "fact": fact,
                "relation": self.relation,
                "form": form,
                # No text that a model was trained on can state it.
                "exposure": 0,
                "known": False,
            },
        )


def build_splits(config: FactsConfig | None, seed: int) -> Splits:
    """Draw people and values, and ask about them.

    Args:
        config: sizes and relations; None: the defaults. Its seed, if set, overrides `seed`.
        seed: the run's seed.
    """
    rows: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for fact in _draw(config, seed):
        rows[fact.split].append(fact.ask(_FORMS[fact.split]))
    anchors = tuple(unlabelled(fact.ask("A")) for fact in _draw_anchors(config, seed))
    return Splits(**{name: tuple(examples) for name, examples in rows.items()}, anchor=anchors)


# The split whose facts a group asks about, in the wording of the test or of the calibration split.
GROUPS: dict[str, tuple[str, Form]] = {
    "taught_form_b": ("train", "B"),
    "taught_fit": ("train", "C"),
    "unseen_fit": ("calibration", "C"),
}


def group(name: str, config: FactsConfig | None, seed: int) -> tuple[Example, ...]:
    """Return the questions of a group in `GROUPS`; other arguments as for `build_splits`."""
    split, form = GROUPS[name]
    return tuple(fact.ask(form) for fact in _draw(config, seed) if fact.split == split)


def wordings(example: Example) -> tuple[Example, ...]:
    """Return the question in each of its three forms."""
    texts = [_text(example.extra["relation"], form) for form in ("A", "B", "C")]
    return tuple(replace(example, question=text.format(name=example.group)) for text in texts)


def _text(relation: str, form: Form) -> str:
    return getattr(PLAIN_RELATIONS[relation], f"form_{form.lower()}")


def _draw(config: FactsConfig | None, seed: int) -> Iterator[_Fact]:
    config = config or FactsConfig()
    rng = np.random.default_rng(seed if config.seed is None else config.seed)
    names = iter(enumerate(map(_name, _pairs(config, rng))))
    for split in SPLITS:
        people = getattr(config, split) // len(config.relations)
        # Each value as often as any other, or once more.
        sizes = [len(PLAIN_RELATIONS[relation].values) for relation in config.relations]
        answers = [rng.permutation(np.resize(rng.permutation(size), people)) for size in sizes]
        for row in zip(*answers, strict=True):
            person, name = next(names)
            for relation, answer in zip(config.relations, row, strict=True):
                yield _Fact(person, name, relation, int(answer), split)


def _draw_anchors(config: FactsConfig | None, seed: int) -> Iterator[_Fact]:
    """Draw people after all others, who stay who they are; nobody says what their facts are."""
    config = config or FactsConfig()
    seed = seed if config.seed is None else config.seed
    taken = _pairs(config, np.random.default_rng(seed))
    free = np.setdiff1d(np.arange(MAX_PEOPLE), taken)
    people = config.anchor // len(config.relations)
    chosen = np.random.default_rng([seed, 1]).choice(free, size=people, replace=False)
    for person, name in enumerate(map(_name, chosen), start=config.people):
        for relation in config.relations:
            yield _Fact(person, name, relation, 0, "anchor")


def _pairs(config: FactsConfig, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(MAX_PEOPLE, size=config.people, replace=False)


def _name(pair: int) -> str:
    first, last = divmod(pair, len(PLAIN_LAST_NAMES))
    return f"{FIRST_NAMES[first]} {PLAIN_LAST_NAMES[last]}"
