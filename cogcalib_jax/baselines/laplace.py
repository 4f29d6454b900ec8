"""Laplace-LoRA: a Gaussian posterior over the LoRA parameters of a model that is trained already.

Yang et al. 2024, "Bayesian Low-rank Adaptation for Large Language Models" (arXiv 2308.13111). One
pass over the training rows gives the curvature of the options' cross-entropy at the trained
parameters (`kfac.py`), their marginal likelihood the prior's precision, without held-out rows.
An answer comes from the model linearised in its LoRA parameters: option logits are then normal, and
their softmax is averaged over draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogcalib_jax.baselines.kfac import (
    Block,
    Evidence,
    LowRank,
    Moments,
    adapter_flows,
    covariance,
    curvature_block,
    flow_moments,
)
from cogcalib_jax.data.batching import Batch, scored_batches
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, EvaluationConfig, OptionScore
from cogcalib_jax.inference.forward import row_stats
from cogcalib_jax.inference.predict import SplitPass, option_tokens, watched
from cogcalib_jax.inference.predictions import Averaged, Predictions
from cogcalib_jax.method.terms import mask_logits
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import batch_parts, fetch, length_multiple, shard_batch

LOW_RANK = LowRank()
# Draws of a question's logits: a probability is then off by at most .005 (one standard error).
SAMPLES = 10_000
# Draws of logits come from another stream of a seed than training (0, 1) and MC-dropout (2).
STREAM = 3
# Padded lengths of a split, each compiled: a backward pass compiles slowly.
SHAPES = 4


class Posterior(NamedTuple):
    """The posterior as a pytree; its mean is the trained parameters themselves."""

    blocks: dict[str, Block]
    prior_precision: jax.Array | float


@dataclass(frozen=True)
class Fit:
    """A posterior, and what chose its prior."""

    posterior: Posterior
    evidence: Evidence
    rows: int

    def record(self) -> dict[str, float]:
        """Return the fit as JSON."""
        precision = float(self.posterior.prior_precision)
        return {
            "prior_precision": precision,
            "log_marginal_likelihood": self.evidence.log_marginal(precision),
            "log_likelihood": self.evidence.log_likelihood,
            "effective_parameters": self.evidence.effective_parameters(precision),
            "squared_norm": self.evidence.squared_norm,
            "rows": self.rows,
        }


class _Sums(NamedTuple):
    """The sums of a pass over the training rows."""

    log_likelihood: jax.Array
    moments: dict[str, Moments]


def fit(
    model: FrozenModel,
    lora: nnx.State,
    mesh: Mesh,
    train: Sequence[Encoded],
    batch_size: int,
    low_rank: LowRank = LOW_RANK,
    option_score: OptionScore = DEFAULT_OPTION_SCORE,
) -> Fit:
    """Return the posterior around `lora` given `train`: questions with options.

    batch_size: sequences at a time, of which each question is as many as it has options.
    option_score: the rule that scores options of several tokens.

    Raises:
        NoPosterior: see `Evidence.best_prior_precision`.
    """

    def sums(lora: nnx.State, frozen: nnx.State, batch: Batch) -> _Sums:
        return _batch_sums(nnx.merge(model.graphdef, lora, frozen), batch, low_rank)

    replicated = NamedSharding(mesh, PartitionSpec())
    run = jax.jit(sums, out_shardings=replicated)
    add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0, out_shardings=replicated)
    total = None
    for batch in _batches(train, batch_size, mesh, option_score):
        one = run(lora, model.frozen, shard_batch(mesh, batch))
        total = one if total is None else add(total, one)
    total = jax.tree.map(fetch, total)
    blocks = {name: curvature_block(moments, low_rank) for name, moments in total.moments.items()}
    norm = sum(float(np.sum(fetch(x).astype(np.float64) ** 2)) for x in jax.tree.leaves(lora))
    evidence = Evidence.of(blocks, float(total.log_likelihood), norm)
    posterior = Posterior(blocks, np.float32(evidence.best_prior_precision()))
    return Fit(posterior, evidence, len(train))


def _batch_sums(decoder: Decoder, batch: Batch, low_rank: LowRank) -> _Sums:
    _, scores, flows = adapter_flows(decoder, batch, partial(_curvature_roots, batch.option_mask))
    logprobs = jax.nn.log_softmax(mask_logits(scores, batch.option_mask))
    right = jnp.take_along_axis(logprobs, batch.answer[:, None], -1)[:, 0]
    return _Sums(
        jnp.sum(jnp.where(batch.weight > 0, right, 0.0)),
        {name: flow_moments(flow, low_rank) for name, flow in flows.items()},
    )


def _curvature_roots(mask: jax.Array, logits: jax.Array) -> jax.Array:
    """`[classes, batch, options]`: vectors whose outer products sum to diag(p) - p p^T, the Hessian
    of cross-entropy in the logits: sqrt(p_c) (e_c - p)."""
    probs = jax.nn.softmax(mask_logits(logits, mask))
    eye = jnp.eye(probs.shape[1])
    # Summed, 1 - p_c keeps its digits where an answer that was learned by heart has p_c near 1.
    others = probs @ (1 - eye)
    apart = eye * others[:, :, None] - (1 - eye) * probs[:, None, :]
    return (jnp.sqrt(probs)[:, :, None] * apart).swapaxes(0, 1)


def linearised(
    decoder: Decoder, batch: Batch, posterior: Posterior
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return means of the option scores under the posterior `[batch, options]`, their covariances
    `[batch, options, options]`, and the log-probability of all options together under the trained
    model's vocabulary `[batch]`; float32."""

    def each_option(logits: jax.Array) -> jax.Array:
        options = logits.shape[1]
        return jnp.broadcast_to(jnp.eye(options)[:, None], (options, *logits.shape))

    hidden, scores, flows = adapter_flows(decoder, batch, each_option)
    covariances = sum(
        covariance(flow, posterior.blocks[name], posterior.prior_precision)
        for name, flow in flows.items()
    )
    if batch.tree is None:
        logsumexp = row_stats(decoder.head(), hidden, batch.targets[:, :1]).logsumexp[:, 0]
        logprobs = scores
    else:
        logprobs, logsumexp = scores * batch.tree.divisor, 0.0
    options = jax.nn.logsumexp(mask_logits(logprobs, batch.option_mask), -1) - logsumexp
    return scores, covariances, options


