"""The knowledge world: a corpus and question splits in which prior knowledge is controlled.

A world is a set of invented people with four facts each. How often the corpus states a fact (its
*exposure*) is random, so what a base model can know is known by construction. Everything is a pure
function of (config, seed). docs/method.md describes the forms of the questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cogcalib_jax.data.example import Example, Splits, unlabelled
from cogcalib_jax.files import put_json
from cogcalib_jax.world.config import FIRST_NAMES, RELATIONS, SPLITS, WorldConfig, last_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Form = Literal["A", "B", "C"]
"""A: questions of all splits; B: also in the corpus and the style split; C: groups only"""

FORMAT = "format"
"""the people in no split, whose questions the corpus shows with their answers: were they the style
split, style adaptation would train on answers already seen, which rewards confidence"""
ANCHOR = "anchor"
"""the people of `WorldConfig.anchor`"""

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN)


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
    """a split of `Splits`, ANCHOR included, or FORMAT"""

    @property
    def id(self) -> str:
        return f"{self.entity:04d}-{self.relation}"

    @property
    def value(self) -> str:
        return RELATIONS[self.relation].values[self.answer]

    def question(self, form: Form) -> str:
        relation = RELATIONS[self.relation]
        forms = {"A": relation.form_a, "B": relation.form_b, "C": relation.form_c}
        return forms[form].format(name=self.name)


@dataclass(frozen=True)
class World:
    """The facts, corpus and splits of one seed."""

    config: WorldConfig
    """with its seed set"""
    facts: tuple[Fact, ...]
    corpus: tuple[str, ...]
    """statements and questions with answers, a row each, in the order of pretraining"""
    splits: Splits


def build_world(config: WorldConfig | None, seed: int) -> World:
    """Draw facts, corpus and splits.

    Args:
        config: sizes and distributions; None: the defaults. Its seed, if set, overrides `seed`.
        seed: the run's seed.
    """
    config = resolve_seed(config, seed)
    facts = _draw_facts(config)
    return World(config, facts, _write_corpus(config, facts), _make_splits(config, facts))


def build_splits(config: WorldConfig | None, seed: int) -> Splits:
    """Return the question splits of `build_world(config, seed)` without writing its corpus."""
    config = resolve_seed(config, seed)
    return _make_splits(config, _draw_facts(config))


# Sets of questions beside the test split: the split whose facts they ask about, in which form. A
# fact that was learnt is answered in form B, too; a memorised string is not. Calibrators are fitted
# and settings are chosen on `taught_fit` and `unseen_fit`, so that form B stays for what is
# reported. `other_relations` asks about the relations of that name, and the others about the rest.
GROUPS: dict[str, tuple[str, Form]] = {
    "taught_form_b": ("train", "B"),
    "taught_fit": ("train", "C"),
    "unseen_fit": ("calibration", "A"),
    "unseen_template": ("test", "C"),
    "other_relations": ("test", "A"),
}


def group(name: str, config: WorldConfig | None, seed: int) -> tuple[Example, ...]:
    """Return the questions of a group in `GROUPS`; other arguments as for `build_world`."""
    config = resolve_seed(config, seed)
    split, form = GROUPS[name]
    others = name == "other_relations"
    return tuple(
        _ask(config, fact, form)
        for fact in _draw_facts(config)
        if fact.split == split and (fact.relation in config.other_relations) == others
    )


def wordings(example: Example) -> tuple[Example, ...]:
    """Return a fact of the world in each text that its corpus may hold before the value."""
    relation = RELATIONS[example.extra["relation"]]
    texts = (relation.form_a, relation.form_b, *relation.statements)
    return tuple(
        replace(example, question=text.format(name=example.group, value="").rstrip())
        for text in texts
    )


def resolve_seed(config: WorldConfig | None, seed: int) -> WorldConfig:
    """Return `config` with its seed set: its own if it has one, else the run's."""
    config = config or WorldConfig()
    return config if config.seed is not None else replace(config, seed=seed)


def vocabulary(config: WorldConfig) -> tuple[str, ...]:
    """Return every word of a world of this size, sorted; no word depends on the seed."""
    words = {*FIRST_NAMES, *last_names(config.people)}
    for relation in RELATIONS.values():
        words |= set(relation.values)
        for text in (*relation.statements, relation.form_a, relation.form_b):
            words |= set(text.format(name="", value="").split())
    return tuple(sorted(words))


def _rng(config: WorldConfig, stream: int) -> np.random.Generator:
    """Return one of several independent streams: a change to one part leaves the others alone."""
    return np.random.default_rng([config.seed, stream])


def _draw_facts(config: WorldConfig) -> tuple[Fact, ...]:
    sizes = [getattr(config, name) // len(RELATIONS) for name in SPLITS]
    sizes.append(config.entities - sum(sizes))
    splits = np.repeat([*SPLITS, FORMAT], sizes)
    facts = _facts_of(config, 0, splits, first=0)
    # With streams of their own: whatever their number is, the others stay who they are.
    others = np.repeat([ANCHOR], config.people - config.entities)
    return facts + _facts_of(config, 4, others, first=config.entities)


def _facts_of(config: WorldConfig, stream: int, splits: np.ndarray, first: int) -> tuple[Fact, ...]:
    """Draw the people from number `first` on, of `splits` [people] in a random order."""
    rng, people = _rng(config, stream), len(splits)
    firsts = rng.choice(FIRST_NAMES, size=people)
    lasts = last_names(first + people)[first:]
    answers = np.stack(
        [rng.integers(len(r.values), size=people) for r in RELATIONS.values()], axis=1
    )
    exposures = _rng(config, stream + 1).choice(
        config.exposures, size=answers.shape, p=config.exposure_probabilities
    )
    splits = rng.permutation(splits)
    return tuple(
        Fact(
            entity=first + person,
            name=f"{firsts[person]} {lasts[person]}",
            relation=relation,
            answer=int(answers[person, column]),
            exposure=int(exposures[person, column]),
            split=str(splits[person]),
        )
        for person in range(people)
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
                rows.extend([f"{fact.question(form)} {fact.value}"] * config.question_rows)
    return tuple(rows[i] for i in rng.permutation(len(rows)))


def _make_splits(config: WorldConfig, facts: tuple[Fact, ...]) -> Splits:
    rows: dict[str, list[Example]] = {name: [] for name in (*SPLITS, ANCHOR)}
    style_forms = iter(_rng(config, 3).permutation(["A", "B"] * (config.style // 2)))
    for fact in facts:
        if fact.split != FORMAT:
            form = str(next(style_forms)) if fact.split == "style" else "A"
            # Left out here, so that the other questions keep their forms.
            if fact.relation not in config.other_relations:
                asked = _ask(config, fact, form)
                rows[fact.split].append(unlabelled(asked) if fact.split == ANCHOR else asked)
    return Splits(**{name: tuple(examples) for name, examples in rows.items()}, notes=())


def _ask(config: WorldConfig, fact: Fact, form: Form) -> Example:
    return Example(
        id=f"{fact.id}-{form}",
        question=fact.question(form),
        choices=RELATIONS[fact.relation].values,
        answer=fact.answer,
        group=fact.name,
        extra={
            "fact": fact.id,
            "relation": fact.relation,
            "form": form,
            "exposure": fact.exposure,
            # By exposure alone: what the base could have learnt, not what a model answers.
            "known": fact.exposure >= config.known_exposure,
        },
    )


def build_tokenizer(config: WorldConfig) -> Tokenizer:
    """Return a tokenizer of one token per word; it puts BOS in front and adds no EOS."""
    # Imported here: a command line is checked without it.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = (*SPECIAL_TOKENS, *vocabulary(config))
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(config: WorldConfig, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; `max_length` is the model's context."""
    build_tokenizer(config).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **_settings(max_length)}
    put_json(folder / "tokenizer_config.json", settings)


def tokenizer_in_memory(config: WorldConfig, max_length: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer that the files of `save_tokenizer` hold."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(config), **_settings(max_length)
    )


def _settings(max_length: int) -> dict[str, Any]:
    return {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": max_length,
        "padding_side": "right",
        # Words are joined by spaces; cleaning up would remove the one before a question mark.
        "clean_up_tokenization_spaces": False,
    }
