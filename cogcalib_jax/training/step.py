"""The jitted training step: forward, gate, loss, gradient of the LoRA parameters, update.

Only LoRA parameters and optimizer state are trained, donated and returned; the base never changes.
The threshold and the method's numbers are arguments, so neither a refit nor another margin compiles
anything. An update whose loss or gradient is not finite leaves parameters and optimizer as they
were; the caller decides whether the run then stops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.inference.chunked_loss import anchor_sum, batch_loss
from cogcalib_jax.inference.forward import scored_hidden
from cogcalib_jax.method.config import LossConfig
from cogcalib_jax.method.loss import Faults, LossSums, Objective, gated_loss
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import batch_parts
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.variant import PLAIN, Variant

# Not the numbers of micro-batches, whose keys are folded in, too.
DRAW = 2**30


class TrainState(NamedTuple):
    """The state that a step changes: a plain pytree, checkpointed as it is."""

    step: jax.Array
    """int32 scalar: batches of this phase that were used or skipped; random keys follow it"""
    lora: nnx.State
    """the trained parameters, in the form of the variant"""
    opt_state: optax.OptState
    """moments, and the updates made: what was skipped counts neither for Adam's bias correction
    nor for the learning rate's schedule"""
    skipped: jax.Array
    """int32 scalar: batches skipped because their loss or gradient was not finite"""
    skipped_in_a_row: jax.Array
    """int32 scalar: of these, the newest ones without an update between them"""


class StepFaults(NamedTuple):
    """The source of numbers that are not finite: `[accumulation * batch]` arrays, read only if
    there are such numbers."""

    row: jax.Array
    """int32: the examples' numbers in their split"""
    of: Faults
    in_a_row: jax.Array
    """int32 scalar: batches skipped one after the other, this one included"""


class StepMetrics(NamedTuple):
    """Float32 scalars, means over the step's examples."""

    loss: jax.Array
    ce: jax.Array
    cal: jax.Array
    gated_fraction: jax.Array
    known_fraction: jax.Array
    grad_norm: jax.Array
    skipped: jax.Array
    """batches of the phase skipped so far, this one included: no mean"""
    faults: StepFaults
    """no scalars"""
    gold_nll: jax.Array | None = None
    """of the right option over the vocabulary, nats per token; None if it is not computed"""
    active_fraction: jax.Array | None = None
    """share of the examples for which the term is not 0; None unless it `may_be_idle`"""
    anchor: jax.Array | None = None
    """mean of the anchor's term over the step's anchor rows, unweighted; None without such rows"""


StepFunction = Callable[
    [TrainState, nnx.State, Batch, jax.Array, jax.Array, Objective, jax.Array],
    tuple[TrainState, StepMetrics],
]


def batch_sums(
    decoder: Decoder,
    batch: Batch,
    gate_labels: jax.Array,
    method: Objective,
    loss: LossConfig,
    threshold: jax.Array,
    key: jax.Array,
    dropout: bool,
    variant: Variant = PLAIN,
) -> LossSums:
    """Return the loss of one micro-batch as sums; gate_labels: see `gated_loss`."""
    dropout_key, gate_key = jax.random.split(key)
    hidden, head_key = scored_hidden(decoder, batch, dropout_key if dropout else None)
    own = variant.losses(decoder.head(), hidden, batch, gate_key, head_key)
    if own is not None:
        return gated_loss(own, None, method, threshold, gate_labels, batch.weight, gate_key)
    return batch_loss(
        *(decoder.head(), hidden, batch, gate_labels, method, loss, threshold, gate_key, head_key),
        parts=_parts(decoder),
    )


def _parts(decoder: Decoder) -> int:
    return 1 if decoder.mesh is None else batch_parts(decoder.mesh)


