"""Sentences about the base: what is wrong with the form is said, and only then."""

import json

import pytest

from cogcalib_jax.report.base_words import base_words, read_base

GOOD = {
    "model": "the base",
    "task": "custom",
    "n": 200,
    "kind": "letters",
    "accuracy": 0.6,
    "low": 0.528,
    "high": 0.668,
    "nll": 0.9,
    "chance": 0.25,
    "commonest_answer": 0.3,
    "option_mass": 0.97,
    "try": ["python train.py --data.prompt cloze"],
}
CHANCE = {"accuracy": 0.27, "low": 0.21, "high": 0.34}


def test_accuracy_stands_beside_chance_and_the_commonest_answer():
    (line,) = base_words(GOOD)
    assert line == (
        "The base, before training: 60.0 % of 200 validation questions right (95 % interval 52.8 %"
        " to 66.8 %); guessing 25.0 %, always the commonest answer 30.0 %. Its probability mass on"
        " the letters of the options: 0.97."
    )


@pytest.mark.parametrize("accuracy", [{}, CHANCE])
def test_little_mass_on_the_letters_means_that_the_form_is_wrong(accuracy):
    _, warning = base_words(GOOD | accuracy | {"option_mass": 0.49})
    assert warning.startswith("The form is wrong")
    assert warning.endswith("Try another form: python train.py --data.prompt cloze")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("letters", "does not know which one is right"),
        ("texts", "either the form is wrong for it, or it lacks the knowledge"),
    ],
)
def test_a_base_at_chance_is_named(kind, said):
    _, warning = base_words(GOOD | CHANCE | {"kind": kind})
    assert "is at chance" in warning and said in warning and "--data.prompt cloze" in warning


def test_texts_need_no_mass_and_no_commonest_answer_is_given_for_open_questions():
    assert len(base_words(GOOD | {"kind": "texts", "option_mass": 0.01})) == 1
    none = {"kind": "open", "chance": 0.0, "option_mass": None, "commonest_answer": None, "try": []}
    (line,) = base_words(GOOD | none)
    assert line.endswith(
        "right (95 % interval 52.8 % to 66.8 %), by the reference answer word for word."
    )
    _, warning = base_words(GOOD | none | {"accuracy": 0.0, "low": 0.0})
    assert warning.endswith("or it lacks the knowledge.")


def test_runs_of_earlier_releases_have_none(tmp_path):
    assert read_base(tmp_path) is None
    (tmp_path / "base.json").write_text(json.dumps(GOOD))
    assert read_base(tmp_path) == GOOD
