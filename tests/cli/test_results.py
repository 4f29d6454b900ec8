"""What an evaluation leaves in its folder."""

import json

import numpy as np
import pytest

from cogcalib_jax.cli.results import require_numbers, write_results
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.open_ended import Answers, OpenPredictions
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.inference.scored_rows import read_scored
from cogcalib_jax.report.comparison import results_text
from cogcalib_jax.report.load_run import read_predictions
from tests.inference.encoded_rows import encoded_rows

ROWS = encoded_rows([{}, {}, {}])


def options(logprobs):
    return Predictions(np.array(logprobs), np.ones((3, 2), int), np.zeros(3, int), "sum")


def test_numbers_that_are_none_are_refused_before_anything_is_written(tmp_path):
    predictions = options([[-1.0, -2.0], [np.nan, np.nan], [-np.inf, -1.0]])
    with pytest.raises(UserError, match=r"^cols on base: .* for 1 of 3 questions: 1; "):
        write_results(
            tmp_path,
            {"world": ROWS},
            lambda encoded: predictions,
            EvaluationConfig(),
            0,
            "",
            model="cols on base",
        )
    assert not any(tmp_path.iterdir())


def test_so_are_open_answers():
    def answered(logprob):
        three = np.array([-1.0, logprob, -np.inf])
        answers = Answers(("x",) * 3, ((3,),) * 3, three, np.ones(3, bool), np.ones(3))
        return OpenPredictions(answers, {}, np.full(3, -np.inf), np.ones(3, int))

    require_numbers(answered(-2.0), ROWS, "base")
    with pytest.raises(UserError, match="for 1 of 3 questions: 1; "):
        require_numbers(answered(np.nan), ROWS, "base")


def test_options_that_cannot_be_are_numbers():
    require_numbers(options([[-1.0, -2.0], [-1e30, 0.0], [-np.inf, -1.0]]), ROWS, "base")


def score(folder, rows, **more):
    """Write results of seeded predictions for `rows`; return the numbers of the task."""
    rng = np.random.default_rng(0)
    scores = rng.normal(-3, 0.5, (len(rows), 2))
    answers = np.array([e.answer for e in rows])
    predictions = Predictions(scores, np.ones_like(scores, int), answers, "sum")
    config = EvaluationConfig(resamples=100)
    write_results(folder, {"task": rows}, lambda _: predictions, config, 0, "", model="m", **more)
    return json.loads((folder / "eval.json").read_text())["task"]


def test_repeated_questions_are_counted_in_results_tables_and_rows(tmp_path):
    asked = [{"question": f" q {i % 20}", "extra": {"odd": i % 2}} for i in range(60)]
    numbers = score(tmp_path, encoded_rows(asked), by=["odd"])
    assert (numbers["n"], numbers["n_questions"]) == (60, 20)
    part = numbers["by"]["odd"]["0"]
    assert (part["n"], part["n_questions"]) == (30, 10)
    assert "60 rows ask 20 different questions" in results_text({"task": numbers})
    file = tmp_path / "predictions" / "task.jsonl"
    assert read_predictions(file).clusters.tolist() == [i % 20 for i in range(60)]
    again = read_scored(file).scores.metrics(0, EvaluationConfig(resamples=100))
    assert (again["n_questions"], again["ci95"]) == (20, numbers["ci95"])


def test_questions_that_are_all_different_have_no_count_of_their_own(tmp_path):
    numbers = score(tmp_path, encoded_rows([{"question": f"q {i}"} for i in range(30)]))
    assert numbers["n"] == 30 and "n_questions" not in numbers


def test_a_row_says_whether_its_group_was_null_or_absent(tmp_path):
    rows = [{"group": "none"}, {"extra": {"group": None}}, {}]
    numbers = score(tmp_path, encoded_rows(rows), by=["group"])
    assert set(numbers["by"]["group"]) == {"none", "(null)", "(absent)"}
    fields = read_scored(tmp_path / "predictions" / "task.jsonl").fields
    assert [row.get("group", "-") for row in fields] == ["none", None, "-"]