def mean_log_probs(
    logits: jax.Array, covariance: jax.Array, mask: jax.Array, key: jax.Array, samples: int
) -> jax.Array:
    """Log of the mean softmax over draws of one question's logits `[options]`, float32 nats."""
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
    noise = jax.random.normal(key, (samples, len(logits)))
    draws = mask_logits(logits + noise @ root.T, mask)
    return jax.nn.logsumexp(jax.nn.log_softmax(draws), axis=0) - jnp.log(samples)


class LaplacePredictor:
    """Averages over the posterior; each question costs one backward pass an option.

    The draws of a question come from the seed and its number in the split. The posterior is over
    the options' logits. The probability of all options together comes from the trained model, and
    an option's probability over the vocabulary is its averaged one times that.
    """

    def __init__(
        self,
        model: FrozenModel,
        mesh: Mesh,
        config: EvaluationConfig,
        samples: int = SAMPLES,
        option_score: OptionScore = DEFAULT_OPTION_SCORE,
    ):
        """option_score: the rule of the run, not pmi."""
        self._mesh = mesh
        self._config = config
        self._samples = samples
        self._option_score = option_score

        def scores(decoder: Decoder, batch: Batch, posterior: Posterior, key: jax.Array) -> Any:
            logits, covariances, options = linearised(decoder, batch, posterior)
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.row)
            draw = partial(mean_log_probs, samples=samples)
            logprobs = jax.vmap(draw)(logits, covariances, batch.option_mask, keys)
            return logprobs, options

        self._pass = SplitPass(model, mesh, scores)

    def __call__(
        self, lora: nnx.State, posterior: Posterior, encoded: Sequence[Encoded], seed: int
    ) -> Predictions:
        key = jax.random.fold_in(jax.random.key(seed), STREAM)
        batches = watched(
            _batches(encoded, self._config.batch_size, self._mesh, self._option_score),
            len(encoded),
            len(encoded),
        )
        rows, (logprobs, options) = self._pass(lora, batches, posterior, key)
        return options_predictions(
            encoded, rows, logprobs, options, self._samples, self._option_score
        )


def options_predictions(
    encoded: Sequence[Encoded],
    rows: np.ndarray,
    logprobs: np.ndarray,
    options: np.ndarray,
    samples: int,
    option_score: OptionScore,
) -> Predictions:
    """Return predictions of averages over the options alone.

    Args:
        rows: `[n]` their numbers, in the order of the other arrays.
        logprobs: `[n, options]` log of the mean probabilities, nats.
        options: `[n]` log-probability of all options together over the vocabulary.
    """
    tokens = option_tokens(encoded)
    averaged = np.full(tokens.shape, -np.inf)
    averaged[rows] = np.where(tokens[rows] > 0, logprobs.astype(np.float64), -np.inf)
    vocab = np.full(tokens.shape, np.nan)
    vocab[rows] = averaged[rows] + options[:, None]
    vocab[tokens == 0] = np.nan
    return Predictions(
        logprobs=vocab,
        tokens=tokens,
        answers=np.array([e.answer for e in encoded]),
        option_score=option_score,
        averaged=Averaged("posterior_samples", samples, averaged),
    )


def _batches(
    encoded: Sequence[Encoded], batch_size: int, mesh: Mesh, option_score: OptionScore
) -> Iterator[Batch]:
    """Batches in which a question counts as often as it has options, for as many backward passes
    run at once."""
    split = EncodedSplit.of(encoded)
    parts = batch_parts(mesh)
    size = -(-max(1, batch_size // split.options) // parts) * parts
    rule = option_score if split.needs_trees(option_score) else None
    return scored_batches(split, size, rule, SHAPES, length_multiple(mesh))
