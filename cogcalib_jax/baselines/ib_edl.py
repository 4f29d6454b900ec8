"""Answers of IB-EDL, and the questions that it can be asked (the loss: `training.ib_edl`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.baselines.laplace import options_predictions
from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.forward import row_stats, scored_hidden
from cogcalib_jax.inference.option_score import DEFAULT_OPTION_SCORE, OptionScore
from cogcalib_jax.inference.passes import SplitPass
from cogcalib_jax.method.terms import mask_logits
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import length_multiple
from cogcalib_jax.training.ib_edl import IbEdl, dirichlet, pre_evidence

# Noise of answers comes from another stream of a seed than that of other baselines (2, 3, 5, 6).
STREAM = 7


def scale_tokens(sets: Mapping[str, EncodedSplit], vocabulary: int) -> tuple[int, ...]:
    """Return the tokens whose logits give deviations: the last of the vocabulary that are no option
    of any question, one for each option.

    The authors' code takes the last ones whatever they are.

    Raises:
        UserError: options of several tokens.
    """
    for name, rows in sets.items():
        if not rows.single_token_options:
            raise UserError(
                f"compare = ib_edl: {name} has options of several tokens; expected one token each,"
                " whose logit it takes for evidence. Leave it out, or ask for letters"
                " (--data.prompt letters)"
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
        """Return the predictions; over the vocabulary the model says how probable any option is."""
        key = jax.random.fold_in(jax.random.key(seed), STREAM)
        split = EncodedSplit.of(encoded)
        buckets = length_buckets(split.lengths, multiple=length_multiple(self._mesh))
        batches = eval_batches(split, self._config.batch_size, buckets)
        rows, (logprobs, options) = self._pass(lora, batches, key)
        count = self._variant.draws
        return options_predictions(encoded, rows, logprobs, options, count, self._option_score)
