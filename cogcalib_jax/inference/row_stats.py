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

from cogcalib_jax.data.batching import StartBelief
from cogcalib_jax.method.terms import MASKED_LOGIT, Rows, Term
from cogcalib_jax.models.lora import Head

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
    term: Term | None,
    dropout_key: jax.Array | None,
    gate: jax.Array | None = None,
    start: StartBelief | None = None,
) -> RowStats:
    """Return statistics of the logits at `hidden` `[..., d]` for `targets` `[...]`, all at once.

    gate: `[...]`, for a term that looks at the gate's value; start: `[..., k]` and `[...]`, for a
    term that compares with the start. Every number is a reduction over the vocabulary, also the
    target's logit: if the vocabulary is cut over devices, each reduces its part and only the
    results travel.
    """
    logits = head.logits(hidden, dropout_key)
    logsumexp = jax.nn.logsumexp(logits, -1)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), -1)
    highest = jnp.max(jax.lax.stop_gradient(logits), -1)
    cal = None
    if term is not None:
        rows = Rows(logits, targets, gate=gate)
        cal = term(coarsened(rows, start) if term.needs_start else rows)
    return RowStats(
        nll=logsumexp - target_logit,
        logsumexp=logsumexp,
        is_argmax=(jax.lax.stop_gradient(target_logit) >= highest).astype(jnp.float32),
        cal=cal,
    )


def coarsened(rows: Rows, start: StartBelief) -> Rows:
    """Return rows over k + 1 classes: the start's k likeliest tokens, and all others together.

    A divergence between the two coarsened distributions is at most that of the full ones, and
    equal to it if k is the whole vocabulary.
    """
    log_z = jax.nn.logsumexp(rows.logits, -1, keepdims=True)
    top = jnp.take_along_axis(rows.logits, start.ids, -1) - log_z
    others = jnp.put_along_axis(rows.logits, start.ids, MASKED_LOGIT, -1, inplace=False)
    rest = jax.nn.logsumexp(others, -1, keepdims=True) - log_z
    target = rows.target
    if target is not None:
        is_target = start.ids == target[..., None]
        target = jnp.where(is_target.any(-1), jnp.argmax(is_target, -1), start.ids.shape[-1])
    exists = (start.rest[..., None] > MASKED_LOGIT / 2).astype(jnp.float32)
    return rows._replace(
        logits=jnp.concatenate([top, rest], -1),
        target=target,
        mask=jnp.concatenate([jnp.ones_like(top), exists], -1),
        start=jnp.concatenate([start.log_p, start.rest[..., None]], -1),
    )


def row_stats(
    head: Head,
    hidden: jax.Array,
    targets: jax.Array,
    term: Term | None = None,
    dropout_key: jax.Array | None = None,
    chunk: int = CHUNK,
    gate: jax.Array | None = None,
    start: StartBelief | None = None,
) -> RowStats:
    """Return statistics of the logits at `hidden` `[..., d]` for `targets` `[...]`.

    Args:
        term: the term that is wanted over the vocabulary; None for cross-entropy alone, in which
            case nothing is computed for a term.
        chunk: positions at a time, over all devices.
        gate, start: see `position_stats`.
    """
    shape = targets.shape
    hidden, *places = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[len(shape) :]), (hidden, targets, gate, start)
    )

    def stats(hidden: jax.Array, places, key: jax.Array | None) -> RowStats:
        targets, gate, start = places
        return position_stats(head, hidden, targets, term, key, gate, start)

    rows = hidden.shape[0]
    if rows <= chunk:
        result = stats(hidden, places, dropout_key)
    else:
        padding = -rows % chunk
        chunks = (rows + padding) // chunk
        keys = None if dropout_key is None else jax.random.split(dropout_key, chunks)

        def cut(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(chunk, chunks, *x.shape[1:]).swapaxes(0, 1)

        # Every chunk takes some positions of each device's part of the batch: the axis the loop
        # runs along is device-local. Cut the other way round, each device would compute all of
        # every chunk's logits.
        result = jax.lax.map(
            lambda one: jax.checkpoint(stats)(*one),
            (*jax.tree.map(cut, (hidden, places)), keys),
        )
        result = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1)[:rows], result)
    return jax.tree.map(lambda x: x.reshape(shape), result)
