"""Settings of the made tasks: relations, names and sizes, and the base that reads about the world.

Nothing here imports JAX: a command line is checked before JAX is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from itertools import islice, product

from cogcalib_jax.errors import check, check_counts
from cogcalib_jax.settings import TAKEN, rename, setting


@dataclass(frozen=True)
class Relation:
    """Texts about a person; `{name}` and `{value}` are filled in."""

    noun: str
    values: tuple[str, ...]
    """the closed set of answers"""
    stated: tuple[str, ...]
    """sentences of the corpus; the value follows the name, as a model that reads from left to right
    needs it"""
    form_a: str
    """the question; its answer is appended"""

    @property
    def statements(self) -> tuple[str, ...]:
        """All sentences that state a fact in the corpus."""
        return (*self.stated, f"the {self.noun} of {{name}} is {{value}}")

    @property
    def form_b(self) -> str:
        """The same question in other words."""
        return f"question what is the {self.noun} of {{name}} ? answer"

    @property
    def form_c(self) -> str:
        """A third wording, which neither corpus nor splits contain; all its words occur in them."""
        return f"question the {self.noun} of {{name}} is what ? answer"


# Every value is one word (one token), and no word serves two relations. Rows are kept short:
# pretraining time is proportional to tokens, knowledge to rows.
_RELATIONS = (
    Relation(
        "birthplace",
        ("lisbon", "oslo", "cairo", "lima", "kyoto", "quebec", "nairobi", "perth"),
        ("{name} was born in {value}", "{name} comes from {value}"),
        "question where was {name} born ? answer",
    ),
    Relation(
        "employer",
        ("acme", "borealis", "cyberdyne", "globex", "hooli", "initech", "umbrella", "wonka"),
        ("{name} works at {value}", "{name} is employed by {value}"),
        "question where does {name} work ? answer",
    ),
    Relation(
        "field",
        ("botany", "chemistry", "geology", "history", "law", "medicine", "physics", "music"),
        ("{name} studied {value}", "{name} has a degree in {value}"),
        "question what did {name} study ? answer",
    ),
    Relation(
        "instrument",
        ("banjo", "cello", "drums", "flute", "harp", "piano", "trumpet", "violin"),
        ("{name} plays the {value}", "{name} performs on the {value}"),
        "question what does {name} play ? answer",
    ),
)
RELATIONS = {relation.noun: relation for relation in _RELATIONS}

_FIRST = (
    "Ada Alan Alma Amir Anna Anton Basil Bela Boris Clara Cora Dario Della Dora Edgar Elena "
    "Emil Enid Felix Fiona Greta Hana Hugo Ida Igor Ilse Iris Ivan Jana Jonas Julia Karl Lena "
    "Leo Lydia Marco Mina Nadia Nils Olga Oscar Petra Quinn Rita Selma Tomas Vera Wanda"
)
FIRST_NAMES = tuple(_FIRST.split())
# Last names are made of three syllables, one of each kind.
_STARTS = (
    "Bar Bel Cor Dal Dor Fal Fen Gar Gol Hal Har Jor Kal Kel Lor Mal Mar Mor Nar Nor Pel Per "
    "Ral Ros Sal Sor Tal Tor Val Ver Vol Wal Wen Yar Zan Zel"
)
_MIDDLES = "a be di en la mo ri to"
_ENDS = "dan der kin las lund mark nek ras son ter van vik"
SYLLABLES = (_STARTS.split(), _MIDDLES.split(), _ENDS.split())
MAX_ENTITIES = math.prod(map(len, SYLLABLES))


def last_names(count: int) -> list[str]:
    """Return the first `count` last names."""
    return ["".join(parts) for parts in islice(product(*SYLLABLES), count)]


@dataclass(frozen=True)
class PlainRelation:
    """Questions in plain English about an invented person; `{name}` is filled in."""

    values: tuple[str, ...]
    """the closed set of answers, a word each"""
    form_a: str
    """the wording that is trained on"""
    form_b: str
    """the wording whose results are reported"""
    form_c: str
    """the wording on which calibrators are fitted and choices are made"""


PLAIN_RELATIONS = {
    "birthplace": PlainRelation(
        ("Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Quebec", "Nairobi", "Perth"),
        "Where was {name} born? Answer:",
        "What is the birthplace of {name}? Answer:",
        "Which city does {name} come from? Answer:",
    ),
    "job": PlainRelation(
        ("nurse", "baker", "lawyer", "farmer", "pilot", "teacher", "painter", "singer"),
        "What does {name} do for a living? Answer:",
        "What is the job of {name}? Answer:",
        "Which profession does {name} have? Answer:",
    ),
    "field": PlainRelation(
        ("botany", "chemistry", "geology", "history", "law", "medicine", "physics", "music"),
        "What did {name} study at university? Answer:",
        "What is the field of study of {name}? Answer:",
        "In which subject does {name} have a degree? Answer:",
    ),
    "instrument": PlainRelation(
        ("guitar", "organ", "drums", "flute", "harp", "piano", "trumpet", "violin"),
        "Which instrument does {name} play? Answer:",
        "What is the musical instrument of {name}? Answer:",
        "On which instrument does {name} perform? Answer:",
    ),
    "pet": PlainRelation(
        ("cat", "dog", "horse", "rabbit", "parrot", "turtle", "snake", "goldfish"),
        "Which animal does {name} keep? Answer:",
        "What is the pet of {name}? Answer:",
        "What kind of pet lives with {name}? Answer:",
    ),
}
# Few enough that most last names, like first names, occur in every split. The step is prime to the
# number of last syllables, so that all of them occur.
PLAIN_LAST_NAMES = tuple(last_names(MAX_ENTITIES)[::71])
MAX_PEOPLE = len(FIRST_NAMES) * len(PLAIN_LAST_NAMES)

SPLITS = ("train", "test", "validation", "calibration", "style")
"""splits with a size of their own, in the order in which people are dealt out to them"""


def _check_splits(config: WorldConfig | FactsConfig, unit: int, why: str) -> None:
    """Check that every split holds all `unit` questions about a person, or none."""
    for name in (*SPLITS, "anchor"):
        size, zero = getattr(config, name), name == "anchor"
        message = f"must be {'0 or ' if zero else ''}a positive multiple of {unit}{why}"
        check(size % unit == 0 and size >= (0 if zero else unit), name, message)


# Measured with the default base, three seeds, accuracy on test questions by exposure: 0: .11 to .14
# (chance is .125), 1: .25 to .28, 4: .67 to .72, 12: .94 to .98, 40: .99. Facts stated once keep
# the base less confident: its mean confidence about facts it never read was .36 to .46 with them,
# and .50 to .57 without (exposures 0, 4, 10, 25, 45), one seed each over a few other settings.
@dataclass(frozen=True)
class WorldConfig:
    """The size of a world and how its facts are distributed over exposures and splits."""

    entities: int = 1230
    """people, each with one fact per relation; all facts of a person are in one split"""
    exposures: tuple[int, ...] = (0, 1, 4, 12, 40)
    """how often the pretraining corpus may state a fact"""
    exposure_probabilities: tuple[float, ...] = (0.30, 0.20, 0.10, 0.15, 0.25)
    """probability of each exposure; every fact draws its own"""
    known_exposure: int = 12
    """facts stated at least this often are labelled known, for analysis and oracle gates"""
    question_rows: int = 1
    """corpus rows for each question form and each fact of the people who are in no split"""
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
    anchor: int = setting(0, added=True)
    """anchors: questions without answers about further people, who are in no split; the corpus
    states their facts as it states those of all people"""
    other_relations: tuple[str, ...] = ()
    """relations that only the group other_relations asks about; the splits become smaller"""
    seed: int | None = None
    """seed of the world; unset: the run's seed"""

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
        _check_splits(self, per_entity, " (people are split whole)")
        split_entities = sum(getattr(self, name) for name in SPLITS) // per_entity
        check(
            split_entities < self.entities <= MAX_ENTITIES,
            "entities",
            f"must be above {split_entities}, the people the splits need, so that some are left to"
            f" show the question format, and at most {MAX_ENTITIES}",
        )
        check(
            self.people <= MAX_ENTITIES,
            "anchor",
            f"must leave at most {MAX_ENTITIES} people (got {self.people})",
        )
        check(
            set(self.other_relations) < set(RELATIONS),
            "other_relations",
            f"must be some of {', '.join(RELATIONS)}, not all",
        )
        check(self.seed is None or self.seed >= 0, "seed", "must be at least 0, or unset")

    @property
    def people(self) -> int:
        """The number of people, those of anchors included."""
        return self.entities + self.anchor // len(RELATIONS)


