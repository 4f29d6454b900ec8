"""What eval.json says beside its metrics, and how it is written."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from cogcalib_jax.errors import FieldError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.evaluate import data_hash, provenance, task_metrics, write_json
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics import summarize
from tests.inference.test_posthoc import calibration
from tests.inference.tiny import questions


def test_metrics_of_a_task_are_those_of_its_probabilities():
    config = EvaluationConfig(bins=7, resamples=100)
    predictions = calibration(n=60)
    metrics = task_metrics(predictions, config, seed=3, exclusive=True)
    wanted = summarize(
        predictions.probs,
        predictions.mask,
        predictions.answers,
        predictions.vocab_probs,
        bins=7,
        resamples=100,
        seed=3,
    )
    of_right = predictions.logprobs[np.arange(60), predictions.answers]
    assert metrics == wanted | {
        "gold_nll": -of_right.mean(),
        "option_score": "sum",
        "single_token_options": True,
    }
    tempered = replace(predictions, temperature=3.0)
    assert task_metrics(tempered, config, 3, exclusive=True)["temperature"] == 3.0
    assert task_metrics(tempered, config, 3, exclusive=True)["nll"] < metrics["nll"]


def test_nothing_is_said_of_the_vocabulary_where_options_do_not_exclude_one_another():
    # "cat", and "cat food": what begins with the second begins with the first.
    logprobs = np.log([[0.9, 0.72], [0.3, 0.2]])
    predictions = Predictions(logprobs, np.array([[1, 2], [1, 2]]), np.array([0, 1]), "sum")
    metrics = task_metrics(predictions, EvaluationConfig(resamples=100), 0, exclusive=False)
    assert metrics["vocab"] is None and metrics["n"] == 2


def test_the_data_hash_sees_every_change_and_only_those():
    rows = questions(5)
    changed = [
        replace(rows[0], prompt="x"),
        replace(rows[0], answer=1 - min(1, rows[0].answer)),
        replace(rows[0], completions=("x", *rows[0].completions[1:])),
        replace(rows[0], id="x"),
    ]
    hashes = {data_hash([one, *rows[1:]]) for one in changed} | {data_hash(rows[::-1])}
    assert len(hashes | {data_hash(rows)}) == 6
    assert data_hash(questions(5)) == data_hash(rows)


def test_provenance_names_versions_and_devices_but_no_time_or_place():
    made = provenance(3, {"task": "abc"})
    assert made == provenance(3, {"task": "abc"})
    assert made["versions"]["jax"] == jax.__version__ and made["devices"] == 8
    assert made["seed"] == 3 and made["data_hash"] == {"task": "abc"}
    assert "/" not in json.dumps(made)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "eval.json"
    write_json(path, {"a": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": np.nan})
    assert json.loads(path.read_text()) == {"a": 1.0}
    assert [p.name for p in path.parent.iterdir()] == ["eval.json"]


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("bins", 0), ("resamples", 99)])
def test_impossible_settings_are_refused_by_field(field, value):
    with pytest.raises(FieldError, match=field):
        EvaluationConfig(**{field: value})
