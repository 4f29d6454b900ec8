"""Option scores against the full logits of every option's own text, and the rows made of them."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cogcalib_jax.evaluation.config import EvaluationConfig
from cogcalib_jax.evaluation.predict import Predictor
from cogcalib_jax.evaluation.predictions import Predictions, prediction_rows, write_predictions
from tests.engine.quick import quick_compilation
from tests.engine.tiny import option_logprob, questions, tiny_decoder, tiny_model
from tests.models.small import one_device

# Three to five options; 10 rows in batches of 4, so that the last batch is filled up.
SPLITS = {"single": questions(10), "several": questions(10, tokens=3)}
TEMPERATURE = 1.7


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


@cache
def predictor(option_score="sum") -> Predictor:
    model, _ = tiny_model()
    return Predictor(model, one_device(), EvaluationConfig(batch_size=4, option_score=option_score))


@cache
def predictions(kind, temperature=1.0, option_score="sum") -> Predictions:
    return predictor(option_score)(tiny_model()[1], SPLITS[kind], temperature)


@cache
def expected(kind, temperature=1.0) -> list[list[float]]:
    decoder = tiny_decoder()
    return [
        [option_logprob(decoder, row, k, temperature) for k in range(len(row.completions))]
        for row in SPLITS[kind]
    ]


def softmax(scores):
    shifted = np.exp(np.asarray(scores) - np.max(scores))
    return shifted / shifted.sum()


@pytest.mark.parametrize("kind", SPLITS)
def test_option_scores_equal_the_full_logits_in_the_splits_order(kind):
    got = predictions(kind)
    assert got.mask.sum(-1).tolist() == [len(row.completions) for row in SPLITS[kind]]
    assert got.answers.tolist() == [row.answer for row in SPLITS[kind]]
    for i, wanted in enumerate(expected(kind)):
        k = len(wanted)
        np.testing.assert_allclose(got.logprobs[i, :k], wanted, rtol=1e-4, atol=1e-4)
        assert np.isnan(got.logprobs[i, k:]).all()
        np.testing.assert_allclose(got.probs[i, :k], softmax(wanted), atol=1e-4)
        assert (got.probs[i, k:] == 0).all() and (got.vocab_probs[i, k:] == 0).all()
        np.testing.assert_allclose(got.vocab_probs[i, :k], np.exp(wanted), atol=1e-4)


@pytest.mark.parametrize("kind", SPLITS)
def test_a_temperature_divides_the_scores_and_every_vocabulary_logit(kind):
    """Option probabilities: softmax of the untempered scores over T. Vocabulary: logits over T."""
    got = predictions(kind, TEMPERATURE)
    for i, (scores, tempered) in enumerate(
        zip(expected(kind), expected(kind, TEMPERATURE), strict=True)
    ):
        k = len(scores)
        np.testing.assert_allclose(
            got.probs[i, :k], softmax(np.divide(scores, TEMPERATURE)), atol=1e-4
        )
        np.testing.assert_allclose(got.vocab_logprobs[i, :k], tempered, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.vocab_probs[i, :k], np.exp(tempered), atol=1e-4)


def test_scores_may_be_means_over_an_options_tokens():
    got = predictions("several", 1.0, "mean")
    changed = 0
    for i, (row, scores) in enumerate(zip(SPLITS["several"], expected("several"), strict=True)):
        means = [s / len(ids) for s, ids in zip(scores, row.completion_ids, strict=True)]
        np.testing.assert_allclose(got.probs[i, : len(means)], softmax(means), atol=1e-4)
        # The vocabulary knows nothing of it.
        np.testing.assert_allclose(got.vocab_logprobs[i, : len(means)], scores, rtol=1e-4)
        changed += int(np.argmax(means) != np.argmax(scores))
    assert changed


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("option_score", ["sum", "mean"])
def test_prediction_rows_can_be_recomputed_from_themselves(kind, option_score):
    rows = prediction_rows(predictions(kind, 1.0, option_score), SPLITS[kind])
    for row, source in zip(rows, SPLITS[kind], strict=True):
        logprobs = np.array(row["option_logprobs"])
        scores = logprobs
        if option_score == "mean":
            scores = logprobs / [len(ids) for ids in row["completion_ids"]]
        np.testing.assert_allclose(row["option_probs"], softmax(scores), rtol=1e-10)
        np.testing.assert_allclose(row["nll"], -np.log(row["option_probs"][row["answer"]]))
        assert row["prediction"] == np.argmax(row["option_probs"])
        assert row["confidence"] == max(row["option_probs"])
        assert row["vocab_confidence"] == np.exp(logprobs[row["prediction"]])
        assert (row["id"], row["answer"]) == (source.id, source.answer)
        assert row["prompt"] == source.prompt and row["completions"] == list(source.completions)
        assert row["prompt_ids"] == list(source.prompt_ids)
        assert list(map(tuple, row["completion_ids"])) == list(source.completion_ids)


def test_at_a_temperature_rows_hold_tempered_vocabulary_scores():
    rows = prediction_rows(predictions("single", TEMPERATURE), SPLITS["single"])
    for row, wanted in zip(rows, expected("single", TEMPERATURE), strict=True):
        np.testing.assert_allclose(row["option_logprobs"], wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(row["option_probs"], softmax(wanted), atol=1e-4)
        assert row["vocab_confidence"] == np.exp(max(row["option_logprobs"]))


def test_an_impossible_answer_keeps_its_row_finite():
    certain = Predictions(
        logprobs=np.array([[0.0, -2000.0]]),
        tokens=np.ones((1, 2), int),
        answers=np.array([1]),
        option_score="sum",
    )
    (question,) = questions(1, options=(2,))
    (row,) = prediction_rows(certain, [replace(question, answer=1)])
    assert row["confidence"] == 1.0 and np.isfinite(row["nll"]) and row["nll"] > 700


def test_predictions_are_written_whole(tmp_path):
    path = tmp_path / "predictions" / "task.jsonl"
    write_predictions(path, predictions("single"), SPLITS["single"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == prediction_rows(predictions("single"), SPLITS["single"])
    assert [p.name for p in path.parent.iterdir()] == ["task.jsonl"]