def make_train_step(
    model: FrozenModel,
    optimizer: optax.GradientTransformation,
    loss: LossConfig,
    *,
    dropout: bool,
    variant: Variant = PLAIN,
) -> StepFunction:
    """Return the update function, not yet jitted: `step(state, frozen, batches, gate_labels,
    threshold, method, key)`.

    `batches` holds arrays `[accumulation, batch, ...]` and `gate_labels` `[accumulation, batch]`:
    gradients of summed losses are added up and divided once by the number of examples, so 1 x 8
    and 4 x 2 are the same update where nothing is drawn (dropout draws once a micro-batch).
    Where `batches` has anchor rows, `method.anchor` adds its weight times their mean term. All
    micro-batches see one draw of the variant.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(
        state: TrainState,
        frozen: nnx.State,
        batches: Batch,
        gate_labels: jax.Array,
        threshold: jax.Array,
        method: Objective,
        key: jax.Array,
    ) -> tuple[TrainState, StepMetrics]:
        has_gold = batches.tree is not None or loss.lm_weight > 0
        may_be_idle = method.term is not None and method.term.may_be_idle
        anchors = batches.anchor
        if anchors is not None:
            anchor_rows = jnp.sum(anchors.weight)
            # The gradient of sums is divided by the number of examples in the end.
            anchor_share = method.anchor.weight * jnp.sum(batches.weight) / anchor_rows

        def loss_sum(lora: nnx.State, batch: Batch, gate_labels: jax.Array, key: jax.Array):
            drawn = variant.draw(lora, state.opt_state, draw_key)
            decoder = nnx.merge(model.graphdef, drawn, frozen)
            examples = batch._replace(anchor=None)
            sums = batch_sums(
                *(decoder, examples, gate_labels, method, loss, threshold, key, dropout, variant)
            )
            if anchors is None:
                return sums.loss, (sums, None)
            # Not 0 or 1: those are the keys that `batch_sums` splits off.
            dropout_key = jax.random.fold_in(key, 2) if dropout else None
            hidden, head_key = scored_hidden(decoder, batch.anchor, dropout_key)
            held = anchor_sum(
                *(decoder.head(), hidden, batch.anchor, method.anchor.term, method.space, head_key),
                parts=_parts(decoder),
            )
            return sums.loss + anchor_share * held, (sums, held)

        def add_micro_batch(carry, micro):
            gradient, (sums, held) = jax.grad(loss_sum, has_aux=True)(state.lora, *micro)
            added = (gradient, sums._replace(faults=None), held)
            return jax.tree.map(jnp.add, carry, added), sums.faults

        key = jax.random.fold_in(key, state.step)
        keys, draw_key = jax.random.split(key, gate_labels.shape[0]), jax.random.fold_in(key, DRAW)
        zero = (
            jax.tree.map(jnp.zeros_like, state.lora),
            LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields[:-1]), faults=None),
            None if anchors is None else jnp.zeros((), jnp.float32),
        )
        if gate_labels.shape[0] == 1:
            # A loop of one would only hide the body from XLA's fusion.
            (gradient, sums, held), faults = add_micro_batch(
                zero, jax.tree.map(lambda x: x[0], (batches, gate_labels, keys))
            )
        else:
            (gradient, sums, held), faults = jax.lax.scan(
                add_micro_batch, zero, (batches, gate_labels, keys)
            )
        examples = jnp.maximum(sums.examples, 1.0)
        gradient = jax.tree.map(lambda g: g / examples, gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.lora, key=draw_key)
        lora = optax.apply_updates(state.lora, updates)
        mean_loss, grad_norm = sums.loss / examples, optax.tree.norm(gradient)
        anchor = None
        if anchors is not None:
            anchor = held / anchor_rows
            mean_loss = mean_loss + method.anchor.weight * anchor
        # The norm is not finite where any part of the gradient is not; clipping needs it anyway.
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        lora, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (lora, opt_state),
            (state.lora, state.opt_state),
        )
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        metrics = StepMetrics(
            loss=mean_loss,
            ce=sums.ce / examples,
            cal=sums.cal / examples,
            gated_fraction=sums.gated / examples,
            known_fraction=sums.known / examples,
            grad_norm=grad_norm,
            skipped=skipped.astype(jnp.float32),
            gold_nll=sums.gold / examples if has_gold else None,
            active_fraction=sums.active / examples if may_be_idle else None,
            faults=StepFaults(*jax.tree.map(jnp.ravel, (batches.row, faults)), in_a_row),
            anchor=anchor,
        )
        return TrainState(state.step + 1, lora, opt_state, skipped, in_a_row), metrics

    return step


def state_shardings(
    lora: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the shardings of a TrainState: moments lie with their parameters, the rest everywhere.

    `lora` may hold arrays or ShapeDtypeStructs with shardings, so that a step can be planned for
    devices that are not there.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    lora_shardings = jax.tree.map(lambda x: x.sharding, lora)
    opt_shape = jax.eval_shape(optimizer.init, lora)
    opt_shardings = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_shape,
        lora_shardings,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, lora_shardings, opt_shardings, replicated, replicated)


def jit_train_step(
    step: StepFunction, shardings: TrainState, frozen: nnx.State, mesh: Mesh
) -> StepFunction:
    """Return `step` compiled for `mesh`; its state is donated and stays where it is.

    Micro-batches arrive sharded over the data axes on their second axis (sharding.shard_batch).
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    frozen_shardings = jax.tree.map(lambda x: x.sharding, frozen)
    return jax.jit(
        step,
        in_shardings=(shardings, frozen_shardings, None, None, replicated, replicated, replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )


def init_state(lora: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state around `lora`, whose arrays are copied: steps donate theirs."""
    shardings = state_shardings(lora, optimizer, mesh)

    def build(lora: nnx.State) -> TrainState:
        lora = jax.tree.map(jnp.copy, lora)
        step, skipped, in_a_row = jnp.zeros((3,), jnp.int32)
        return TrainState(step, lora, optimizer.init(lora), skipped, in_a_row)

    return jax.jit(build, out_shardings=shardings)(lora)


# Cached: equal arguments give the very same function, by which compiled updates are found again.
@lru_cache
def learning_rate_schedule(
    peak: float, kind: Literal["linear", "cosine", "constant"], steps: int, warmup_fraction: float
) -> optax.Schedule:
    """Return a warm-up from zero to `peak`, then the named decay to zero at `steps`."""
    warmup = round(warmup_fraction * steps)
    rest = max(1, steps - warmup)
    decay = {
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[kind]()
    if warmup == 0:
        return decay
    # The first update already moves: it gets peak / warmup, not zero.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: TrainingConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Return AdamW on clipped gradients."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )
