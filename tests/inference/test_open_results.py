"""Numbers and rows of a task of open questions, from made-up answers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cogcalib_jax.errors import FieldError
from cogcalib_jax.inference.config import EvaluationConfig, OpenConfig
from cogcalib_jax.inference.evaluate import (
    Calibrators,
    calibrated,
    fit_calibrators,
    open_metrics,
    open_prediction_rows,
    write_open_predictions,
)
from cogcalib_jax.inference.open_ended import Answers, OpenPredictions
from cogcalib_jax.inference.scored_rows import read_scored
from cogcalib_jax.metrics import summarize_confidence
from tests.inference.open_rows import encoded, open_examples

CONFIG = EvaluationConfig(bins=7, resamples=100)
N = 60


def predictions(n=N, seed=0) -> OpenPredictions:
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(3, n)
    right = rng.random(n) < np.exp(0.3 * logprobs)
    f1 = np.where(right, 1.0, rng.choice([0, 0.5], n))
    texts = tuple(f"answer {i}" for i in range(n))
    answers = Answers(texts, ((7, 16),) * n, logprobs, right, f1)
    confidences = {
        "sequence": np.exp(logprobs),
        "length_normalised": np.exp(logprobs / 2),
        "agreement": rng.integers(0, 11, n) / 10,
        "p_true": rng.random(n),
    }
    return OpenPredictions(answers, confidences, logprobs - 1, np.full(n, 3))


def test_numbers_are_those_of_exact_match_and_of_each_confidence():
    made = predictions()
    metrics = open_metrics(made, CONFIG, seed=3)
    right = made.answers.exact_match
    assert metrics["exact_match"] == metrics["accuracy"] == right.mean()
    assert metrics["f1"] == pytest.approx(made.answers.f1.mean())
    assert metrics["reference_nll"] == pytest.approx(-made.reference_logprobs.mean())
    assert set(metrics["confidences"]) == set(made.confidences)
    for name, values in made.confidences.items():
        wanted = summarize_confidence(values, right, bins=7, resamples=100, seed=3)
        assert metrics["confidences"][name] == wanted
    sequence = metrics["confidences"]["sequence"]
    for name in ("ece", "ece_noise_floor", "brier", "nll", "auroc", "confidence", "n"):
        assert metrics[name] == sequence[name]
    low, high = metrics["ci95"]["f1"]
    assert low < metrics["f1"] < high
    assert metrics["ci95"]["exact_match"] == metrics["ci95"]["accuracy"]
    json.dumps(metrics, allow_nan=False)


def test_calibrated_confidences_stand_beside_the_raw_ones_and_are_better():
    calibrators = fit_calibrators(predictions(400, seed=1).answers)
    assert calibrators.notes == () and list(calibrators.maps) == ["platt", "isotonic"]
    made = predictions(400, seed=2)
    metrics = open_metrics(calibrated(made, calibrators), CONFIG, 0)
    assert list(metrics["confidences"]) == [*made.confidences, "platt", "isotonic"]
    for name in calibrators.maps:
        numbers = metrics["confidences"][name]
        assert numbers["ece"] < metrics["ece"] / 2
        # Non-decreasing maps: the order of answers is that of their probabilities, but for ties.
        assert numbers["auroc"] == pytest.approx(metrics["auroc"], abs=0.02)
    assert metrics["brier"] == open_metrics(made, CONFIG, 0)["brier"]


def test_calibration_answers_of_one_kind_leave_the_maps_out_and_say_so():
    wrong = predictions().answers._replace(exact_match=np.zeros(N, bool))
    calibrators = fit_calibrators(wrong)
    assert calibrators.maps == {} and len(calibrators.notes) == 2
    for name, note in zip(("platt", "isotonic"), calibrators.notes, strict=True):
        assert note.startswith(f"no confidence {name}: all 60 calibration questions are answered")
    metrics = open_metrics(calibrated(predictions(), calibrators), CONFIG, 0)
    assert metrics["notes"] == list(calibrators.notes)
    assert "platt" not in metrics["confidences"]


def test_maps_survive_their_file():
    calibrators = fit_calibrators(predictions(100).answers)
    again = Calibrators.from_json(json.loads(json.dumps(calibrators.to_json())))
    logprobs = -np.linspace(0, 9, 20)
    for name, one in calibrators.maps.items():
        np.testing.assert_array_equal(again.maps[name](logprobs), one(logprobs))


def test_a_missing_confidence_is_null_in_rows_and_left_out_of_numbers():
    made = predictions()
    made.confidences["p_true"][5] = np.nan
    assert open_metrics(made, CONFIG, 0)["confidences"]["p_true"]["n"] == N - 1
    rows = open_prediction_rows(made, encoded(open_examples(N)))
    assert rows[5]["confidences"]["p_true"] is None
    made.confidences["p_true"][:] = np.nan
    assert "p_true" not in open_metrics(made, CONFIG, 0)["confidences"]


def test_rows_say_all_that_was_asked_said_and_believed(tmp_path):
    made, questions = predictions(), encoded(open_examples(N))
    path = tmp_path / "predictions" / "task.jsonl"
    write_open_predictions(path, made, questions)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == N
    for i, (row, source) in enumerate(zip(rows, questions, strict=True)):
        assert (row["id"], row["prompt"]) == (source.id, source.prompt)
        assert row["prompt_ids"] == list(source.prompt_ids)
        assert row["answers"] == list(source.example.aliases)
        assert (row["text"], row["tokens"]) == (f"answer {i}", [7, 16])
        assert row["exact_match"] is row["correct"] is bool(made.answers.exact_match[i])
        assert row["f1"] == made.answers.f1[i]
        assert row["confidence"] == row["confidences"]["sequence"]
        assert row["reference"] == source.completions[0]
        assert row["reference_ids"] == list(source.completion_ids[0])
        assert row["reference_nll"] == -made.reference_logprobs[i]


def test_a_predictions_file_can_be_scored_again_without_a_model(tmp_path):
    made = predictions()
    write_open_predictions(tmp_path / "task.jsonl", made, encoded(open_examples(N)))
    again = read_scored(tmp_path / "task.jsonl").scores.metrics(3, CONFIG)
    assert again == open_metrics(made, CONFIG, 3)["confidences"]["sequence"]


@pytest.mark.parametrize(
    ("field", "value"), [("max_new_tokens", 0), ("samples", -1), ("temperature", 0.0)]
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(FieldError, match=field):
        OpenConfig(**{field: value})
    assert replace(OpenConfig(), samples=0).samples == 0
