"""eval.py --predict: one's own questions answered, and left open where confidence is too low."""

import json
import re

import numpy as np
import pytest

from cogcalib_jax.cli import predict as answer
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.metrics.scores import expected_accuracy
from cogcalib_jax.world.config import MadeSettings
from tests.cli.small_base import WORLD
from tests.eval_program.programs import lines, run_eval


@pytest.fixture(scope="module")
def splits():
    return load_splits(DataConfig(), seed=0, made=MadeSettings(WORLD))


def ask(path, examples, **more):
    rows = [{"question": e.question, "choices": e.choices, "id": e.id} | more for e in examples]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_answers_are_those_of_the_evaluation_at_the_fitted_temperature(
    trained, splits, tmp_path, capsys
):
    _, run = trained
    questions = ask(tmp_path / "mine.jsonl", splits.test)
    assert run_eval("--run", run, "--predict", questions, "--out", tmp_path / "a.jsonl") == 0
    assert "16 answered: " in capsys.readouterr().out
    temperature = json.loads((run / "adapter/calibration.json").read_text())["temperature"]["value"]
    answers, evaluated = lines(tmp_path / "a.jsonl"), lines(run / "predictions/world.jsonl")
    assert len(answers) == len(evaluated) == WORLD.test
    for row, other in zip(answers, evaluated, strict=True):
        assert row["id"] == other["id"]
        assert row["index"] == other["prediction"]
        assert row["prediction"] == other["completions"][row["index"]].strip()
        assert row["raw_confidence"] == pytest.approx(other["confidence"], abs=1e-5)
        scaled = np.exp(np.array(other["option_logprobs"]) / temperature)
        np.testing.assert_allclose(row["option_probs"], scaled / scaled.sum(), atol=1e-5)
        assert row["confidence"] == max(row["option_probs"])
        assert row["answered"] is True


def held_out(run, split, tmp_path):
    """Calibrated confidence and correctness on a split, by way of --predict itself."""
    questions, out = tmp_path / "held.jsonl", tmp_path / "held.out"
    ask(questions, split)
    assert run_eval("--run", run, "--predict", questions, "--out", out) == 0
    rows = lines(out)
    out.unlink()
    confidence = np.array([row["confidence"] for row in rows])
    return confidence, np.array([r["index"] == e.answer for r, e in zip(rows, split, strict=True)])


def test_a_given_cutoff_and_what_the_calibration_split_says_of_it(
    trained, splits, tmp_path, capsys
):
    _, run = trained
    questions = ask(tmp_path / "mine.jsonl", splits.test)
    confidence, correct = held_out(run, splits.calibration, tmp_path)
    below = float(np.round(np.median(confidence), 3))
    capsys.readouterr()
    argv = ("--run", run, "--predict", questions, "--out", tmp_path / "a.jsonl")
    assert run_eval(*argv, "--abstain-below", below) == 0
    out = " ".join(capsys.readouterr().out.split())
    for row in lines(tmp_path / "a.jsonl"):
        assert row["answered"] == (row["confidence"] >= below)
    expected = expected_accuracy(below, confidence, correct)
    assert f"Cut-off {below:g}, as given." in out
    found = re.search(r"answered: ([\d.]+) %, 95 % interval ([\d.]+) % to ([\d.]+) %", out)
    told = [float(x) / 100 for x in found.groups()]
    assert told == pytest.approx([expected.accuracy, expected.low, expected.high], abs=5e-4)
    assert f"{expected.right} right of the {expected.answered} that are this confident" in out
    assert "This holds only for questions like the held-out ones" in out


def test_a_target_is_chosen_on_validation_and_measured_on_calibration(
    trained, splits, tmp_path, capsys, monkeypatch
):
    _, run = trained
    validation = held_out(run, splits.validation, tmp_path)
    calibration = held_out(run, splits.calibration, tmp_path)
    cutoff = float(np.median(calibration[0]))
    asked = []

    def choose(target, confidence, correct):
        asked.append((target, confidence, correct))
        return cutoff  # with random weights no target would be reached

    monkeypatch.setattr(answer, "cutoff_for", choose)
    questions = ask(tmp_path / "mine.jsonl", splits.test)
    argv = ("--run", run, "--predict", questions, "--out", tmp_path / "a.jsonl")
    capsys.readouterr()
    assert run_eval(*argv, "--target-accuracy", "0.75") == 0
    ((target, confidence, correct),) = asked
    assert target == 0.75
    np.testing.assert_allclose(confidence, validation[0], atol=1e-6)
    np.testing.assert_array_equal(correct, validation[1])
    out = " ".join(capsys.readouterr().out.split())
    assert f"Cut-off {cutoff:.3f}: the lowest confidence from which on at least 75.0 % of 12" in out
    expected = expected_accuracy(cutoff, *calibration)
    assert f"{expected.right} right of the {expected.answered} that are this confident" in out
    assert f"among {WORLD.calibration} calibration questions" in out


def test_a_target_that_nothing_reaches_answers_nothing(
    trained,
    splits,
    tmp_path,
    capsys,
    monkeypatch,
):
    _, run = trained
    monkeypatch.setattr(answer, "cutoff_for", lambda target, confidence, correct: None)
    questions = ask(tmp_path / "mine.jsonl", splits.test)
    argv = ("--run", run, "--predict", questions, "--out", tmp_path / "a.jsonl")
    assert run_eval(*argv, "--target-accuracy", "0.99") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No cut-off reaches an accuracy of 99.0 % on 12 validation questions" in out
    assert "0 answered, 16 left open" in out
    assert not any(row["answered"] for row in lines(tmp_path / "a.jsonl"))


def test_a_base_alone_answers_but_promises_nothing(trained, splits, tmp_path, capsys):
    base, _ = trained
    questions = ask(tmp_path / "mine.jsonl", splits.test)
    argv = ("--model.path", base, "--predict", questions, "--out", tmp_path / "a.jsonl")
    assert run_eval(*argv, "--data.prompt", "cloze") == 0
    assert "no fitted temperature" in capsys.readouterr().err
    for row in lines(tmp_path / "a.jsonl"):
        assert row["confidence"] == row["raw_confidence"]
    assert run_eval(*argv, "--abstain-below", "0.5") == 2
    error = capsys.readouterr().err
    assert "abstain_below = 0.5: must be none without a run: what the rest may be trusted" in error


def test_mistakes_leave_nothing_behind(trained, splits, tmp_path, capsys):
    _, run = trained
    questions, out = tmp_path / "mine.jsonl", tmp_path / "a.jsonl"
    argv = ("--run", run, "--predict", questions, "--out", out)
    ask(questions, splits.test, question="word " * 400)
    assert run_eval(*argv) == 2
    assert re.search(r"row \S+mine.jsonl:1: question and options take", capsys.readouterr().err)
    questions.write_text('{"question": "x", "choices": ["a", "b"]}\n{"question": "y"}')
    assert run_eval(*argv) == 2
    assert "mine.jsonl:2: has no choices" in capsys.readouterr().err
    assert not out.exists()
    ask(questions, splits.test)
    out.write_text("mine")
    assert run_eval(*argv) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))
    for more, message in (
        (("--abstain-below", "0.5", "--target-accuracy", "0.9"), "must be none beside"),
        (("--target-accuracy", "90"), "must be above 0 and at most 1"),
        (("--task", "world"), "must be none beside predict"),
    ):
        assert run_eval(*argv, *more) == 2
        assert message in capsys.readouterr().err