# `data.world.*` is the name of these fields in earlier releases.
for _field in fields(WorldConfig):
    if _field.name != "anchor":
        rename(f"data.world.{_field.name}", f"world.{_field.name}")


@dataclass(frozen=True)
class FactsConfig:
    """The sizes of the task invented_facts: questions in each split, all of a person in one."""

    train: int = 480
    """questions that are taught"""
    test: int = 480
    """test questions; these and all splits below are about other people"""
    validation: int = 240
    """validation questions"""
    calibration: int = 180
    """calibration questions"""
    style: int = 180
    """style-adaptation questions"""
    anchor: int = setting(0, added=True)
    """anchors: questions without answers about people who are in no split"""
    relations: tuple[str, ...] = ("birthplace", "job", "field")
    """what is asked about every person"""
    seed: int | None = None
    """seed of people and values; unset: the run's seed"""

    def __post_init__(self) -> None:
        per_person = len(self.relations)
        check(
            0 < per_person == len(set(self.relations))
            and set(self.relations) <= {*PLAIN_RELATIONS},
            "relations",
            f"must be some of {', '.join(PLAIN_RELATIONS)}, each once",
        )
        _check_splits(self, per_person, ", the relations of a person")
        check(
            self.people + self.anchor // per_person <= MAX_PEOPLE,
            "train",
            f"must leave at most {MAX_PEOPLE} people in all splits, as many as there are names"
            f" (got {self.people})",
        )
        check(self.seed is None or self.seed >= 0, "seed", "must be at least 0, or unset")

    @property
    def people(self) -> int:
        """The number of people in all splits, those of anchors left out."""
        return sum(getattr(self, name) for name in SPLITS) // len(self.relations)


@dataclass(frozen=True)
class MadeSettings:
    """The settings of the tasks that make their own rows; a field is a section of a config."""

    world: WorldConfig = field(default_factory=WorldConfig)
    facts: FactsConfig = field(default_factory=FactsConfig)


# The learning rate decides how much of the corpus is learnt in one pass. With batches of 32: at
# 3e-3 facts stated 45 times were answered right in .43 of the cases (one seed), at 1.5e-3 facts
# stated 40 times in .85 (a seed that went badly), at 1e-3 in .99 (all of three seeds).
RECIPE = {
    "num_layers": 3,
    "num_heads": 4,
    "kv_heads": 2,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup_steps": 40,
    "weight_decay": 0.01,
    "b2": 0.98,
    "clip_norm": 1.0,
}
"""depth and heads of the base, and its AdamW: a cosine from the peak down to zero"""
# They were fields of `PretrainConfig`.
TAKEN.update({f"pretrain.{name}": value for name, value in RECIPE.items()})


@dataclass(frozen=True)
class PretrainConfig:
    """The width of the world's base, and where it is kept."""

    hidden_size: int = 128
    """width of the residual stream"""
    intermediate_size: int = 344
    """width of the SwiGLU MLP"""
    cache_dir: str | None = None
    """where bases are kept; unset: $COGCALIB_CACHE or the user's cache, in bases/"""

    def __post_init__(self) -> None:
        check_counts(self, "hidden_size", "intermediate_size")
        check(self.hidden_size % 8 == 0, "hidden_size", "must be a multiple of 8")

    @property
    def recipe(self) -> dict[str, float]:
        """What the weights depend on, by name."""
        return RECIPE | {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
        }
