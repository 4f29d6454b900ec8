"""Numbers of each example of a batch: loss terms, NLL, correctness, option scores.

The same functions serve the training step and every evaluation. `[positions, vocab]` is by far the
largest array, so logits exist for one chunk of positions at a time. A gradient through many chunks
forms them again in the backward pass; `chunked_loss` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cogcalib_jax.data.batching import Batch, OptionTree, StartBelief
from cogcalib_jax.method.config import LossConfig, Space
from cogcalib_jax.method.loss import Objective, example_mean
from cogcalib_jax.method.terms import MASKED_LOGIT, Rows, Term
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import Head
from cogcalib_jax.sharding import RULES, batch_parts

GateFunction = Callable[[jax.Array], jax.Array]
"""From the NLL of each example `[batch]` to the gate's value `[batch]`"""
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
            lambda one: jax.checkpoint(stats)(*one), (*jax.tree.map(cut, (hidden, places)), keys)
        )
        result = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1)[:rows], result)
    return jax.tree.map(lambda x: x.reshape(shape), result)


class ExampleLosses(NamedTuple):
    """Per example `[batch]`, float32."""

    nll: jax.Array
    """the example's cross-entropy in `loss.space`: the loss, and what the gate looks at"""
    correct: jax.Array
    """1 where the model answers correctly, by the rule of `loss.space`"""
    cal: jax.Array | None
    """the method's term in `method.space`, None without a term"""
    gold: jax.Array | None = None
    """NLL of the right option over the vocabulary, nats per token; None if it was not computed"""


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """Return hidden states `[batch, time, d]` at `positions` `[batch, n]`, `[batch, n, d]`."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def scored_hidden(
    decoder: Decoder, batch: Batch, dropout_key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return hidden states at the scored positions, `[batch, n, d]`, and the head's key."""
    trunk_key = head_key = None
    if dropout_key is not None:
        trunk_key, head_key = jax.random.split(dropout_key)
    ids, tree = batch.input_ids, batch.tree
    if tree is None:
        hidden = decoder.hidden_states(ids, lengths=batch.lengths, dropout_key=trunk_key)
    else:
        hidden = decoder.tree_hidden_states(
            ids, tree.positions, (tree.option,), dropout_key=trunk_key
        )
    return gather_positions(hidden, batch.positions), head_key


def example_losses(decoder: Decoder, batch: Batch, loss: LossConfig) -> ExampleLosses:
    """Return cross-entropy and correctness of each example; see `losses_at`."""
    hidden, _ = scored_hidden(decoder, batch, None)
    return losses_at(decoder.head(), hidden, batch, loss, None, None)


def losses_at(
    head: Head,
    hidden: jax.Array,
    batch: Batch,
    loss: LossConfig,
    method: Objective | None,
    dropout_key: jax.Array | None,
    chunk: int = CHUNK,
    gate: GateFunction | None = None,
) -> ExampleLosses:
    """Return cross-entropy, correctness and (with a method that has a term) the term, per example.

    hidden: `[batch, positions, d]` at the scored positions; chunk: see `row_stats`; gate: from the
    examples' NLL to the gate's values, for a term that looks at those. Vocabulary: an
    answer is correct when each of its tokens is the argmax under teacher forcing, which equals
    greedy exact match with the reference. Options: the argmax over the options; needs single-token
    options (`batch.option_ids` with at least one column) or a tree.
    """
    term, term_space = (None, None) if method is None else (method.term, method.term_space)
    needs_gate = term is not None and term.needs_gate

    def over_vocabulary(term: Term | None, gate: jax.Array | None = None) -> RowStats:
        if gate is not None:
            gate = jnp.broadcast_to(gate[:, None], batch.targets.shape)
        start = batch.start if term_space == "vocab" else None
        return row_stats(head, hidden, batch.targets, term, dropout_key, chunk, gate, start)

    stats = gold = options = None
    if loss.space == "vocab" or batch.tree is not None or loss.lm_weight:
        # A term that looks at the gate's value comes after the NLL, which decides the gate.
        stats = over_vocabulary(term if term_space == "vocab" and not needs_gate else None)
    if batch.tree is not None or loss.lm_weight:
        real = jnp.maximum(jnp.sum(batch.loss_mask, -1), 1.0)
        gold = jnp.sum(stats.nll * batch.loss_mask, -1) / real
    if "options" in (loss.space, term_space):
        options = _option_rows(head, hidden, batch, stats, dropout_key)
        if term is not None and term.needs_start and term_space == "options":
            options = options._replace(start=batch.start.log_p[:, 0])
    if loss.space == "vocab":
        nll = example_mean(stats.nll, batch.loss_mask, loss)
        correct = jnp.all((stats.is_argmax > 0) | (batch.loss_mask == 0), -1)
    else:
        nll, correct = over_options(options)

    cal = None
    values = gate(nll) if needs_gate else None
    if term_space == "vocab":
        if stats is None or stats.cal is None:
            stats = over_vocabulary(term, values)
        cal = example_mean(stats.cal, batch.loss_mask, loss)
    elif term_space == "options":
        cal = jnp.broadcast_to(term(options._replace(gate=values)), nll.shape)
    return ExampleLosses(nll=nll, correct=correct.astype(jnp.float32), cal=cal, gold=gold)


def _option_rows(
    head: Head,
    hidden: jax.Array,
    batch: Batch,
    stats: RowStats | None,
    dropout_key: jax.Array | None,
) -> Rows:
    """The questions of `batch` over their options; stats: of all scored positions of a tree."""
    if batch.tree is None:
        logits = head.option_logits(hidden[:, 0], batch.option_ids, dropout_key)
    else:
        logits = tree_scores(stats.nll, batch.tree)
    return Rows(logits, batch.answer, batch.option_mask)


