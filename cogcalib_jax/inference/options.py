"""Scores of options of any number of tokens, from packed rows: every prompt is computed once.

`packed_logprobs` serves evaluation, which keeps log-probabilities and applies the rule on the host
in float64. `option_scores` applies the same rule on the device; its questions are `Rows` over their
options, which terms, gates and the rule for a right answer take like those of single tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from cogcalib_jax.data.packing import PackedBatch
from cogcalib_jax.inference.forward import gather_positions
from cogcalib_jax.inference.row_stats import row_stats
from cogcalib_jax.method.terms import Rows
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import Head

DeviceRule = Literal["sum", "mean", "chars"]
"""How an option's score follows from its log-probability alone: as it is, per token, per character
"""


def per_length(rule: DeviceRule, logprobs: Any, tokens: Any, characters: Any) -> Any:
    """Return the scores of options by `rule`, for arrays of numpy or JAX of one shape.

    Args:
        logprobs: floats, nats, summed over the tokens of an option.
        tokens, characters: int, of each option; 0 where there is none, whose value then stays as it
            is. The rule decides which of the two is read.
    """
    if rule == "sum":
        return logprobs
    length = tokens if rule == "mean" else characters
    return logprobs / (length + (length == 0))


def option_scores(
    decoder: Decoder, batch: PackedBatch, rule: DeviceRule, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Return the scores of every question's options, `[rows * questions, options]` float32 nats.

    Where a question or an option does not exist the value means nothing, and is finite. The
    gradient reaches all that is trained. dropout_key: for LoRA's dropout in the layers. The head's
    adapter is not thinned: an option's first logit and what it is normalised by are different
    products, and two masks would not give a distribution.
    """
    logprobs = packed_logprobs(decoder, batch, 1.0, dropout_key)
    scores = per_length(rule, logprobs, batch.option_tokens, batch.option_characters)
    return scores.reshape(-1, scores.shape[-1])


def option_rows(scores: jax.Array, batch: PackedBatch) -> Rows:
    """Return the questions of `batch` over their options, from scores as `option_scores` gives
    them; one that does not exist has no options, and `batch.weight` 0."""
    mask = (batch.option_tokens > 0).astype(jnp.float32)
    return Rows(scores, batch.answer.reshape(-1), mask.reshape(scores.shape))


def packed_logprobs(
    decoder: Decoder,
    batch: PackedBatch,
    temperature: jax.Array | float,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Log-probability of every option, summed over its tokens, `[batch, questions, options]`
    float32 nats under the vocabulary's softmax.

    The end of a prompt predicts the first token of all its options, an option's token the next one.
    Where a question or an option does not exist the value means nothing. The temperature divides
    every vocabulary logit. Several temperatures `[t]` add a last axis to the result: they share the
    decoder's pass and the products with the head, which are nearly all of the work. dropout_key:
    see `option_scores`.
    """
    hidden = decoder.tree_hidden_states(
        batch.input_ids,
        batch.positions,
        (batch.question, batch.option),
        dropout_key=dropout_key,
    )
    hidden = gather_positions(hidden, batch.scored)
    ends = gather_positions(hidden, batch.prompt_end)

    def logprobs(temperature: jax.Array | float) -> jax.Array:
        return _logprobs(decoder.head().replace(temperature=temperature), hidden, ends, batch)

    if jnp.ndim(temperature):
        return jax.vmap(logprobs, out_axes=-1)(temperature)
    return logprobs(temperature)


def _logprobs(head: Head, hidden: jax.Array, ends: jax.Array, batch: PackedBatch) -> jax.Array:
    """The same from hidden states: those at the scored positions, and at the ends of prompts."""
    stats = row_stats(head, hidden, batch.targets)
    rows, questions, options = batch.first_ids.shape
    first_logits = head.option_logits(
        ends.reshape(rows * questions, -1),
        batch.first_ids.reshape(rows * questions, options),
    )
    denominators = jnp.take_along_axis(stats.logsumexp, batch.prompt_end, axis=1)
    first = first_logits.reshape(rows, questions, options) - denominators[:, :, None]

    # One place more than there are options, for what belongs to none.
    places = questions * options + 1
    nll = jax.vmap(lambda nll, place: jax.ops.segment_sum(nll, place, places))(
        stats.nll, batch.place
    )
    return first - nll[:, :-1].reshape(first.shape)
