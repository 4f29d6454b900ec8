"""Facts about invented people: nothing tells a value but being taught it."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import train
from cogcalib_jax.cli import questions
from cogcalib_jax.cli.eval_config import EvalConfig
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.loading import load_splits, load_test
from cogcalib_jax.data.tasks import TASKS
from cogcalib_jax.errors import FieldError, UserError, run_main
from cogcalib_jax.settings import identity
from cogcalib_jax.world.config import (
    FIRST_NAMES,
    PLAIN_LAST_NAMES,
    PLAIN_RELATIONS,
    FactsConfig,
    MadeSettings,
    WorldConfig,
)
from cogcalib_jax.world.facts import build_splits, group, wordings
from tests.library import write_base

SMALL = FactsConfig(train=48, test=48, validation=24, calibration=24, style=24)
DATA = DataConfig(task="invented_facts")
VALUES = 8


@pytest.fixture(scope="module")
def splits():
    return build_splits(None, seed=3)


def naive_bayes(taught, asked):
    """Answer `asked` by how often first and last name went with a value among `taught`."""
    counts = np.ones((2, len(FIRST_NAMES) + len(PLAIN_LAST_NAMES), VALUES))
    index = {name: i for i, name in enumerate((*FIRST_NAMES, *PLAIN_LAST_NAMES))}
    for row in taught:
        for place, name in enumerate(row.group.split()):
            counts[place, index[name], row.answer] += 1
    counts = np.log(counts / counts.sum(-1, keepdims=True))
    scores = [
        sum(counts[place, index[name]] for place, name in enumerate(row.group.split()))
        for row in asked
    ]
    return np.argmax(scores, axis=1) == [row.answer for row in asked]


def test_the_default_has_the_sizes_of_the_documentation(splits):
    sizes = {name: len(rows) for name, rows in splits.items()}
    assert sizes == {
        "style": 180,
        "train": 480,
        "calibration": 180,
        "validation": 240,
        "test": 480,
    }
    assert {row.extra["relation"] for row in splits.test} == {"birthplace", "job", "field"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_counts_of_names_answer_other_people_at_chance(split):
    right = []
    for seed in range(5):
        splits = build_splits(None, seed)
        for relation in FactsConfig().relations:
            of = [
                [r for r in rows if r.extra["relation"] == relation] for _, rows in splits.items()
            ]
            by_name = dict(zip((name for name, _ in splits.items()), of, strict=True))
            right += [*naive_bayes(by_name["train"], by_name[split])]
    low, high = binom.interval(0.999, len(right), 1 / VALUES)
    assert low <= sum(right) <= high
    # The same counts do answer the people they were counted on.
    taught = [row for row in splits.train if row.extra["relation"] == "job"]
    assert naive_bayes(taught, taught).mean() > 0.5


def test_splits_draw_on_the_same_names(splits):
    for part in range(2):
        names = {name: {row.group.split()[part] for row in rows} for name, rows in splits.items()}
        for name in ("calibration", "validation", "test"):
            assert len(names[name] & names["train"]) > 0.7 * len(names[name])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_facts_are_a_function_of_config_and_seed_and_their_values_are_balanced(seed):
    splits = build_splits(SMALL, seed)
    assert build_splits(SMALL, seed) == splits != build_splits(SMALL, seed + 1)
    for _, rows in splits.items():
        for relation in SMALL.relations:
            counts = Counter(row.answer for row in rows if row.extra["relation"] == relation)
            assert len(counts) == VALUES and set(counts.values()) <= {1, 2}


def test_the_facts_own_seed_goes_before_the_runs():
    own = replace(SMALL, seed=5)
    assert build_splits(own, 1) == build_splits(own, 2) == build_splits(SMALL, 5)


def test_splits_share_no_person_fact_or_question(splits):
    people, asked, ids = [], [], []
    for _, rows in splits.items():
        groups = Counter(row.group for row in rows)
        assert set(groups.values()) == {len(FactsConfig().relations)}
        people += groups
        asked += [row.question for row in rows]
        ids += [row.id for row in rows]
    for all_of in (people, asked, ids):
        assert len(all_of) == len(set(all_of))


def test_wordings_are_taught_fitted_on_and_reported(splits):
    forms = {name: {row.extra["form"] for row in rows} for name, rows in splits.items()}
    assert forms == {
        "style": {"A"},
        "train": {"A"},
        "calibration": {"C"},
        "validation": {"C"},
        "test": {"B"},
    }
    for name, form in (("taught_form_b", "B"), ("taught_fit", "C")):
        again = group(name, None, 3)
        for new, old in zip(again, splits.train, strict=True):
            assert new.question != old.question and new.id != old.id
            assert (new.extra["fact"], new.answer) == (old.extra["fact"], old.answer)
            assert new.extra["form"] == form


def test_every_text_names_its_person_and_no_value():
    rows = build_splits(replace(SMALL, relations=tuple(PLAIN_RELATIONS), **sizes(120)), 0).train
    assert {row.extra["relation"] for row in rows} == set(PLAIN_RELATIONS)
    for row in rows:
        texts = [one.question for one in wordings(row)]
        assert len(set(texts)) == 3 and row.question == texts[0]
        for text in texts:
            assert row.group in text and text.endswith("? Answer:")
            assert not any(value in text for value in row.choices)


def sizes(count):
    return dict.fromkeys(("train", "test", "validation", "calibration", "style"), count)


def test_values_are_single_words_that_begin_no_other():
    for relation in PLAIN_RELATIONS.values():
        assert len(set(relation.values)) == VALUES
        for value in relation.values:
            assert len(value.split()) == 1
            assert [one for one in relation.values if one.startswith(value)] == [value]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train", 50),
        ("test", 0),
        ("train", 30_000),
        ("relations", ()),
        ("relations", ("job", "job")),
        ("relations", ("job", "shoe size")),
        ("seed", -1),
    ],
)
def test_impossible_facts_are_refused_by_field(field, value):
    with pytest.raises(FieldError, match=field):
        replace(SMALL, **{field: value})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "model.path: not given; must name a base model for task invented_facts"),
        (["--facts.train", "50"], "facts.train = 50: must be a positive multiple of 3"),
        (["--data.train-rows", "9"], "must be none: task invented_facts has facts.train"),
        (["--data.path", "x"], "must be none: task invented_facts makes its own rows"),
        (["--data.few-shot", "2"], "must be 0: task invented_facts has no solved questions"),
        (["--also", "invented_facts:taught_form_b"], "which is answered anyway"),
    ],
)
def test_the_command_line_refuses_by_name(argv, message):
    base = ["--model.path", "base"] if argv else []
    with pytest.raises(UserError, match=message):
        load("--data.task", "invented_facts", *base, *argv)


def load(*argv, cls=RunConfig):
    return load_config(cls, argv, prog="train.py", description="").config


def test_runs_and_evaluations_ask_with_their_own_settings():
    argv = ("--model.path", "base", "--data.task", "invented_facts", "--seed", "2")
    options = ("--facts.train", "48", "--facts.test", "48", "--facts.relations", "pet,job")
    facts = FactsConfig(train=48, test=48, relations=("pet", "job"))
    run = load(*argv, *options)
    assert run.facts == facts
    assert load_splits(run.data, run.seed, made=run.made) == build_splits(facts, 2)
    assert questions.extra_examples(run.data, run.seed, run.made) == {
        "invented_facts:taught_form_b": group("taught_form_b", facts, 2)
    }
    evaluation = load(*argv, *options, "--task", "invented_facts:taught_fit", cls=EvalConfig)
    assert questions.test_questions(evaluation, []) == {
        "invented_facts:taught_fit": group("taught_fit", facts, 2)
    }


def test_each_made_task_gets_its_own_settings():
    made = MadeSettings(WorldConfig(seed=8), replace(SMALL, seed=9))
    assert load_test(DATA, 0, made=made)[0] == build_splits(SMALL, 9).test
    assert load_splits(DATA, 3).train == build_splits(None, 3).train
    assert load_test(DataConfig(), 0, made=made) == load_test(DataConfig(), 8)


def test_runs_of_before_go_on():
    """Their stored identities have no facts."""
    assert "facts" not in identity(RunConfig())
    changed = RunConfig(facts=FactsConfig(seed=1))
    assert "facts" in identity(changed)


def test_slick_asks_a_fact_in_its_three_wordings(splits):
    asked = TASKS["invented_facts"].wordings(splits.train[0])
    assert [row.question for row in asked] == [
        rows[0].question
        for rows in (
            splits.train,
            *(group(name, None, 3) for name in ("taught_form_b", "taught_fit")),
        )
    ]


@pytest.mark.slow
def test_a_tokenizer_may_split_values_and_names(tmp_path):
    """Options of several tokens train and are scored; bytes are the most there can be."""
    base, folder = write_base(tmp_path / "base"), tmp_path / "run"
    options = {
        "config": "configs/smollm2_135m_invented_facts.yaml",
        "model.path": base,
        "run-dir": folder,
        "compare": "ls",
        "lora.r": 2,
        **{f"facts.{name}": count for name, count in sizes(24).items()},
        "training.max-steps": 2,
        "training.style-steps": 1,
        "training.probe-rows": 0,
        "evaluation.resamples": 100,
    }
    argv = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert run_main(train.main, argv) == 0
    results = json.loads((folder / "ls" / "eval.json").read_text())
    for name in ("invented_facts", "invented_facts:taught_form_b"):
        assert results[name]["n"] == 24 and np.isfinite(results[name]["nll"])
    rows = (folder / "ls" / "predictions" / "invented_facts.jsonl").read_text().splitlines()
    extra = json.loads(rows[0])["extra"]
    assert (extra["known"], extra["exposure"], extra["form"]) == (False, 0, "B")


def test_anchors_are_about_people_whom_nobody_knows():
    held, plain = build_splits(FactsConfig(anchor=30), 1), build_splits(None, 1)
    assert held.items() == plain.items()
    others = {e.group for _, rows in held.items() for e in rows}
    assert len(held.anchor) == 30 and len({e.group for e in held.anchor} - others) == 10
    assert all(e.answer == 0 and e.extra == {} for e in held.anchor)
    with pytest.raises(FieldError, match="multiple of 3"):
        FactsConfig(anchor=4)
