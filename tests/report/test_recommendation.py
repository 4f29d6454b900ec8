"""The last words of a run: which adapter to take, its two numbers and how to ask it."""

import json
import shlex

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.report.recommendation import base_words, read_base, recommendation, trust
from cogcalib_jax.report.report import write_report
from tests.report.synthetic import write_comparison

QUESTION = {"question": "Where?", "choices": ["here", "there"]}
CHOSEN = {
    "method": "sft",
    "chosen_on": "validation",
    "n": 90,
    "validation_nll": {"sft": 1.1, "cols": 1.2, "base": 1.5, "commonest_answer": 2.0},
    "equal_to_best": ["sft"],
    "not_better_than": [],
    "question": QUESTION,
}


@pytest.fixture
def run(tmp_path):
    """Three rows, in a folder whose name needs quotes on a command line."""
    folder = tmp_path / "my run"
    folder.mkdir()
    write_comparison(folder, {"sft": 2.0, "sft_temperature": 1.0, "cols": 1.5}, n=60)
    for file in (folder / "comparison.json", folder / "sft_temperature" / "eval.json"):
        content = json.loads(file.read_text())
        (content.get("sft_temperature") or content)["world"]["temperature"] = 1.5
        file.write_text(json.dumps(content))
    return folder


def words(run, **changed):
    (run / "recommended.json").write_text(json.dumps(CHOSEN | changed))
    return recommendation(read_run(run))


def test_the_two_numbers_are_those_that_predict_gives(run):
    numbers = json.loads((run / "comparison.json").read_text())["sft_temperature"]["world"]
    *_, said = words(run).take
    assert f"On 60 test questions of world: {100 * numbers['accuracy']:.1f} % right" in said
    assert f"{100 * numbers['confidence']:.1f} % sure (at its temperature of 1.5" in said


def test_a_method_without_a_temperature_has_its_own_numbers(run):
    numbers = json.loads((run / "comparison.json").read_text())["cols"]["world"]
    *_, said = words(run, method="cols").take
    assert f"{100 * numbers['confidence']:.1f} % sure (without a temperature" in said


def test_the_command_can_be_pasted_and_the_example_read(run):
    found = words(run)
    assert shlex.split(found.command)[3] == str(run / "sft")
    assert json.loads(found.example) == QUESTION
    long = words(run, question=QUESTION | {"passage": "word " * 100})
    assert set(json.loads(long.example)) == {"question", "choices"}


def test_open_questions_have_no_example_and_another_command(run):
    found = words(run, question=None)
    assert (found.example, "--predict" in found.command) == ("", False)
    assert found.command.startswith("python eval.py --run ")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "It has the lowest NLL on 90 validation questions: 1.100."),
        (
            {"equal_to_best": ["sft", "cols"]},
            "the simplest of those with the lowest NLL on 90 validation questions (1.100); the"
            " difference from CoLS (1.200) may be noise.",
        ),
        (
            {"not_better_than": ["commonest_answer"]},
            "the best of what was trained, but not better than always giving the commonest answers"
            " (2.000)",
        ),
    ],
)
def test_why_it_is_taken_is_said(run, changed, said):
    assert said in words(run, **changed).take[2]


def test_what_beats_nothing_is_not_recommended_loudly(run):
    beaten = words(run, not_better_than=["base"]).take
    assert not beaten[0].startswith("Take") and "Do not rely on it" in " ".join(beaten)


def test_it_is_the_end_of_the_text_and_on_the_first_screen_of_the_page(run):
    found = words(run)
    assert write_report(run).endswith(found.as_text())
    page = (run / "report.html").read_text()
    first, second = page.index("Can I trust its confidence?"), page.index("Which method do I take?")
    assert first < second < page.index(">Take: SFT.<") < page.index("<h2>Results on world")


def trusted(run, **numbers):
    """The answer for `sft` with its temperature, if its numbers were others."""
    found = read_run(run)
    method = next(m for m in found.methods if m.key == "sft_temperature")
    method.metrics["world"].update({"n": 60, "ece_p_value": 0.001} | numbers)
    return trust(found, words(run).key)


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [
        ({"ece_p_value": 0.2}, "Yes, as far as 60 questions can show."),
        ({"accuracy": 0.5, "confidence": 0.58}, "No: it is 8.0 points too high on average."),
        ({"accuracy": 0.5, "confidence": 0.41}, "No: it is 9.0 points too low on average."),
        ({"accuracy": 0.5, "confidence": 0.51, "ece": 0.2}, "On average only: it is too high for"),
        ({"accuracy": 0.5, "confidence": 0.51, "ece": 0.05}, "Roughly: it is off by more than"),
        ({"chance": 0.99}, "No: its answers are no better than guessing"),
    ],
)
def test_trust_is_answered_first(run, numbers, answer):
    said = trusted(run, **numbers)
    assert said[0].startswith(answer)
    assert said[1].startswith("SFT + temperature: ")
    assert "A calibrated model with these confidences would show" in said[2]


def test_runs_of_earlier_releases_have_none(run):
    assert recommendation(read_run(run)) is None
    assert "Take: " not in write_report(run)


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "ls"}', '{"method": "sft"}'])
def test_a_damaged_file_is_named(run, content):
    (run / "recommended.json").write_text(content)
    with pytest.raises(UserError, match=r"recommended\.json: damaged"):
        recommendation(read_run(run))


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
    assert warning.endswith("Try another prompt: --data.prompt cloze")


@pytest.mark.parametrize(
    ("kind", "said", "prompt"),
    [
        ("letters", "does not know which one is right", "cloze"),
        ("texts", "either the form is wrong for it, or it lacks the knowledge", "letters"),
    ],
)
def test_a_base_at_chance_is_named(kind, said, prompt):
    _, warning = base_words(GOOD | CHANCE | {"kind": kind})
    assert "is at chance" in warning and said in warning and f"--data.prompt {prompt}" in warning


def test_texts_need_no_mass_and_no_commonest_answer_is_given_for_open_questions():
    assert len(base_words(GOOD | {"kind": "texts", "option_mass": 0.01})) == 1
    none = {"kind": "open", "chance": 0.0, "option_mass": None, "commonest_answer": None}
    (line,) = base_words(GOOD | none)
    assert line.endswith(
        "right (95 % interval 52.8 % to 66.8 %), by the reference answer word for word."
    )
    _, warning = base_words(GOOD | none | {"accuracy": 0.0, "low": 0.0})
    assert warning.endswith("or it lacks the knowledge.")


def test_runs_of_earlier_releases_have_no_base(tmp_path):
    assert read_base(tmp_path) is None
    (tmp_path / "base.json").write_text(json.dumps(GOOD))
    assert read_base(tmp_path) == GOOD
