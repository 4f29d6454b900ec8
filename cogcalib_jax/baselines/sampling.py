"""Predictions of several models as one: MC-dropout, and deep ensembles of adapters on one base.

Probabilities are averaged, never logits (Gal and Ghahramani 2016; Lakshminarayanan et al. 2017):
those over the options, and those over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets, option_batches
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, EvaluationConfig, OptionScore
from cogcalib_jax.inference.forward import completion_logprob, option_logprobs, row_by_row
from cogcalib_jax.inference.predict import (
    SplitPass,
    option_tokens,
    packed_logprobs,
    packed_scores,
    predictions_of,
    prior_scores,
    watched,
)
from cogcalib_jax.inference.predictions import Averaged, Predictions
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import batch_parts

Over = Literal["mc_passes", "members", "posterior_samples", "noise_draws"]
# Dropout while scoring draws from another stream of a seed than training, whose phases are 0 and 1.
STREAM = 2
# Draws of whole adapters from a posterior.
DRAWS = 6


def average(predictions: Sequence[Predictions], over: Over) -> Predictions:
    """The mean of predictions of the same questions, as probabilities, in log space throughout."""
    first = predictions[0]
    return replace(
        first,
        logprobs=_log_mean([p.vocab_logprobs for p in predictions]),
        temperature=1.0,
        tempered_logprobs=None,
        averaged=Averaged(
            over, len(predictions), _log_mean([p.log_option_probs for p in predictions])
        ),
    )


def _log_mean(logs: Sequence[np.ndarray]) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # absent options are NaN, and stay so
        return np.logaddexp.reduce(np.stack(logs)) - np.log(len(logs))


class DropoutPredictor:
    """MC-dropout: passes with LoRA's dropout on, averaged.

    A mask is drawn from the seed, the pass and the question's number in its split, so a prediction
    depends neither on the batch size nor on padding.
    """

    def __init__(
        self,
        model: FrozenModel,
        mesh: Mesh,
        config: EvaluationConfig,
        option_score: OptionScore = DEFAULT_OPTION_SCORE,
        over: Over = "mc_passes",
    ):
        """model: made with the dropout that is wanted (`with_dropout`). option_score: not pmi,
        whose two parts would be scored under other dropout masks. over: what passes are called."""
        if option_score == "pmi":
            raise ValueError("option_score = pmi: has no prior under a dropout mask")
        self._config = config
        self._option_score = option_score
        self._over = over
        self._single = SplitPass(model, mesh, row_by_row(option_logprobs))
        self._whole = SplitPass(model, mesh, row_by_row(completion_logprob))

    def __call__(self, lora: nnx.State, encoded: Sequence[Encoded], seed: int) -> Predictions:
        key = jax.random.fold_in(jax.random.key(seed), STREAM)
        passes = range(self._config.mc_passes)
        return average(
            [self._one(lora, encoded, jax.random.fold_in(key, number)) for number in passes],
            self._over,
        )

    def _one(self, lora: nnx.State, encoded: Sequence[Encoded], key: jax.Array) -> Predictions:
        # One question or option a row: in a packed row masks would depend on the others beside it.
        split, size = EncodedSplit.of(encoded), self._config.batch_size
        buckets = length_buckets(split.lengths)
        exists = option_tokens(split) > 0
        scores = np.full(exists.shape, np.nan)
        if split.single_token_options:
            batches = watched(eval_batches(split, size, buckets), len(split), len(split))
            rows, values = self._single(lora, batches, 1.0, key)
            scores[rows] = values
        else:
            options: list[np.ndarray] = []

            def made() -> Iterator[Batch]:
                for batch, option in option_batches(split, size, buckets):
                    options.append(option[batch.weight > 0])
                    yield batch

            batches = watched(made(), len(split), int(exists.sum()))
            rows, values = self._whole(lora, batches, 1.0, key)
            scores[rows, np.concatenate(options)] = values
        scores[~exists] = np.nan
        return predictions_of(split, scores, self._option_score)


class EnsemblePredictor:
    """Adapters on one base, evaluated together and averaged.

    The base is held once, and read once for all members; each has activations of its own.
    """

    def __init__(
        self,
        model: FrozenModel,
        mesh: Mesh,
        config: EvaluationConfig,
        option_score: OptionScore = DEFAULT_OPTION_SCORE,
    ):
        self._config = config
        self._option_score = option_score
        self._multiple = batch_parts(mesh)
        self._pass = SplitPass(model, mesh, packed_logprobs, members=True)

    def __call__(
        self, members: Sequence[nnx.State], encoded: Sequence[Encoded], over: Over = "members"
    ) -> Predictions:
        """The average over `members`: LoRA parameters of the same shapes, at least one; over: what
        they are called."""
        lora = stack_members(members)

        def score(rows: Sequence[Encoded]) -> np.ndarray:
            return packed_scores(
                rows,
                self._config.batch_size,
                self._multiple,
                lambda batches: self._pass(lora, batches, 1.0),
            )

        logprobs = score(encoded)
        priors = prior_scores(encoded, score) if self._option_score == "pmi" else None
        predictions = [
            predictions_of(
                encoded,
                logprobs[..., member],
                self._option_score,
                None if priors is None else priors[..., member],
            )
            for member in range(len(members))
        ]
        return average(predictions, over)


def stack_members(members: Sequence[nnx.State]) -> nnx.State:
    """Return LoRA parameters of several adapters with a leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def draws(draw: Callable[[jax.Array], nnx.State], seed: int, count: int) -> list[nnx.State]:
    """Return `count` draws of LoRA parameters, decided by the seed."""
    key = jax.random.fold_in(jax.random.key(seed), DRAWS)
    return [jax.jit(draw)(jax.random.fold_in(key, number)) for number in range(count)]
