"""Statistics of vocabulary logits at the positions that are scored, without keeping the logits.

A vocabulary of 128,256 makes `[positions, vocab]` the largest array of a fine-tuning step by far,
so positions are taken in chunks: a chunk's logits exist only while its statistics are computed. A
gradient through many chunks forms them again in the backward pass; training on many positions takes
`chunked_loss` instead, which does not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.method.terms import TERMS
from cogcalib_jax.models.head import Head

# Positions per chunk and device: 128 x 128,256 float32 logits are 66 MB.
CHUNK = 128


class RowStats(NamedTuple):
    """Per scored position, float32, all of the same shape."""

    nll: jax.Array
    """-log p(target) over the vocabulary, nats"""
    logsumexp: jax.Array
    """log of the softmax denominator: option logits minus this are vocabulary log-probabilities"""
    is_argmax: jax.Array
    """1 where the target has the highest logit (ties count)"""
    cal: jax.Array | None
    """the calibration term over the vocabulary, None when no term was asked for"""


def position_stats(
    head: Head,
    hidden: jax.Array,
    targets: jax.Array,
    method: MethodConfig | None,
    dropout_key: jax.Array | None,
) -> RowStats:
    """Statistics of the logits at `hidden` `[..., d]` for `targets` `[...]`, all at once.

    Every number is a reduction over the vocabulary, also the target's logit: where the vocabulary
    is cut over devices, each reduces its part and only the results travel.
    """
    logits = head.logits(hidden, dropout_key)
    logsumexp = jax.nn.logsumexp(logits, -1)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), -1)
    highest = jnp.max(jax.lax.stop_gradient(logits), -1)
    cal = None
    if method is not None:
        cal = TERMS[method.term](logits, None, method.reduction, method.margin)
    return RowStats(
        nll=logsumexp - target_logit,
        logsumexp=logsumexp,
        is_argmax=(jax.lax.stop_gradient(target_logit) >= highest).astype(jnp.float32),
        cal=cal,
    )


def row_stats(
    head: Head,
    hidden: jax.Array,
    targets: jax.Array,
    method: MethodConfig | None = None,
    dropout_key: jax.Array | None = None,
    chunk: int = CHUNK,
) -> RowStats:
    """Statistics of the logits at `hidden` `[..., d]` for `targets` `[...]`.

    method: the (resolved) method whose term is wanted over the vocabulary, None for cross-entropy
    alone, in which case nothing is computed for a regulariser. chunk: positions at a time, over
    all devices.
    """
    shape = targets.shape
    hidden = hidden.reshape(-1, hidden.shape[-1])
    targets = targets.reshape(-1)

    def stats(hidden: jax.Array, targets: jax.Array, key: jax.Array | None) -> RowStats:
        return position_stats(head, hidden, targets, method, key)

    rows = targets.shape[0]
    if rows <= chunk:
        result = stats(hidden, targets, dropout_key)
    else:
        padding = -rows % chunk
        hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
        targets = jnp.pad(targets, (0, padding))
        chunks = hidden.shape[0] // chunk
        keys = None if dropout_key is None else jax.random.split(dropout_key, chunks)
        # Every chunk takes some positions of each device's part of the batch: the axis the loop
        # runs along is device-local. Cut the other way round, each device would compute all of
        # every chunk's logits.
        result = jax.lax.map(
            lambda one: jax.checkpoint(stats)(*one),
            (
                hidden.reshape(chunk, chunks, -1).swapaxes(0, 1),
                targets.reshape(chunk, chunks).swapaxes(0, 1),
                keys,
            ),
        )
        result = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1)[:rows], result)
    return jax.tree.map(lambda x: x.reshape(shape), result)
