"""Probabilities of every option of every question, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cogcalib_jax.calibration import CALIBRATORS, Calibrator
from cogcalib_jax.calibration.scaling import log_softmax, softmax
from cogcalib_jax.data.example import HASH, Encoded, EncodedSplit, Example, question_hash
from cogcalib_jax.distributed import main_only
from cogcalib_jax.files import whole_file
from cogcalib_jax.inference.config import OptionScore, score_options
from cogcalib_jax.models.config import Quantise

UNKNOWN = -1
"""in the place of an answer that nobody knows"""


@dataclass(frozen=True)
class Averaged:
    """The average over the options, beside that over the vocabulary."""

    over: Literal["mc_passes", "members", "posterior_samples", "noise_draws"]
    """what was averaged over, and the name of `count` in eval.json"""
    count: int
    log_option_probs: np.ndarray
    """[n, k] float64: log of the mean probability over the options, nats; absent ones -inf"""


@dataclass(frozen=True)
class Predictions:
    """Scores of `n` questions with up to `k` options; absent options are NaN."""

    logprobs: np.ndarray
    """[n, k] float64: log-probability of each completion, summed over its tokens, nats"""
    tokens: np.ndarray
    """[n, k] int: tokens of each completion, 0 where there is no option"""
    answers: np.ndarray
    """[n] int: index of the right option, -1 where it is not known"""
    option_score: OptionScore
    """the rule that turns log-probabilities into scores"""
    temperature: float = 1.0
    """divides the scores before the softmax over the options (temperature scaling)"""
    tempered_logprobs: np.ndarray | None = None
    """[n, k]: `logprobs` with the vocabulary logits divided by the temperature; None at 1"""
    averaged: Averaged | None = None
    """of several models or passes, where `logprobs` are those of their mean probability"""
    characters: np.ndarray | None = None
    """[n, k] int: Unicode code points of each completion without outer white space"""
    priors: np.ndarray | None = None
    """[n, k] float64: `logprobs` of the completions after `pmi_prefix_ids` alone; only for pmi"""
    calibrator: Calibrator | None = None
    """maps `option_scores` to `probs`, in the place of the softmax at a temperature"""
    start_scores: np.ndarray | None = None
    """[n, k] float64: `option_scores` of the start, for a calibrator that mixes it in"""
    encoded: EncodedSplit | None = None
    """the questions, where they are known"""
    quantise: Quantise = "none"
    """the form in which the model's base was held"""

    def __post_init__(self) -> None:
        if self.calibrator is not None and self.temperature != 1.0:
            raise ValueError(
                f"temperature is {self.temperature:g}; expected 1 beside a calibrator, which takes"
                " its place"
            )

    @property
    def mask(self) -> np.ndarray:
        """[n, k] bool: which options exist."""
        return self.tokens > 0

    @property
    def option_scores(self) -> np.ndarray:
        """[n, k]: scores by the rule, or the log of the mean probability if `averaged`; no
        temperature divides them. Absent options are -inf."""
        if self.averaged is not None:
            scores = self.averaged.log_option_probs
        else:
            scores = score_options(
                self.option_score, self.logprobs, self.tokens, self.characters, self.priors
            )
        return np.where(self.mask, scores, -np.inf)

    @property
    def scoring(self) -> str:
        """The origin of `option_scores`, for rows of predictions."""
        if self.averaged is None:
            return self.option_score
        over = self.averaged.over.replace("_", " ")
        return f"{self.option_score}; log of the mean probability of {self.averaged.count} {over}"

    @property
    def scores(self) -> np.ndarray:
        """[n, k]: `option_scores` divided by the temperature, of which the softmax is taken."""
        return self.option_scores / self.temperature

    @property
    def probs(self) -> np.ndarray:
        """[n, k]: option probabilities, 0 where there is no option."""
        if self.calibrator is not None:
            return self.calibrator.transform(
                self.option_scores, mask=self.mask, start_scores=self.start_scores
            )
        return softmax(self.scores)

    @property
    def log_option_probs(self) -> np.ndarray:
        """[n, k]: log of `probs`, also where those are too small for a float; absent ones -inf.

        Of a calibrator's probabilities none is taken for less than the smallest float."""
        if self.calibrator is not None:
            smallest = np.finfo(np.float64).tiny
            return np.where(self.mask, np.log(np.maximum(self.probs, smallest)), -np.inf)
        return log_softmax(self.scores)

    @property
    def labels(self) -> np.ndarray:
        """[n] int: index of the right option."""
        return self.answers

    @property
    def predicted(self) -> np.ndarray:
        """[n] int: index of the most probable option, the first of several."""
        # Without a calibrator by the scores, which differ also where probabilities round to one.
        ranked = self.option_scores if self.calibrator is None else self.probs
        return np.where(self.mask, ranked, -np.inf).argmax(-1)

    @property
    def confidence(self) -> np.ndarray:
        """[n] float64: probability of the predicted option."""
        return self.probs[np.arange(len(self.answers)), self.predicted]

    @property
    def correct(self) -> np.ndarray:
        """[n] float64: 1 where the predicted option is the right one, else 0.

        Raises ValueError for questions whose answers are not known.
        """
        self._require_answers()
        return (self.predicted == self.answers).astype(np.float64)

    def _require_answers(self) -> None:
        if (self.answers == UNKNOWN).any():
            raise ValueError("answers are not known; expected labelled questions, as a Task has")

    @property
    def gold_nll(self) -> np.ndarray:
        """[n] float64: NLL of the right option over the vocabulary, nats per token; answers must be
        known. No temperature divides the logits."""
        self._require_answers()
        rows = np.arange(len(self.answers))
        return -self.logprobs[rows, self.answers] / self.tokens[rows, self.answers]

    @property
    def vocab_probs(self) -> np.ndarray:
        """[n, k]: probability of each completion over the whole vocabulary."""
        return np.where(self.mask, np.exp(np.nan_to_num(self.vocab_logprobs)), 0.0)

    @property
    def vocab_logprobs(self) -> np.ndarray:
        """[n, k]: what a server that applies the temperature to its logits would report."""
        return self.logprobs if self.tempered_logprobs is None else self.tempered_logprobs

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one JSON-able object a question, as in files of predictions (ValueError: the
        questions are not known)."""
        if self.encoded is None:
            raise ValueError("encoded is None; expected predictions that a Model made")
        return prediction_rows(self, self.encoded)

    def to_pandas(self) -> Any:
        """Return a DataFrame with one row a question; pandas must be installed."""
        import pandas

        return pandas.DataFrame(self.to_rows())


def prediction_rows(predictions: Predictions, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
    """Return one JSON object a question; docs/architecture.md lists the fields.

    `prompt` and `completions` are the exact text, so anyone can recompute a row elsewhere.
    """
    rows = []
    scores, probs, predicted = predictions.option_scores, predictions.probs, predictions.predicted
    calibrator = {}
    if predictions.calibrator is not None:
        calibrator = {"calibrator": CALIBRATORS.spec(predictions.calibrator)}
    for i, e in enumerate(encoded):
        k = len(e.completions)
        logprobs, option_probs = predictions.logprobs[i, :k], probs[i, :k]
        best = int(predicted[i])
        rows.append(
            {
                "id": e.id,
                "question": e.example.question,
                "prompt": e.prompt,
                "completions": list(e.completions),
                "prompt_ids": list(e.prompt_ids),
                "completion_ids": [list(ids) for ids in e.completion_ids],
                "answer": e.answer,
                "prediction": best,
                "option_logprobs": logprobs.tolist(),
                "option_tokens": predictions.tokens[i, :k].tolist(),
                "option_scores": scores[i, :k].tolist(),
                "scoring": predictions.scoring,
                "temperature": predictions.temperature,
                **calibrator,
                **held_as(predictions.quantise),
                "option_probs": option_probs.tolist(),
                "nll": float(-np.log(max(option_probs[e.answer], np.finfo(float).tiny))),
                "confidence": float(option_probs[best]),
                "vocab_confidence": float(np.exp(logprobs[best])),
                **row_identity(e.example),
            }
        )
    return rows


def held_as(quantise: Quantise) -> dict[str, str]:
    """Return the entry of a prediction row about a quantised base; {} for any other base."""
    return {} if quantise == "none" else {"quantise": quantise}


def row_identity(example: Example) -> dict[str, Any]:
    """Return the entries of a prediction row about its question, besides the texts.

    `group` is absent for a row without one and null for a row in which it was null.
    """
    group = {} if example.group is None else {"group": example.group}
    null = {"group": None} if "group" in example.extra else {}
    return {HASH: question_hash(example), **group, **null, "extra": example.extra}


def write_predictions(path: Path, predictions: Predictions, encoded: Sequence[Encoded]) -> None:
    """Write `path` whole or not at all."""
    write_rows(path, prediction_rows(predictions, encoded))


@main_only
def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, `path` whole or not at all."""
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
