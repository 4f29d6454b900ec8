"""The last words of a run: which adapter to take, its two numbers and how to ask it."""

import json
import shlex

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.report.recommendation import recommendation
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
    assert said in words(run, **changed).take[1]


def test_what_beats_nothing_is_not_recommended_loudly(run):
    beaten = words(run, not_better_than=["base"]).take
    assert not beaten[0].startswith("Take") and "Do not rely on it" in " ".join(beaten)


def test_it_is_the_end_of_the_text_and_the_first_card_of_the_page(run):
    found = words(run)
    assert write_report(run).endswith(found.as_text())
    page = (run / "report.html").read_text()
    assert page.index("<h2>Take: ") < page.index("<h2>Results on world")


def test_runs_of_earlier_releases_have_none(run):
    assert recommendation(read_run(run)) is None
    assert "Take: " not in write_report(run)


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "ls"}', '{"method": "sft"}'])
def test_a_damaged_file_is_named(run, content):
    (run / "recommended.json").write_text(content)
    with pytest.raises(UserError, match=r"recommended\.json: damaged"):
        recommendation(read_run(run))
