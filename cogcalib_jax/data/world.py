"""The knowledge world: a corpus and question splits in which prior knowledge is controlled.

A world is a set of invented people with four facts each. How often a fact is stated in the
pretraining corpus (its *exposure*) is drawn at random, so which questions a base model can
answer is known by construction instead of being estimated from the model itself. No question of any
split occurs in the corpus: answering it takes the stated fact, not a memorised string. What a
question looks like is shown in the corpus by other people, who are in no split at all: were they
the style split, style adaptation would train on answers already seen, which rewards confidence.

There are three forms of question. Fine-tuning, calibration, validation and test use form A; the
corpus and the style split hold A and B, so that taught facts can be asked again in form B. Form C
is a template that nothing was trained on, and relations may be left out of fine-tuning altogether:
what is asked there lies outside the domain that was fine-tuned on.

Everything here is a pure function of (config, seed).
"""

import math
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Literal

import numpy as np

from cogcalib_jax.configlib import check
from cogcalib_jax.data.example import Example, Splits


@dataclass(frozen=True)
class Relation:
    """What can be said and asked about a person; `{name}` and `{value}` are filled in."""

    values: tuple[str, ...]
    """the closed set of answers"""
    statements: tuple[str, ...]
    """how the corpus states a fact; the value comes after the name, or it could not be learnt from
    left to right"""
    form_a: str
    """the question; its answer is appended"""
    form_b: str
    """the same question in other words"""
    form_c: str
    """once more, as neither the corpus nor any split asks; it is made of words that they hold"""


# Every value is one word (one token), and no word serves two relations. Rows are kept short:
# pretraining time is proportional to tokens, knowledge to rows.
RELATIONS: dict[str, Relation] = {
    "birthplace": Relation(
        values=("lisbon", "oslo", "cairo", "lima", "kyoto", "quebec", "nairobi", "perth"),
        statements=(
            "{name} was born in {value}",
            "{name} comes from {value}",
            "the birthplace of {name} is {value}",
        ),
        form_a="question where was {name} born ? answer",
        form_b="question what is the birthplace of {name} ? answer",
        form_c="question the birthplace of {name} is what ? answer",
    ),
    "employer": Relation(
        values=("acme", "borealis", "cyberdyne", "globex", "hooli", "initech", "umbrella", "wonka"),
        statements=(
            "{name} works at {value}",
            "{name} is employed by {value}",
            "the employer of {name} is {value}",
        ),
        form_a="question where does {name} work ? answer",
        form_b="question what is the employer of {name} ? answer",
        form_c="question the employer of {name} is what ? answer",
    ),
    "field": Relation(
        values=("botany", "chemistry", "geology", "history", "law", "medicine", "physics", "music"),
        statements=(
            "{name} studied {value}",
            "{name} has a degree in {value}",
            "the field of {name} is {value}",
        ),
        form_a="question what did {name} study ? answer",
        form_b="question what is the field of {name} ? answer",
        form_c="question the field of {name} is what ? answer",
    ),
    "instrument": Relation(
        values=("banjo", "cello", "drums", "flute", "harp", "piano", "trumpet", "violin"),
        statements=(
            "{name} plays the {value}",
            "{name} performs on the {value}",
            "the instrument of {name} is {value}",
        ),
        form_a="question what does {name} play ? answer",
        form_b="question what is the instrument of {name} ? answer",
        form_c="question the instrument of {name} is what ? answer",
    ),
}

_FIRST_NAMES = (
    "Ada Alan Alma Amir Anna Anton Basil Bela Boris Clara Cora Dario Della Dora Edgar Elena "
    "Emil Enid Felix Fiona Greta Hana Hugo Ida Igor Ilse Iris Ivan Jana Jonas Julia Karl Lena "
    "Leo Lydia Marco Mina Nadia Nils Olga Oscar Petra Quinn Rita Selma Tomas Vera Wanda"
)
_STARTS = (
    "Bar Bel Cor Dal Dor Fal Fen Gar Gol Hal Har Jor Kal Kel Lor Mal Mar Mor Nar Nor Pel Per "
    "Ral Ros Sal Sor Tal Tor Val Ver Vol Wal Wen Yar Zan Zel"
)
_MIDDLES = "a be di en la mo ri to"
_ENDS = "dan der kin las lund mark nek ras son ter van vik"
# Last names are made of three syllables, one of each kind.
_SYLLABLES = (_STARTS.split(), _MIDDLES.split(), _ENDS.split())
MAX_ENTITIES = math.prod(map(len, _SYLLABLES))

Form = Literal["A", "B", "C"]

# People in no split: their questions are corpus rows.
FORMAT = "format"

# The splits with a size of their own, in the order in which people are dealt out to them.
_SPLITS = ("train", "test", "validation", "calibration", "style")