def tree_scores(nll: jax.Array, tree: OptionTree) -> jax.Array:
    """Return the scores of options, `[batch, options]` nats, from the NLL of each of their tokens
    `[batch, positions]`; 0 for options that do not exist."""
    belongs = tree.place[..., None] == jnp.arange(tree.divisor.shape[-1])
    return -jnp.sum(jnp.where(belongs, nll[..., None], 0.0), 1) / tree.divisor


def over_options(options: Rows) -> tuple[jax.Array, jax.Array]:
    """Return the NLL in nats and the correctness (bool) of questions, `[batch]` each, by the
    softmax over their options."""
    masked = options.masked
    answer_logit = jnp.take_along_axis(masked, options.target[:, None], -1)[:, 0]
    nll = jax.nn.logsumexp(masked, -1) - answer_logit
    return nll, jnp.argmax(masked, -1) == options.target


def term_without_target(
    head: Head,
    hidden: jax.Array,
    batch: Batch,
    term: Term,
    space: Space,
    dropout_key: jax.Array | None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Return `term` of rows without answers, `[batch]` nats, where their answers would begin.

    hidden: `[batch, 1, d]` there, or `[batch, n, d]` of trees. Without a tree the vocabulary's
    logits of all rows exist at once.
    """
    if space == "options":
        stats = None
        if batch.tree is not None:
            stats = row_stats(head, hidden, batch.targets, None, dropout_key, chunk)
        rows = _option_rows(head, hidden, batch, stats, dropout_key)
        if term.needs_start:
            rows = rows._replace(start=batch.start.log_p[:, 0])
        return term(rows)
    rows = Rows(head.logits(hidden[:, 0], dropout_key), None)
    if term.needs_start:
        rows = coarsened(rows, jax.tree.map(lambda x: x[:, 0], batch.start))
    return term(rows)


def start_belief(
    decoder: Decoder, batch: Batch, space: Space, top: int, temperature: float = 1.0
) -> StartBelief:
    """Return what `decoder`, the start, believes at the scored positions: of the right answer's
    tokens, or where the answer of a row without one would begin.

    space: that of the term which compares with it; top: tokens kept over the vocabulary;
    temperature: it divides the scores of the classes.
    """
    hidden, _ = scored_hidden(decoder, batch, None)
    head = decoder.head()
    if space == "options":
        stats = None if batch.tree is None else row_stats(head, hidden, batch.targets)
        rows = _option_rows(head, hidden, batch, stats, None)
        tempered = rows._replace(logits=rows.logits / temperature)
        return StartBelief(tempered.log_p[:, None])

    def at(hidden: jax.Array) -> StartBelief:
        log_p = jax.nn.log_softmax(head.logits(hidden) / temperature, -1)
        values, ids = jax.lax.top_k(log_p, top)
        others = jnp.put_along_axis(log_p, ids, MASKED_LOGIT, -1, inplace=False)
        return StartBelief(values, ids, jax.nn.logsumexp(others, -1))

    flat = jax.lax.map(at, hidden.reshape(-1, hidden.shape[-1]), batch_size=CHUNK)
    return jax.tree.map(lambda x: x.reshape(*batch.positions.shape, *x.shape[1:]), flat)


def option_logprobs(
    decoder: Decoder,
    batch: Batch,
    temperature: jax.Array | float,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return vocabulary log-probabilities of single-token options, `[batch, options]` float32 nats.

    The temperature divides the logits, in float32. With a `dropout_key` LoRA's dropout is on; wrap
    in `row_by_row` for masks that no batch changes, and that are the same in both parts of the
    difference whatever the batch's size.
    """
    hidden, head_key = scored_hidden(decoder, batch, dropout_key)
    head = decoder.head().replace(temperature=temperature)
    stats = row_stats(head, hidden[:, :1], batch.targets[:, :1], dropout_key=head_key)
    logits = head.option_logits(hidden[:, 0], batch.option_ids, head_key)
    return logits - stats.logsumexp


def completion_logprob(
    decoder: Decoder,
    batch: Batch,
    temperature: jax.Array | float,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return the log-probability of each row's completion, summed over tokens, `[batch]` nats.

    dropout_key: as for `option_logprobs`.
    """
    hidden, head_key = scored_hidden(decoder, batch, dropout_key)
    head = decoder.head().replace(temperature=temperature)
    stats = row_stats(head, hidden, batch.targets, dropout_key=head_key)
    return -jnp.sum(stats.nll * batch.loss_mask, -1)


def row_by_row(
    score: Callable[[Decoder, Batch, jax.Array | float, jax.Array], jax.Array],
) -> Callable[[Decoder, Batch, jax.Array | float, jax.Array], jax.Array]:
    """Return `score` with a dropout mask for each example of a split, drawn from the key and the
    example's number alone.

    So neither the batch size, nor the padding, nor the rows beside it change an example's score,
    and all options of a question are scored by the same thinned model. The vocabulary's logits of
    a whole batch exist at once: chunks of positions are taken within a row.
    """

    def scores(
        decoder: Decoder, batch: Batch, temperature: jax.Array | float, key: jax.Array
    ) -> jax.Array:
        def one(row: Batch) -> jax.Array:
            alone = jax.tree.map(lambda x: x[None], row)
            return score(decoder, alone, temperature, jax.random.fold_in(key, row.row))[0]

        # Rows stay on their own devices.
        axes = RULES["batch"] if decoder.mesh and batch_parts(decoder.mesh) > 1 else None
        return jax.vmap(one, spmd_axis_name=axes)(batch)

    return scores
