"""The world controls prior knowledge: what its corpus states, and what its splits ask."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cogcalib_jax.errors import FieldError
from cogcalib_jax.world.config import RELATIONS, WorldConfig
from cogcalib_jax.world.corpus import (
    ANCHOR,
    FORMAT,
    SPECIAL_TOKENS,
    build_splits,
    build_world,
    group,
    save_tokenizer,
    vocabulary,
)

SMALL = WorldConfig(
    entities=60,
    exposures=(0, 2, 5),
    exposure_probabilities=(0.5, 0.3, 0.2),
    known_exposure=5,
    train=40,
    test=60,
    validation=24,
    calibration=16,
    style=40,
)


@pytest.fixture(scope="module")
def world():
    return build_world(SMALL, seed=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(SMALL, folder, max_length=256)
    return AutoTokenizer.from_pretrained(folder)


def statements(world, fact):
    """Corpus rows that state the fact, recognised by words alone."""
    last = fact.name.split()[1]
    rows = [row.split() for row in world.corpus]
    return [row for row in rows if last in row and fact.value in row and row[0] != "question"]


def test_the_default_has_the_sizes_the_results_rest_on():
    splits = build_splits(WorldConfig(), seed=0)
    sizes = {name: len(examples) for name, examples in splits.items()}
    assert sizes == {
        "style": 960,
        "train": 840,
        "calibration": 300,
        "validation": 620,
        "test": 1520,
    }


def test_a_fact_is_stated_as_often_as_its_exposure_says(world):
    assert [len(statements(world, fact)) for fact in world.facts] == [
        fact.exposure for fact in world.facts
    ]
    assert {fact.exposure for fact in world.facts} == set(SMALL.exposures)


def test_exposures_follow_their_probabilities():
    config = replace(SMALL, entities=2000)
    counts = Counter(fact.exposure for fact in build_world(config, seed=1).facts)
    for exposure, probability in zip(config.exposures, config.exposure_probabilities, strict=True):
        # 8,000 draws: four standard errors are at most .0224.
        assert abs(counts[exposure] / 8000 - probability) < 0.0224


def test_the_corpus_asks_only_about_people_of_no_split(world):
    asked = [row for row in world.corpus if row.startswith("question")]
    format_people = {fact.name for fact in world.facts if fact.split == FORMAT}
    assert len(asked) == len(set(asked)) == 2 * len(RELATIONS) * len(format_people)
    for row in asked:
        assert sum(name in row for name in format_people) == 1
    questions = {e.question for _, examples in world.splits.items() for e in examples}
    assert not any(row.rsplit(" ", 1)[0] in questions for row in asked)


def test_splits_share_no_person_fact_or_question(world):
    seen = {"group": set(), "fact": set(), "question": set(), "id": set()}
    for _, examples in world.splits.items():
        for key, value in {
            "group": {e.group for e in examples},
            "fact": {e.extra["fact"] for e in examples},
            "question": {e.question for e in examples},
            "id": {e.id for e in examples},
        }.items():
            assert not seen[key] & value
            if key != "group":
                assert len(value) == len(examples)
            seen[key] |= value


def test_examples_agree_with_the_facts_they_ask_about(world):
    facts = {fact.id: fact for fact in world.facts}
    for split, examples in world.splits.items():
        for e in examples:
            fact = facts[e.extra["fact"]]
            assert fact.split == split
            assert e.choices[e.answer] == fact.value
            assert len(set(e.choices)) == 8
            assert fact.name in e.question and e.question.endswith("answer")
            assert e.extra["exposure"] == fact.exposure
            assert e.extra["known"] == (fact.exposure >= 5)
            assert e.extra["relation"] == fact.relation


def test_only_the_style_split_holds_form_b_and_it_holds_both_equally(world):
    forms = {name: Counter(e.extra["form"] for e in rows) for name, rows in world.splits.items()}
    assert forms.pop("style") == {"A": 20, "B": 20}
    assert all(set(counter) == {"A"} for counter in forms.values())


def test_taught_facts_can_be_asked_again_in_other_words(world):
    again = group("taught_form_b", SMALL, 3)
    assert [e.extra["fact"] for e in again] == [e.extra["fact"] for e in world.splits.train]
    for new, old in zip(again, world.splits.train, strict=True):
        assert new.question != old.question and new.id != old.id
        assert (new.choices, new.answer) == (old.choices, old.answer)


def test_taught_facts_have_a_third_wording_that_no_other_group_shares(world):
    fit = group("taught_fit", SMALL, 3)
    assert [e.extra["fact"] for e in fit] == [e.extra["fact"] for e in world.splits.train]
    assert {e.extra["form"] for e in fit} == {"C"}
    assert [e.answer for e in fit] == [e.answer for e in world.splits.train]
    asked = {e.question for _, rows in world.splits.items() for e in rows}
    asked |= {
        e.question for e in group("taught_form_b", SMALL, 3) + group("unseen_template", SMALL, 3)
    }
    assert not asked & {e.question for e in fit}


def test_the_unseen_template_asks_the_test_questions_in_words_the_tokenizer_knows(world):
    asked = group("unseen_template", SMALL, 3)
    assert [e.extra["fact"] for e in asked] == [e.extra["fact"] for e in world.splits.test]
    assert {word for e in asked for word in e.question.split()} <= set(vocabulary(SMALL))
    # Neither the corpus nor a split says anything like it.
    said = [*world.corpus, *(e.question for _, rows in world.splits.items() for e in rows)]
    assert not [text for text in said if "is what" in text]


def test_a_relation_left_out_is_asked_about_in_its_group_alone(world):
    config = replace(SMALL, other_relations=("field",))
    narrow = build_world(config, 3)
    assert narrow.corpus == world.corpus  # so the base is the same
    for name, rows in narrow.splits.items():
        whole = getattr(world.splits, name)
        assert rows == tuple(e for e in whole if e.extra["relation"] != "field")
    asked = {e.id for e in world.splits.test if e.extra["relation"] == "field"}
    assert {e.id for e in group("other_relations", config, 3)} == asked
    for name in ("taught_form_b", "taught_fit", "unseen_template"):
        assert {e.extra["relation"] for e in group(name, config, 3)} == set(RELATIONS) - {"field"}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_world_is_a_function_of_config_and_seed(seed):
    world = build_world(SMALL, seed)
    assert build_world(SMALL, seed) == world
    assert build_splits(SMALL, seed) == world.splits
    other = build_world(SMALL, seed + 1)
    assert other.corpus != world.corpus and other.splits != world.splits


def test_the_worlds_own_seed_goes_before_the_runs():
    own = replace(SMALL, seed=5)
    assert build_world(own, 1) == build_world(own, 2) == build_world(SMALL, 5)


def test_anchors_are_about_people_of_their_own_beside_the_others(world):
    """The others stay who they are; the corpus states facts of anchors and asks about none."""
    held = build_world(replace(world.config, anchor=40), 0)
    assert [rows for rows in held.splits.items()] == [rows for rows in world.splits.items()]
    assert held.facts[: len(world.facts)] == world.facts
    anchors = held.splits.anchor
    others = {e.group for _, rows in held.splits.items() for e in rows}
    assert len(anchors) == 40 and len({e.group for e in anchors} - others) == 10
    assert all(e.answer == 0 and e.extra == {} for e in anchors)
    own = [row for row in held.corpus if any(e.group in row for e in anchors)]
    assert len(own) == sum(f.exposure for f in held.facts if f.split == ANCHOR)
    assert not any(row.startswith("question") for row in own)


def test_other_exposures_leave_people_answers_and_splits_alone(world):
    flat = replace(SMALL, exposure_probabilities=(0.1, 0.1, 0.8))
    other = build_world(flat, seed=3)
    assert [(f.name, f.answer, f.split) for f in other.facts] == [
        (f.name, f.answer, f.split) for f in world.facts
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exposures", (0, 2, 2)),
        ("exposures", (-1, 2, 5)),
        ("exposure_probabilities", (0.5, 0.5)),
        ("exposure_probabilities", (0.5, 0.3, 0.3)),
        ("train", 42),
        ("test", 0),
        ("entities", 45),
        ("entities", 100_000),
        ("known_exposure", 0),
        ("question_rows", 0),
        ("seed", -1),
    ],
)
def test_impossible_worlds_are_refused_by_field(field, value):
    with pytest.raises(FieldError, match=field):
        replace(SMALL, **{field: value})


def test_every_word_is_one_token_and_texts_survive_the_round_trip(world, tokenizer):
    texts = [*world.corpus, *(e.question for _, rows in world.splits.items() for e in rows)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 1 + len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_adds_bos_once_and_knows_its_special_tokens(tokenizer):
    ids = tokenizer("question where")["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    names = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert names == SPECIAL_TOKENS
    assert tokenizer.convert_tokens_to_ids(list(names)) == [0, 1, 2, 3]
    assert len(tokenizer) == len(SPECIAL_TOKENS) + len(vocabulary(SMALL))
    assert tokenizer("Nobody")["input_ids"][1] == tokenizer.unk_token_id


def test_answers_are_single_tokens_after_the_prompt(world, tokenizer):
    for e in world.splits.test:
        prompt = tokenizer(e.question)["input_ids"]
        for choice in e.choices:
            ids = tokenizer(f"{e.question} {choice}")["input_ids"]
            assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + 1


def test_words_of_one_kind_serve_no_other():
    values = [value for relation in RELATIONS.values() for value in relation.values]
    assert len(values) == len(set(values)) == 32
    template_words = {
        word
        for relation in RELATIONS.values()
        for text in (*relation.statements, relation.form_a, relation.form_b)
        for word in text.format(name="", value="").split()
    }
    assert not template_words & set(values)
    small, large = set(vocabulary(SMALL)), set(vocabulary(replace(SMALL, entities=3000)))
    assert small < large and len(large) - len(small) == 3000 - SMALL.entities