# Measured with the default base, three seeds, accuracy on test questions by exposure: 0: .11 to .14
# (chance is .125), 1: .25 to .28, 4: .67 to .72, 12: .94 to .98, 40: .99. Facts stated only once
# are there for the base's honesty: they are first statements late in pretraining, where otherwise
# nearly every value could be recalled. With them its mean confidence about facts it never read was
# .36 to .46, without them (0, 4, 10, 25, 45) .50 to .57, one seed each over a few other settings.
@dataclass(frozen=True)
class WorldConfig:
    """The size of a world and how its facts are distributed over exposures and splits."""

    entities: int = 1230
    """people with a fact per relation each; all facts of a person lie in one split"""
    exposures: tuple[int, ...] = (0, 1, 4, 12, 40)
    """how often the pretraining corpus may state a fact"""
    exposure_probabilities: tuple[float, ...] = (0.30, 0.20, 0.10, 0.15, 0.25)
    """probability of each exposure; every fact draws its own"""
    known_exposure: int = 12
    """facts stated at least this often are labelled known, for analysis and oracle gates"""
    question_rows: int = 1
    """corpus rows per question form and fact of the people who are in no split"""
    train: int = 840
    """fine-tuning questions"""
    test: int = 1520
    """test questions"""
    validation: int = 620
    """validation questions"""
    calibration: int = 300
    """calibration questions"""
    style: int = 960
    """style-adaptation questions; the people left over show the question format in the corpus"""
    other_relations: tuple[str, ...] = ()
    """relations that no split asks about, but the group other_relations; splits shrink by them"""
    seed: int | None = None
    """of the world; unset: the run's seed"""

    def __post_init__(self) -> None:
        per_entity = len(RELATIONS)
        check(
            len(self.exposures) > 0
            and len(set(self.exposures)) == len(self.exposures)
            and min(self.exposures) >= 0,
            "exposures",
            "must be distinct counts, each at least 0",
        )
        check(
            len(self.exposure_probabilities) == len(self.exposures)
            and min(self.exposure_probabilities) >= 0
            and abs(sum(self.exposure_probabilities) - 1) < 1e-6,
            "exposure_probabilities",
            "must be one probability per exposure, at least 0 each, summing to 1",
        )
        check(self.known_exposure >= 1, "known_exposure", "must be at least 1")
        check(self.question_rows >= 1, "question_rows", "must be at least 1")
        for name in _SPLITS:
            size = getattr(self, name)
            check(
                size > 0 and size % per_entity == 0,
                name,
                f"must be a positive multiple of {per_entity} (people are split whole)",
            )
        split_entities = sum(getattr(self, name) for name in _SPLITS) // per_entity
        check(
            split_entities < self.entities <= MAX_ENTITIES,
            "entities",
            f"must be above {split_entities}, the people the splits need, so that some are left to"
            f" show the question format, and at most {MAX_ENTITIES}",
        )
        check(
            set(self.other_relations) < set(RELATIONS),
            "other_relations",
            f"must be some of {', '.join(RELATIONS)}, not all",
        )
        check(self.seed is None or self.seed >= 0, "seed", "must be at least 0, or unset")


@dataclass(frozen=True)
class Fact:
    """One value of one relation of one person, and how often the corpus states it."""

    entity: int
    name: str
    """first and last name; the last name is unique"""
    relation: str
    answer: int
    """index of the value in the relation's values"""
    exposure: int
    """statements in the corpus"""
    split: str
    """a split of `Splits`, or FORMAT"""

    @property
    def id(self) -> str:
        return f"{self.entity:04d}-{self.relation}"

    @property
    def value(self) -> str:
        return RELATIONS[self.relation].values[self.answer]


@dataclass(frozen=True)
class World:
    """Everything one seed makes."""

    config: WorldConfig
    """with its seed set"""
    facts: tuple[Fact, ...]
    corpus: tuple[str, ...]
    """statements and questions with answers, a row each, in the order of pretraining"""
    splits: Splits


def build_world(config: WorldConfig, seed: int) -> World:
    """Draw facts, corpus and splits.

    Args:
        config: sizes and distributions; `config.seed`, where set, overrides `seed`.
        seed: the run's seed.
    """
    config = resolve_seed(config, seed)
    facts = _draw_facts(config)
    return World(config, facts, _write_corpus(config, facts), _make_splits(config, facts))


def build_splits(config: WorldConfig, seed: int) -> Splits:
    """The question splits of `build_world(config, seed)`, without writing its corpus."""
    config = resolve_seed(config, seed)
    return _make_splits(config, _draw_facts(config))


def taught_form_b(config: WorldConfig, seed: int) -> tuple[Example, ...]:
    """The facts of the fine-tuning split of `build_world(config, seed)`, asked in form B.

    That tells having learnt a fact from having memorised the string of its question.
    """
    config = resolve_seed(config, seed)
    return tuple(
        _ask(config, fact, "B")
        for fact in _draw_facts(config)
        if fact.split == "train" and fact.relation not in config.other_relations
    )


