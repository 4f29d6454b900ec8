"""The option scores of a split under one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from cogcalib_jax.evaluation.predictions import Predictions


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
