"""IB-EDL: one pass gives the options a Dirichlet distribution, and training keeps it uninformed.

Li et al., ICLR 2025, "Calibrating LLMs with Information-Theoretic Evidential Deep Learning"
(arXiv 2502.06351). The logits of the options are means m of pre-evidence, and as many logits of
other tokens give its standard deviations s = softplus(...). With z = m + s * normal noise, evidence
is softplus(z), and alpha = evidence + 1 are the parameters of the Dirichlet distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.baselines.laplace import options_predictions
from cogcalib_jax.data.batching import Batch, scored_batches
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, EvaluationConfig, OptionScore
from cogcalib_jax.inference.forward import row_stats, scored_hidden
from cogcalib_jax.inference.predict import SplitPass
from cogcalib_jax.method.terms import mask_logits
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import Head
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import length_multiple
from cogcalib_jax.training.variant import Variant


def pre_evidence(
    head: Head,
    hidden: jax.Array,
    option_ids: jax.Array,
    scale_ids: tuple[int, ...],
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return means and standard deviations of pre-evidence, `[batch, options]` float32.

    Args:
        hidden: `[batch, hidden]` where the answers begin.
        option_ids: `[batch, options]` tokens of the options.
        scale_ids: tokens whose logits give the deviations of the first, second ... option.
    """
    options = option_ids.shape[1]
    scales = jnp.broadcast_to(jnp.asarray(scale_ids[:options], option_ids.dtype), option_ids.shape)
    ids = jnp.concatenate([option_ids, scales], 1)
    logits = head.option_logits(hidden, ids, dropout_key)
    return logits[:, :options], jax.nn.softplus(logits[:, options:])


def dirichlet(mean: jax.Array, deviation: jax.Array, noise: jax.Array) -> jax.Array:
    """Return alpha, `[draws, ..., options]`; noise: likewise, standard normal."""
    return jax.nn.softplus(mean + deviation * noise) + 1.0


def bayes_risk(alpha: jax.Array, is_target: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the expected squared error under Dirichlet distributions, `[...]`.

    Args:
        alpha: `[..., options]`.
        is_target: the same, 1 for the right option.
        mask: the same, 1 for options that exist.
    """
    total = jnp.sum(alpha * mask, -1, keepdims=True)
    p = alpha / total
    return jnp.sum(mask * ((is_target - p) ** 2 + p * (1 - p) / (total + 1)), -1)


def bottleneck(mean: jax.Array, deviation: jax.Array, mask: jax.Array) -> jax.Array:
    """Return KL(N(mean, deviation^2) || N(0, 1)) summed over options, `[...]` nats."""
    each = mean**2 + deviation**2 - 2 * jnp.log(deviation) - 1
    return 0.5 * jnp.sum(mask * each, -1)


@dataclass(frozen=True)
class IbEdl(Variant):
    """The variant of training: the Bayes risk, averaged over draws, and `beta` times the KL."""

    scale_ids: tuple[int, ...]
    """the tokens whose logits give deviations: at least one for each option"""
    beta: float = 1e-5
    draws: int = 20

    def identity(self) -> dict[str, Any]:
        return {"ib_edl": [list(self.scale_ids), self.beta, self.draws]}

    def losses(
        self,
        head: Head,
        hidden: jax.Array,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        ids, mask = batch.option_ids, (batch.option_mask > 0).astype(jnp.float32)
        mean, deviation = pre_evidence(head, hidden[:, 0], ids, self.scale_ids, dropout_key)
        noise = jax.random.normal(key, (self.draws, *mean.shape))
        is_target = (jnp.arange(ids.shape[1]) == batch.answer[:, None]).astype(jnp.float32)
        risk = bayes_risk(dirichlet(mean, deviation, noise), is_target, mask)
        return jnp.mean(risk, 0) + self.beta * bottleneck(mean, deviation, mask)


# Noise of answers comes from another stream of a seed than that of other baselines (2, 3, 5, 6).
STREAM = 7


def scale_tokens(
    sets: Mapping[str, EncodedSplit], vocabulary: int, option_score: str = "sum"
) -> tuple[int, ...]:
    """Return the tokens whose logits give deviations: the last of the vocabulary that are no option
    of any question, one for each option.

    The authors' code takes the last ones whatever they are.

    option_score: the rule of a loss over the options.

    Raises:
        UserError: options of several tokens, or a rule that divides one token by its length.
    """
    for name, rows in sets.items():
        if not rows.single_token_options:
            raise UserError(
                f"compare = ib_edl: {name} has options of several tokens; expected one token each,"
                " whose logit it takes for evidence. Leave it out, or ask for letters"
                " (--data.prompt letters)"
            )
        if option_score in ("chars", "auto") and rows.needs_trees("chars"):
            raise UserError(
                f"option_score is {option_score}; expected mean or sum for compare = ib_edl, whose"
                f" evidence has no length ({name} has options of several characters). Set another"
                " rule, or leave it out"
            )
    taken = {ids[0] for rows in sets.values() for row in rows for ids in row.completion_ids}
    free = [token for token in range(vocabulary) if token not in taken]
    return tuple(free[-max(rows.options for rows in sets.values()) :])


class IbEdlPredictor:
    """The Dirichlet distribution's mean; noise comes from the seed and a question's number."""

    def __init__(
        self,
        model: FrozenModel,
        mesh: Mesh,
        config: EvaluationConfig,
        variant: IbEdl,
        caution: float = 0.0,
        option_score: OptionScore = DEFAULT_OPTION_SCORE,
    ):
        """caution: deviations by which alpha is lowered, to 1 at least."""
        self._mesh, self._config, self._variant = mesh, config, variant
        self._option_score = option_score

        def scores(decoder: Decoder, batch: Batch, key: jax.Array) -> Any:
            hidden, _ = scored_hidden(decoder, batch, None)
            head, ids = decoder.head(), batch.option_ids
            mean, deviation = pre_evidence(head, hidden[:, 0], ids, variant.scale_ids)
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.row)
            shape = (variant.draws, ids.shape[1])
            noise = jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys)
            alpha = jnp.mean(dirichlet(mean, deviation, noise), 0)
            alpha = jnp.where(batch.option_mask > 0, alpha - caution * deviation, 0.0)
            alpha = jnp.where(batch.option_mask > 0, jnp.maximum(alpha, 1.0), 0.0)
            logsumexp = row_stats(head, hidden, batch.targets[:, :1]).logsumexp[:, 0]
            options = jax.nn.logsumexp(mask_logits(mean, batch.option_mask), -1) - logsumexp
            return jnp.log(alpha) - jnp.log(jnp.sum(alpha, -1, keepdims=True)), options

        self._pass = SplitPass(model, mesh, scores)

    def __call__(self, lora: nnx.State, encoded: Sequence[Encoded], seed: int) -> Any:
        """Return the predictions; the probability of all options together is the model's own."""
        key = jax.random.fold_in(jax.random.key(seed), STREAM)
        multiple = length_multiple(self._mesh)
        batches = scored_batches(encoded, self._config.batch_size, None, multiple=multiple)
        rows, (logprobs, options) = self._pass(lora, batches, key)
        count = self._variant.draws
        return options_predictions(encoded, rows, logprobs, options, count, self._option_score)