def unseen_template(config: WorldConfig, seed: int) -> tuple[Example, ...]:
    """The test questions of `build_world(config, seed)` in form C."""
    config = resolve_seed(config, seed)
    return tuple(
        _ask(config, fact, "C")
        for fact in _draw_facts(config)
        if fact.split == "test" and fact.relation not in config.other_relations
    )


def other_relations(config: WorldConfig, seed: int) -> tuple[Example, ...]:
    """What `config.other_relations` say of the people of the test split, asked in form A."""
    config = resolve_seed(config, seed)
    return tuple(
        _ask(config, fact, "A")
        for fact in _draw_facts(config)
        if fact.split == "test" and fact.relation in config.other_relations
    )


def resolve_seed(config: WorldConfig, seed: int) -> WorldConfig:
    """`config` with its seed set: its own where it has one, else the run's."""
    return config if config.seed is not None else replace(config, seed=seed)


def vocabulary(config: WorldConfig) -> tuple[str, ...]:
    """Every word of a world of this size, sorted; no word depends on the seed."""
    words = set(_FIRST_NAMES.split()) | set(_last_names(config.entities))
    for relation in RELATIONS.values():
        words |= set(relation.values)
        for text in (*relation.statements, relation.form_a, relation.form_b):
            words |= set(text.format(name="", value="").split())
    return tuple(sorted(words))


def _last_names(count: int) -> list[str]:
    return ["".join(parts) for parts in islice(product(*_SYLLABLES), count)]


def _rng(config: WorldConfig, stream: int) -> np.random.Generator:
    """Independent streams, so that a change in one part of the world leaves the others alone."""
    return np.random.default_rng([config.seed, stream])


def _draw_facts(config: WorldConfig) -> tuple[Fact, ...]:
    rng = _rng(config, 0)
    firsts = rng.choice(_FIRST_NAMES.split(), size=config.entities)
    lasts = _last_names(config.entities)
    answers = np.stack(
        [rng.integers(len(r.values), size=config.entities) for r in RELATIONS.values()], axis=1
    )
    exposures = _rng(config, 1).choice(
        config.exposures, size=answers.shape, p=config.exposure_probabilities
    )
    sizes = [getattr(config, name) // len(RELATIONS) for name in _SPLITS]
    sizes.append(config.entities - sum(sizes))
    splits = rng.permutation(np.repeat([*_SPLITS, FORMAT], sizes))
    return tuple(
        Fact(
            entity=entity,
            name=f"{firsts[entity]} {lasts[entity]}",
            relation=relation,
            answer=int(answers[entity, column]),
            exposure=int(exposures[entity, column]),
            split=str(splits[entity]),
        )
        for entity in range(config.entities)
        for column, relation in enumerate(RELATIONS)
    )


def _write_corpus(config: WorldConfig, facts: tuple[Fact, ...]) -> tuple[str, ...]:
    rng = _rng(config, 2)
    rows = []
    for fact in facts:
        relation = RELATIONS[fact.relation]
        for template in rng.integers(len(relation.statements), size=fact.exposure):
            rows.append(relation.statements[template].format(name=fact.name, value=fact.value))
        if fact.split == FORMAT:
            for form in ("A", "B"):
                row = f"{_question(fact, form)} {fact.value}"
                rows.extend([row] * config.question_rows)
    return tuple(rows[i] for i in rng.permutation(len(rows)))


def _make_splits(config: WorldConfig, facts: tuple[Fact, ...]) -> Splits:
    rows: dict[str, list[Example]] = {name: [] for name in _SPLITS}
    style_forms = iter(_rng(config, 3).permutation(["A", "B"] * (config.style // 2)))
    for fact in facts:
        if fact.split != FORMAT:
            form = str(next(style_forms)) if fact.split == "style" else "A"
            # Left out only now: the others keep their forms whatever is left out.
            if fact.relation in config.other_relations:
                continue
            rows[fact.split].append(_ask(config, fact, form))
    return Splits(**{name: tuple(examples) for name, examples in rows.items()}, notes=())


def _question(fact: Fact, form: Form) -> str:
    relation = RELATIONS[fact.relation]
    forms = {"A": relation.form_a, "B": relation.form_b, "C": relation.form_c}
    return forms[form].format(name=fact.name)


def _ask(config: WorldConfig, fact: Fact, form: Form) -> Example:
    """A question over the closed set of the relation's values; the text is the whole prompt.

    `extra["known"]` goes by the exposure alone: it says what the base could have learnt, not what
    a model answers.
    """
    return Example(
        id=f"{fact.id}-{form}",
        question=_question(fact, form),
        choices=RELATIONS[fact.relation].values,
        answer=fact.answer,
        group=fact.name,
        extra={
            "fact": fact.id,
            "relation": fact.relation,
            "form": form,
            "exposure": fact.exposure,
            "known": fact.exposure >= config.known_exposure,
        },
    )
