"""Predictions that came from elsewhere: what is read, and what is refused with file and line."""

import json

import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.scored_rows import ConfidenceRows, OptionRows, read_scored
from cogcalib_jax.metrics import summarize, summarize_confidence

CONFIG = EvaluationConfig(resamples=100)
NAN, INFINITY = float("nan"), float("inf")
PROBS = {"option_probs": [0.7, 0.3], "answer": 1}
LOGPROBS = {"option_logprobs": [-1.0, -2.0], "answer": 0}
CONFIDENCE = {"confidence": 0.8, "correct": True}


@pytest.fixture
def read(tmp_path):
    def run(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return read_scored(path)

    return run


def test_rows_of_different_numbers_of_options(read):
    scores = read(PROBS, {"option_probs": [0.2, 0.2, 0.6], "answer": 2}).scores
    assert isinstance(scores, OptionRows)
    assert scores.metrics(0, CONFIG) == summarize(
        np.array([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]]),
        np.array([[1, 1, 0], [1, 1, 1]]),
        np.array([1, 2]),
        resamples=100,
    )


def test_logprobs_are_normalised_over_the_options_and_that_is_said(read):
    file = read(LOGPROBS, {"option_logprobs": [-500.0, -500.0, -501.0], "answer": 0})
    weights = np.exp([0.0, 0.0, -1.0])
    np.testing.assert_allclose(file.scores.probs[1], weights / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(file.scores.probs.sum(1), 1, rtol=1e-12)
    assert file.scores.probs[0, 2] == 0
    assert file.scores.vocab_probs is None
    assert file.notes == (
        "probabilities are the exponentials of option_logprobs, made to sum to 1",
    )


def test_logprobs_beside_probabilities_are_those_over_the_vocabulary(read):
    file = read({"option_probs": [0.8, 0.2], "option_logprobs": [-1.0, -3.0], "answer": 0})
    np.testing.assert_allclose(file.scores.vocab_probs, np.exp([[-1.0, -3.0]]))
    assert file.scores.metrics(0, CONFIG)["vocab"]["confidence"] == pytest.approx(np.exp(-1))
    assert file.notes == ()


def test_logprobs_of_options_that_begin_one_another_are_left_aside(read):
    row = {"option_probs": [0.6, 0.4], "option_logprobs": [-0.1, -0.4], "answer": 0}
    with pytest.raises(UserError, match="sum to 1.57"):
        read(row)
    nested = row | {"completion_ids": [[5], [5, 9]]}
    assert read(nested).scores.metrics(0, CONFIG)["vocab"] is None
    with pytest.raises(UserError, match="sum to 1.57"):
        read(row | {"completion_ids": [[5], "x"]})


def test_confidence_alone(read):
    file = read(CONFIDENCE, {"confidence": 0.3, "correct": 0})
    assert isinstance(file.scores, ConfidenceRows)
    assert file.scores.metrics(0, CONFIG) == summarize_confidence([0.8, 0.3], [1, 0], resamples=100)


def test_answers_that_may_count_from_one_are_noted(read):
    assert read(PROBS, PROBS).notes == (
        "no answer is 0, so the first option is never right: answers count from 0",
    )
    assert read(PROBS, PROBS | {"answer": 0}).notes == ()


def test_numbers_of_chosen_rows_are_those_of_a_file_with_these_alone(read):
    other = {"option_probs": [0.1, 0.9], "answer": 1}
    chosen = read(PROBS, other, PROBS).scores.metrics(0, CONFIG, np.array([0, 2]))
    assert chosen == read(PROBS, PROBS).scores.metrics(0, CONFIG)


def test_repeats_of_a_question_are_one_in_intervals(read):
    """20 questions three times each: the intervals and the floor are those of the 20."""
    rng = np.random.default_rng(0)
    rows = [
        {"confidence": round(p, 3), "correct": bool(rng.random() < p), "question": f"q {i}"}
        for i, p in enumerate(rng.uniform(0.2, 1, 20).tolist())
    ]
    once, thrice = read(*rows), read(*rows, *rows, *rows)
    assert once.notes == ()
    assert thrice.notes[0].startswith("rows.jsonl: 60 rows, 20 different questions")
    wanted, found = (file.scores.metrics(0, CONFIG) for file in (once, thrice))
    assert (found["n"], found["n_questions"], "n_questions" in wanted) == (60, 20, False)
    for name in ("accuracy", "nll", "brier", "auroc"):
        np.testing.assert_allclose(found["ci95"][name], wanted["ci95"][name], rtol=1e-9)
    assert found["ece_p_value"] == wanted["ece_p_value"]
    # A part in which no question stands twice says nothing of questions.
    assert "n_questions" not in thrice.scores.metrics(0, CONFIG, np.arange(10))


def test_other_fields_and_those_of_extra_group_rows(read):
    file = read(PROBS | {"lang": "de", "id": "x", "extra": {"subject": "law"}})
    assert file.fields == ({"lang": "de", "id": "x", "subject": "law"},)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"option_probs": [0.5, NAN], "answer": 0}, "option_probs[1] is nan, must be a finite"),
        ({"option_probs": [0.9, 0.9], "answer": 0}, "sum to 1.8, must sum to 1 (within 0.01)"),
        ({"option_probs": [1.5, -0.5], "answer": 0}, "option_probs[0] is 1.5, must be a probab"),
        ({"option_probs": [], "answer": 0}, "option_probs is [], must be a list"),
        ({"option_probs": "0.5", "answer": 0}, "option_probs is '0.5', must be a list"),
        ({"option_probs": [0.5, 0.5], "answer": 2}, "answer is 2, must be an index from 0 to 1"),
        ({"option_probs": [0.5, 0.5], "answer": -1}, "answer is -1, must be an index"),
        ({"option_probs": [0.5, 0.5], "answer": True}, "answer is True, must be an index"),
        ({"option_probs": [0.5, 0.5], "answer": "A"}, "answer is 'A', must be an index"),
        ({"option_probs": [0.5, 0.5]}, "its fields are option_probs; a row is {"),
        (CONFIDENCE, "has confidence and correct, but "),
        (LOGPROBS, "has option_logprobs and answer, but "),
        (PROBS | LOGPROBS, "has option_probs and option_logprobs and answer, but "),
        ({"question": "?"}, "its fields are question; a row is {"),
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(read, bad, message):
    with pytest.raises(UserError) as caught:
        read(PROBS, "", bad)
    assert "rows.jsonl:3: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"option_logprobs": [-1.0, -INFINITY], "answer": 0}, "is -inf, must be a finite"),
        ({"option_logprobs": [0.5, -1.0], "answer": 0}, "is 0.5, must be at most 0"),
        ({"confidence": 1.2, "correct": True}, "confidence is 1.2, must be a probability"),
        ({"confidence": 0.5, "correct": "yes"}, "correct is 'yes', must be true or false"),
        ({"confidence": None, "correct": True}, "confidence is None, must be a finite number"),
        (PROBS | {"option_logprobs": [-1.0]}, "option_probs has 2 and option_logprobs has 1"),
        (PROBS | {"option_logprobs": [-0.1, -0.1]}, "of probabilities that sum to 1.80967"),
    ],
)
def test_a_bad_first_row_is_refused(read, bad, message):
    with pytest.raises(UserError, match="rows.jsonl:1: ") as caught:
        read(bad)
    assert message in str(caught.value)


