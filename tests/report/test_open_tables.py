"""Tables of open questions, and the scores that differences between methods are taken of."""

import json

import numpy as np
import pytest

from cogcalib_jax.metrics import summarize_confidence
from cogcalib_jax.report.evaluations import results_text
from cogcalib_jax.report.load_run import read_predictions
from cogcalib_jax.report.open_tables import CONFIDENCES, confidence_table
from cogcalib_jax.report.tables import comparison_table, vocabulary_table

RIGHT = np.arange(40) % 3 == 0


def metrics(seed=0, names=tuple(CONFIDENCES)):
    rng = np.random.default_rng(seed)
    each = {n: summarize_confidence(rng.random(40), RIGHT, resamples=100) for n in names}
    return {**each["sequence"], "exact_match": RIGHT.mean(), "f1": 0.5, "vocab": None} | {
        "confidences": each
    }


def test_exact_match_and_f1_stand_where_accuracy_stood():
    table = comparison_table([{"sft": metrics(), "cols": metrics(1)}])
    assert table.header[:3] == ("method", "exact match", "F1")
    assert "ECE over\nvocabulary" not in table.header
    assert table.rows[0][1:3] == ("35.0 %", "50.0 %")
    assert "(" in table.rows[0][table.header.index("ECE\n(floor: mean / 95 %)")]
    assert "scores over the options" not in table.note
    assert vocabulary_table({"sft": metrics()}) is None


def test_tasks_of_both_kinds_share_a_table_that_says_so():
    closed = summarize_confidence(np.full(40, 0.5), RIGHT, resamples=100)
    text = results_text({"custom": metrics(), "boolq": closed | {"ece_classwise": 0.1}})
    assert "Of open questions: exact match" in text and "custom: P(True)" in text
    assert "boolq: P(True)" not in text
    alone = results_text({"boolq": closed | {"ece_classwise": 0.1}})
    assert "open questions" not in alone and "P(True)" not in alone


def test_every_confidence_of_every_method_has_a_line():
    table = confidence_table({"sft": metrics(), "cols": metrics(1, ("sequence",))})
    assert len(table.rows) == len(CONFIDENCES) + 1
    assert table.rows[0][0] == "SFT: probability"
    assert table.rows[-1][0].endswith(": probability")
    noted = metrics(names=("sequence",)) | {"notes": ["no confidence platt: all wrong"]}
    assert confidence_table({"sft": noted}).note.endswith("SFT: no confidence platt: all wrong.")


def test_questions_with_options_have_no_such_table():
    with_options = {key: value for key, value in metrics().items() if key != "confidences"}
    assert confidence_table({"sft": with_options}) is None


def test_a_file_of_answers_is_read_as_binary_forecasts(tmp_path):
    confidence = np.random.default_rng(0).random(40)
    rows = [
        {"id": f"q{i}", "exact_match": bool(right), "confidence": float(c)}
        for i, (right, c) in enumerate(zip(RIGHT, confidence, strict=True))
    ]
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    got = read_predictions(file)
    wanted = summarize_confidence(confidence, RIGHT, resamples=100)
    assert got.correct.mean() == pytest.approx(wanted["accuracy"])
    assert got.nll.mean() == pytest.approx(wanted["nll"])
    assert got.brier.mean() == pytest.approx(wanted["brier"])
