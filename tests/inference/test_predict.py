"""Option scores against the full logits of every option's own text, and the rows made of them."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.predict import Predictor, prior_scores
from cogcalib_jax.inference.predictions import Predictions, prediction_rows, write_predictions
from tests.inference.tiny import option_logprob, questions, tiny_decoder, tiny_model
from tests.models.small import one_device

# Three to five options; 10 rows in batches of 4, so that the last batch is filled up.
SPLITS = {"single": questions(10), "several": questions(10, tokens=3)}
PREFIX = (1, 9, 4)
for split in SPLITS.values():
    split.pmi_prefix_ids = PREFIX
TEMPERATURE = 1.7


@cache
def predictor() -> Predictor:
    model, _ = tiny_model()
    return Predictor(model, one_device(), EvaluationConfig(batch_size=4), "sum")


@cache
def predictions(kind, temperature=1.0, option_score="sum") -> Predictions:
    return predictor().scored_by(option_score)(tiny_model()[1], SPLITS[kind], temperature)


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


def scored_by(rule, row, scores, decoder) -> list[float]:
    """Each option's score by `rule`, from its own log-probability; nothing of the package."""
    ids = row.completion_ids
    if rule == "mean":
        return [s / len(one) for s, one in zip(scores, ids, strict=True)]
    if rule == "chars":
        return [s / len(text.strip()) for s, text in zip(scores, row.completions, strict=True)]
    if rule == "pmi":
        alone = replace(row, prompt_ids=PREFIX)
        return [s - option_logprob(decoder, alone, k) for k, s in enumerate(scores)]
    return scores


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("rule", ["mean", "sum", "chars", "pmi"])
def test_rules_equal_their_definition_over_the_full_logits(kind, rule):
    got, decoder = predictions(kind, 1.0, rule), tiny_decoder()
    changed = 0
    for i, (row, scores) in enumerate(zip(SPLITS[kind], expected(kind), strict=True)):
        wanted = scored_by(rule, row, scores, decoder)
        k = len(wanted)
        np.testing.assert_allclose(got.option_scores[i, :k], wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.probs[i, :k], softmax(wanted), atol=1e-4)
        assert (got.option_scores[i, k:] == -np.inf).all()
        # The vocabulary knows nothing of rules.
        np.testing.assert_allclose(got.vocab_logprobs[i, :k], scores, rtol=1e-4)
        changed += int(np.argmax(wanted) != np.argmax(scores))
    assert changed or kind == "single" or rule == "sum"


def test_the_usual_rule_is_the_mean_per_token():
    model, lora = tiny_model()
    usual = Predictor(model, one_device(), EvaluationConfig(batch_size=4))(lora, SPLITS["several"])
    assert usual.option_score == "mean"
    np.testing.assert_array_equal(usual.probs, predictions("several", 1.0, "mean").probs)


def test_options_that_questions_share_are_scored_once_without_them():
    asked = []

    def score(rows):
        asked.extend(rows)
        return np.array([[float(sum(ids)) for ids in row.completion_ids] for row in rows])

    rows = EncodedSplit([replace(row, completion_ids=((5, 6), (7,))) for row in SPLITS["single"]])
    rows.pmi_prefix_ids = PREFIX
    assert prior_scores(rows, score).tolist() == [[11.0, 7.0]] * len(rows)
    assert [row.prompt_ids for row in asked] == [PREFIX]


def test_no_prior_without_a_prefix():
    with pytest.raises(ValueError, match="pmi"):
        prior_scores(questions(2), lambda rows: np.zeros((len(rows), 4)))


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("rule", ["mean", "sum", "chars", "pmi"])
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_prediction_rows_can_be_recomputed_from_themselves(kind, rule, temperature):
    got = predictions(kind, temperature, rule)
    rows = prediction_rows(got, SPLITS[kind])
    untempered = expected(kind)
    for i, (row, source) in enumerate(zip(rows, SPLITS[kind], strict=True)):
        logprobs, scores = np.array(row["option_logprobs"]), np.array(row["option_scores"])
        np.testing.assert_allclose(logprobs, untempered[i], rtol=1e-4, atol=1e-4)
        assert row["option_tokens"] == [len(ids) for ids in row["completion_ids"]]
        if rule == "mean":
            np.testing.assert_allclose(scores, logprobs / row["option_tokens"])
        if rule == "sum":
            np.testing.assert_array_equal(scores, logprobs)
        assert (row["scoring"], row["temperature"]) == (rule, temperature)
        np.testing.assert_allclose(row["option_probs"], softmax(scores / temperature), rtol=1e-10)
        np.testing.assert_allclose(row["nll"], -np.log(row["option_probs"][row["answer"]]))
        assert row["prediction"] == np.argmax(row["option_probs"])
        assert row["confidence"] == max(row["option_probs"])
        assert row["vocab_confidence"] == np.exp(logprobs[row["prediction"]])
        assert (row["id"], row["answer"]) == (source.id, source.answer)
        assert row["question"] == source.example.question
        assert row["prompt"] == source.prompt and row["completions"] == list(source.completions)
        assert row["prompt_ids"] == list(source.prompt_ids)
        assert list(map(tuple, row["completion_ids"])) == list(source.completion_ids)


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