def test_a_file_without_rows_is_refused(read):
    with pytest.raises(UserError, match="has no rows; give one prediction a line"):
        read("", " ")


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (
            'option_probs,answer,topic\n"[0.25, 0.75]",1,007\n"[0.5, 0.5]",0,\n',
            [
                {"option_probs": [0.25, 0.75], "answer": 1, "topic": "007"},
                {"option_probs": [0.5, 0.5], "answer": 0},
            ],
        ),
        (
            "confidence,correct\n0.7,True\n0.25,false\n1,0\n",
            [
                {"confidence": 0.7, "correct": True},
                {"confidence": 0.25, "correct": False},
                {"confidence": 1, "correct": 0},
            ],
        ),
    ],
)
def test_a_table_holds_numbers_as_texts(tmp_path, table, rows):
    csv, jsonl = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    csv.write_text(table)
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, expected = read_scored(csv), read_scored(jsonl)
    assert found.fields == expected.fields
    for name in vars(expected.scores):
        np.testing.assert_equal(getattr(found.scores, name), getattr(expected.scores, name))


def test_a_cell_that_is_no_number_is_refused_by_its_line(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("confidence,correct\n0.7,true\n70 %,true\n")
    with pytest.raises(UserError, match="rows.csv:3: confidence is '70 %'"):
        read_scored(file)
