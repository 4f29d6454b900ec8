"""What an evaluation leaves in its folder."""

import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.config import EvaluationConfig
from cogcalib_jax.evaluation.open_ended import Answers, OpenPredictions
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.runs.results import require_numbers, write_results
from tests.evaluation.encoded_rows import encoded_rows

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
