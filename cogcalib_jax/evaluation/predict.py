"""Option scores of a split: what a model believes about every option of every question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets, option_batches
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.data.tokenization import single_token_options
from cogcalib_jax.engine.forward import completion_logprob, option_logprobs
from cogcalib_jax.engine.passes import SplitPass
from cogcalib_jax.engine.step import SplitModel
from cogcalib_jax.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class Predictions:
    """Scores of `n` questions with up to `k` options; absent options are NaN."""

    logprobs: np.ndarray
    """[n, k] float64: log-probability of each completion, summed over its tokens, nats"""
    tokens: np.ndarray
    """[n, k] int: tokens of each completion, 0 where there is no option"""
    answers: np.ndarray
    """[n] int: index of the right option"""
    normalisation: str
    temperature: float = 1.0
    """divides the scores before the softmax over the options (temperature scaling)"""
    tempered_logprobs: np.ndarray | None = None
    """[n, k]: `logprobs` with the vocabulary logits divided by the temperature; None at 1"""

    @property
    def mask(self) -> np.ndarray:
        """[n, k] bool: which options exist."""
        return self.tokens > 0

    @property
    def scores(self) -> np.ndarray:
        """[n, k]: what the softmax over the options is taken of; absent options -inf."""
        scores = self.logprobs
        if self.normalisation == "token_mean":
            scores = scores / np.maximum(self.tokens, 1)
        return np.where(self.mask, scores / self.temperature, -np.inf)

    @property
    def probs(self) -> np.ndarray:
        """[n, k]: option probabilities, 0 where there is no option."""
        scores = self.scores
        shifted = np.exp(scores - scores.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    @property
    def vocab_probs(self) -> np.ndarray:
        """[n, k]: probability of each completion over the whole vocabulary."""
        return np.where(self.mask, np.exp(np.nan_to_num(self.vocab_logprobs)), 0.0)

    @property
    def vocab_logprobs(self) -> np.ndarray:
        """[n, k]: what a server that applies the temperature to its logits would report."""
        return self.logprobs if self.tempered_logprobs is None else self.tempered_logprobs


class Predictor:
    """Scores splits with one model; compiled once per shape whatever the LoRA parameters are."""

    def __init__(self, model: SplitModel, mesh: Mesh, config: EvaluationConfig):
        self._config = config
        self._single = SplitPass(model, mesh, option_logprobs)
        self._whole = SplitPass(model, mesh, completion_logprob)

    def __call__(
        self, lora: nnx.State, encoded: Sequence[Encoded], temperature: float = 1.0
    ) -> Predictions:
        """Predictions of `encoded`; a temperature costs a second pass, for the vocabulary."""
        options = max(len(e.completions) for e in encoded)
        tokens = np.zeros((len(encoded), options), int)
        for i, e in enumerate(encoded):
            tokens[i, : len(e.completion_ids)] = [len(ids) for ids in e.completion_ids]
        return Predictions(
            logprobs=self._logprobs(lora, encoded, tokens, 1.0),
            tokens=tokens,
            answers=np.array([e.answer for e in encoded]),
            normalisation=self._config.normalisation,
            temperature=temperature,
            tempered_logprobs=(
                None if temperature == 1.0 else self._logprobs(lora, encoded, tokens, temperature)
            ),
        )

    def _logprobs(
        self, lora: nnx.State, encoded: Sequence[Encoded], tokens: np.ndarray, temperature: float
    ) -> np.ndarray:
        logprobs = np.full(tokens.shape, np.nan)
        size, buckets = self._config.batch_size, _buckets(encoded)
        if single_token_options(encoded):
            batches = eval_batches(encoded, size, buckets)
            rows, values = self._single(lora, batches, temperature)
            logprobs[rows, : values.shape[1]] = values
        else:
            chosen: list[np.ndarray] = []
            batches = _remember(option_batches(encoded, size, buckets), chosen)
            rows, values = self._whole(lora, batches, temperature)
            logprobs[rows, np.concatenate(chosen)] = values
        return np.where(tokens > 0, logprobs, np.nan)


def _buckets(encoded: Sequence[Encoded]) -> tuple[int, ...]:
    """Padded lengths that hold every option of the split."""
    return length_buckets(EncodedSplit.of(encoded).lengths)


def _remember(
    batches: Iterator[tuple[Batch, np.ndarray]], chosen: list[np.ndarray]
) -> Iterator[Batch]:
    for batch, option in batches:
        chosen.append(option[batch.weight > 0])
        yield batch


def prediction_rows(predictions: Predictions, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
    """One JSON object a question; docs/architecture.md lists the fields.

    `prompt` and `completions` are the exact text, so anyone can recompute a row elsewhere.
    """
    rows = []
    for i, e in enumerate(encoded):
        k = len(e.completions)
        logprobs, probs = predictions.vocab_logprobs[i, :k], predictions.probs[i, :k]
        best = int(np.argmax(predictions.scores[i, :k]))
        rows.append(
            {
                "id": e.id,
                "prompt": e.prompt,
                "completions": list(e.completions),
                "prompt_ids": list(e.prompt_ids),
                "completion_ids": [list(ids) for ids in e.completion_ids],
                "answer": e.answer,
                "prediction": best,
                "option_logprobs": logprobs.tolist(),
                "option_probs": probs.tolist(),
                "nll": float(-np.log(max(probs[e.answer], np.finfo(float).tiny))),
                "confidence": float(probs[best]),
                "vocab_confidence": float(np.exp(logprobs[best])),
                "group": e.example.group,
                "extra": e.example.extra,
            }
        )
    return rows


def write_predictions(path: Path, predictions: Predictions, encoded: Sequence[Encoded]) -> None:
    """Write `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in prediction_rows(predictions, encoded):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)
