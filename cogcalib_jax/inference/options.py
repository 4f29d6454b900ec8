"""Log-probabilities of options of any number of tokens, from packed rows.

Every prompt is computed once. Training scores options in batches of trees (`forward.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cogcalib_jax.data.packing import PackedBatch
from cogcalib_jax.inference.forward import gather_positions
from cogcalib_jax.inference.row_stats import row_stats
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import Head


def packed_logprobs(
    decoder: Decoder, batch: PackedBatch, temperature: jax.Array | float
) -> jax.Array:
    """Return log-probabilities of options, summed over their tokens, in nats.

    They are `[batch, questions, options]` float32, under the vocabulary's softmax.

    The end of a prompt predicts the first token of all its options, an option's token the next one.
    Where a question or an option does not exist the value means nothing. The temperature divides
    every vocabulary logit. Several temperatures `[t]` add a last axis to the result: they share the
    decoder's pass and the products with the head, which are nearly all of the work.
    """
    branches = (batch.question, batch.option)
    hidden = decoder.tree_hidden_states(batch.input_ids, batch.positions, branches)
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
