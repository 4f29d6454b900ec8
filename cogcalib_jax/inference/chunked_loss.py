"""The gated loss of a batch with many scored positions, without its logits in memory.

A chunk's gradient is formed with its logits in the forward pass and enters automatic
differentiation as a slope: 4 V D operations a position. A gate that looks at the NLL of an example
longer than a chunk needs a pass of its own, 2 V D more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.inference.forward import CHUNK, losses_at, position_stats, term_without_target
from cogcalib_jax.method.config import LossConfig, Space
from cogcalib_jax.method.gates import GateInputs
from cogcalib_jax.method.loss import LossSums, Objective, example_mean, gate_values, gated_loss
from cogcalib_jax.method.terms import Term
from cogcalib_jax.models.lora import Head

# (chunk of rows, its hidden states, head, dropout key) -> (scalar, whatever else is wanted)
ChunkFunction = Callable[[Any, jax.Array, Head, jax.Array | None], tuple[jax.Array, Any]]


def batch_loss(
    head: Head,
    hidden: jax.Array,
    batch: Batch,
    gate_labels: jax.Array,
    method: Objective,
    loss: LossConfig,
    threshold: jax.Array,
    gate_key: jax.Array,
    dropout_key: jax.Array | None,
    parts: int = 1,
    chunk: int = CHUNK,
) -> LossSums:
    """Return the gated loss of a batch, as sums; its gradient reaches `hidden` and the head's
    adapter.

    A scan under `jax.checkpoint` would be shorter, and forms logits again in the backward pass. In
    a step of SmolLM2-135M that is 12 % more products at 8 x 30 scored positions and 10 % more at
    8 x 80. Median ratios of time on a CPU too busy to be exact (load 13 on two cores): at 8 x 30
    SFT 1.05 [0.98, 1.11], CoLS 1.14 [1.02, 1.24], where steps against themselves gave 1.01 [0.96,
    1.06] and 1.03 [0.84, 1.09] (30 rounds); at 8 x 80 SFT 1.22 [1.06, 1.55], CoLS 1.11 [0.87, 1.17]
    (9 rounds, no control). Repeat it with benchmarks/loss_gradient.py.

    Args:
        hidden: `[batch, positions, d]` at the scored positions.
        gate_labels: see `gated_loss`.
        threshold: float32 scalar, nats.
        parts: devices that the batch is cut over.
        chunk: most positions whose logits exist on a device at a time.

    The head's weight gets no gradient: it is frozen.
    """
    examples, positions = batch.targets.shape

    def whole(rows: tuple[Batch, jax.Array], hidden: jax.Array, head: Head, key) -> Any:
        batch, gate_labels = rows

        # For terms that look at the gate. The gate that switches a term is in `gated_loss`.
        def gate(nll: jax.Array) -> jax.Array:
            inputs = GateInputs(nll, threshold, gate_labels, batch.weight > 0)
            return gate_values(method, inputs, gate_key)

        losses = losses_at(head, hidden, batch, loss, method, key, parts * chunk, gate)
        sums = gated_loss(
            losses.nll,
            losses.cal,
            method,
            threshold,
            gate_labels,
            batch.weight,
            gate_key,
            losses.gold,
            loss.lm_weight,
        )
        return sums.loss, sums

    rows = (batch, gate_labels)
    local = examples // parts
    in_options = "options" in (loss.space, method.term_space)
    across_rows = method.term is not None and (
        method.gate.across_rows or method.term.per == "batch"
    )
    # Whoever ranks or averages examples needs all of a batch, and whoever compares options all of
    # an example: `losses_at` forms the logits of many positions again in the backward pass.
    if local * positions <= chunk or (in_options and (across_rows or positions > chunk)):
        return whole(rows, hidden, head, dropout_key)[1]
    if positions <= chunk and not across_rows:
        size = parts * _largest_divisor(local, chunk // positions)
        total, sums = _with_slope(whole, rows, hidden, head, dropout_key, size)
        faults = jax.tree.map(_uncut, sums.faults)
        sums = jax.tree.map(lambda x: x.sum(0), sums._replace(faults=None))
        return sums._replace(loss=total, faults=faults)
    return _by_position(
        head, hidden, rows, method, loss, threshold, gate_key, dropout_key, parts, chunk
    )


def anchor_sum(
    head: Head,
    hidden: jax.Array,
    batch: Batch,
    term: Term,
    space: Space,
    dropout_key: jax.Array | None,
    parts: int = 1,
    chunk: int = CHUNK,
) -> jax.Array:
    """Return the sum of `term` over rows without answers, in nats; its gradient reaches `hidden`
    and the head's adapter.

    hidden: `[batch, n, d]`, where answers would begin or, of trees, at the scored positions; parts,
    chunk: see `batch_loss`.
    """

    def total(batch: Batch, hidden: jax.Array, head: Head, key: jax.Array | None) -> Any:
        values = term_without_target(head, hidden, batch, term, space, key, parts * chunk)
        return jnp.sum(values * batch.weight), None

    local, positions = batch.row.shape[0] // parts, batch.positions.shape[1]
    if local * positions <= chunk or positions > chunk:
        return total(batch, hidden, head, dropout_key)[0]
    size = parts * _largest_divisor(local, chunk // positions)
    return _with_slope(total, batch, hidden, head, dropout_key, size)[0]


def _by_position(
    head: Head,
    hidden: jax.Array,
    rows: tuple[Batch, jax.Array],
    method: Objective,
    loss: LossConfig,
    threshold: jax.Array,
    gate_key: jax.Array,
    dropout_key: jax.Array | None,
    parts: int,
    chunk: int,
) -> LossSums:
    """`batch_loss` over the vocabulary, with every example cut into equal pieces."""
    batch, gate_labels = rows
    examples, positions = batch.targets.shape
    pieces = -(-positions // chunk)
    width = -(-positions // pieces)
    term = method.term

    def cut(x: jax.Array) -> jax.Array:
        """`[batch, positions, ...]` -> `[batch * pieces, width, ...]`."""
        rest = [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, ((0, 0), (0, pieces * width - positions), *rest))
        return x.reshape(examples * pieces, width, *x.shape[2:])

    def joined(x: jax.Array) -> jax.Array:
        return x.reshape(examples, pieces * width)[:, :positions]

    def sums_of(nll: jax.Array, cal: jax.Array) -> LossSums:
        """The sums from the values of each position, `[batch, positions]`."""
        return gated_loss(
            example_mean(nll, batch.loss_mask, loss),
            None if term is None else example_mean(cal, batch.loss_mask, loss),
            method,
            threshold,
            gate_labels,
            batch.weight,
            gate_key,
        )

    hidden, targets = cut(hidden), cut(batch.targets)
    zeros = jnp.zeros((examples, positions), jnp.float32)
    nll = zeros
    if term is not None and (method.gate.needs_nll or term.needs_gate):
        nll = joined(_nll_alone(targets, hidden, head, dropout_key, parts))
    gate = None
    if term is not None and term.needs_gate:
        per_example = example_mean(nll, batch.loss_mask, loss)
        inputs = GateInputs(per_example, threshold, gate_labels, batch.weight > 0)
        values = gate_values(method, inputs, gate_key)
        gate = cut(jnp.broadcast_to(values[:, None], nll.shape))
    # The gate decided, the loss is linear in what each position contributes.
    slopes = jax.grad(lambda nll, cal: sums_of(nll, cal).loss, argnums=(0, 1))(nll, zeros)

    def weighted(rows: Any, hidden: jax.Array, head: Head, key: jax.Array | None) -> Any:
        targets, nll_slope, cal_slope, gate, start = rows
        stats = position_stats(head, hidden, targets, term, key, gate, start)
        total = jnp.sum(nll_slope * stats.nll)
        if term is None:
            return total, (stats.nll, jnp.zeros_like(stats.nll))
        return total + jnp.sum(cal_slope * stats.cal), (stats.nll, stats.cal)

    rows = (targets, *map(cut, slopes), gate, jax.tree.map(cut, batch.start))
    total, stats = _with_slope(weighted, rows, hidden, head, dropout_key, parts)
    nll, cal = (joined(_uncut(x)) for x in stats)
    return sums_of(nll, cal)._replace(loss=total)


def _nll_alone(
    targets: jax.Array,
    hidden: jax.Array,
    head: Head,
    dropout_key: jax.Array | None,
    size: int,
) -> jax.Array:
    """NLL of each position, `[items, width]`, without a gradient, `size` items at a time."""
    cut = jax.tree.map(lambda x: _cut(jax.lax.stop_gradient(x), size), (hidden, targets))
    keys = _keys(dropout_key, targets.shape[0] // size)
    head = jax.lax.stop_gradient(head)
    nll = jax.lax.map(
        lambda one: position_stats(head, one[0], one[1], None, one[2]).nll, (*cut, keys)
    )
    return _uncut(nll)


def _with_slope(
    function: ChunkFunction,
    rows: Any,
    hidden: jax.Array,
    head: Head,
    dropout_key: jax.Array | None,
    size: int,
) -> tuple[jax.Array, Any]:
    """`function` summed over chunks of `size` rows, with its gradient formed on the way.

    rows: pytree of `[n, ...]`, `hidden` `[n, ...]`, `size` divides n. Returns the sum, and what
    else the chunks gave, stacked `[chunks, ...]` and without gradient.
    """
    fixed_head, fixed_hidden = jax.lax.stop_gradient((head, hidden))
    adapter = _adapter(head)

    def add(carry: Any, chunk: Any) -> tuple[Any, Any]:
        rows, hidden, key = chunk

        def value(hidden: jax.Array, adapter: dict[str, Any]) -> tuple[jax.Array, Any]:
            return function(rows, hidden, fixed_head.replace(**adapter), key)

        (total, extra), (d_hidden, d_adapter) = jax.value_and_grad(
            value, argnums=(0, 1), has_aux=True
        )(hidden, _adapter(fixed_head))
        return jax.tree.map(jnp.add, carry, (total, d_adapter)), (extra, d_hidden)

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, adapter))
    keys = _keys(dropout_key, hidden.shape[0] // size)
    chunks = (jax.tree.map(lambda x: _cut(x, size), rows), _cut(fixed_hidden, size), keys)
    (total, d_adapter), (extra, d_hidden) = jax.lax.scan(add, zero, chunks)
    slopes = (_uncut(d_hidden), d_adapter)
    return total + _rise((hidden, adapter), slopes), extra


def _adapter(head: Head) -> dict[str, jax.Array | None]:
    """The trained part of the head."""
    names = ("lora_A", "lora_A_root", "lora_B", "gain", "rows")
    return {name: getattr(head, name) for name in names}


def _rise(variables: Any, slopes: Any) -> jax.Array:
    """Zero, with `slopes` as its gradient: a plane through where the variables are."""

    def one(x: jax.Array, slope: jax.Array) -> jax.Array:
        return jnp.sum(slope * (x - jax.lax.stop_gradient(x)), dtype=jnp.float32)

    return sum(jax.tree.leaves(jax.tree.map(one, variables, slopes)))


def _cut(x: jax.Array, size: int) -> jax.Array:
    """`[n, ...]` -> `[n / size, size, ...]`, each chunk with some rows of every device's part: the
    axis the loop runs along is device-local. Cut the other way round, every device would compute
    all of every chunk's logits."""
    # Written out: options of several tokens make axes of length 0, which hide a -1.
    return x.reshape(size, x.shape[0] // size, *x.shape[1:]).swapaxes(0, 1)


def _uncut(x: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _keys(key: jax.Array | None, chunks: int) -> jax.Array | None:
    return None if key is None else jax.random.split(key, chunks)


def _largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)
