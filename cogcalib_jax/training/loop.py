"""The loop around the jitted step, the same for style adaptation and for fine-tuning.

All state that later updates depend on lies in one pytree (`Progress`), which is saved whole, and a
batch is a pure function of (seed, step): a resumed phase continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from cogcalib_jax.console import progress_bar, say
from cogcalib_jax.data.batching import Batch, StartBelief
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.stream import AnchorStream, TrainStream, prefetch
from cogcalib_jax.distributed import is_one_of_several, stops_after_phase, stops_after_update
from cogcalib_jax.errors import Preempted, held_back, requested
from cogcalib_jax.method.config import MethodConfig, Space
from cogcalib_jax.sharding import length_multiple, local_part, replicate, shard_batch
from cogcalib_jax.training.callbacks import CheckpointInfo
from cogcalib_jax.training.log import StepLog
from cogcalib_jax.training.state import AnchorRows, Phase, Progress, Trainable
from cogcalib_jax.training.step import (
    StepFunction,
    StepMetrics,
    jit_train_step,
    make_train_step,
    state_shardings,
)
from cogcalib_jax.training.storage import Journal

# The numbers by which the random keys of phases differ.
KEYS = {"style": 0, "finetune": 1}
# (progress, updates made in this phase) -> progress; validation, refits and other pauses.
Pause = Callable[[Progress, int], Progress]


@dataclass
class _Course:
    """The mutable state of a running phase, consistent whenever SIGTERM can interrupt."""

    progress: Progress
    updates: int
    pause_done: bool
    """whether the pause after the last update (refit, validation) is over"""
    saved: bool
    """whether a checkpoint holds just this"""


def run_phase(
    trainable: Trainable,
    phase: Phase,
    progress: Progress,
    journals: Sequence[Journal],
    pause: Pause,
) -> Progress:
    """Run all updates of `phase`, from `progress` or from the newest checkpoint in its folder.

    `pause(progress, 0)` runs before the first update of a fresh phase and `pause(progress, n)`
    after update n; checkpoints are written after the pause, so that they hold its outcome. The
    first of `journals` gets a line per logged update; on resume all are cut to the checkpoint, and
    one that goes on from lines that are gone is not used.

    Raises:
        Preempted: SIGTERM or Ctrl-C came. The state after the last update is saved, without what
            would have followed it: on resume, that comes first.
    """
    identity = trainable.identity | {
        # That of the run names all methods of a comparison, and `name` only abbreviates.
        "method": asdict(replace(phase.method, name=None)),
        "made_from": trainable.made_from,
        "phase": phase.name,
    }
    if phase.anchors is not None:
        # Not in `made_from`, which style adaptation has, too.
        identity["anchor_data"] = phase.anchors.data_hash
    folder = phase.folder / "checkpoints"
    # Of several processes none may leave the others alone in a refit: all stop after an update.
    to_the_end = held_back if is_one_of_several() else nullcontext
    with trainable.storage.checkpoints(folder, trainable.checkpoint) as checkpoints, to_the_end():
        restored = checkpoints.restore(progress, identity, [journal.path for journal in journals])
        done_before = 0
        if restored is None:
            course = _Course(progress, 0, pause_done=False, saved=True)
        else:
            done_before = restored.step
            say(f"   {phase.title}: goes on from update {done_before} of {phase.steps}")
            course = _Course(
                restored.tree, done_before, pause_done=not restored.stopped, saved=True
            )
        # Also without a checkpoint: the phase may have been killed before its first one.
        for journal in journals:
            journal.cut_to(restored.journals[journal.path.name] if restored else 0)
        if not course.pause_done:
            course.progress = pause(course.progress, done_before)
            course.pause_done, course.saved = True, done_before == 0

        def save() -> None:
            now = course.progress
            sizes = {journal.path: journal.size() for journal in journals}
            stopped = not course.pause_done
            checkpoints.save(course.updates, now, identity, sizes, stopped=stopped)
            course.saved = True
            for callback in trainable.callbacks:
                callback.on_checkpoint(CheckpointInfo(phase.first_step + course.updates, folder))

        if done_before in phase.save_at and not course.saved:
            save()
        log = StepLog(journals[0], phase, trainable.training, trainable.callbacks)
        batches, update = _updates(trainable, phase, course)
        with progress_bar(phase.steps, phase.title, "step", start=done_before) as bar:
            try:
                for tokens, batch, gate_labels in batches:
                    # SIGTERM waits: the state is donated to the update, and whole only after it.
                    with held_back():
                        metrics = update(course, batch, gate_labels)
                        step, threshold = course.updates - 1, course.progress.threshold
                        log.updated(step, metrics, threshold, tokens, bar)
                        if course.updates in phase.save_at | phase.pause_at:
                            # Before the checkpoint: a resumed run writes only the lines after it.
                            # And a state whose loss is not finite is never saved.
                            log.flush(bar)
                    if stops_after_update():
                        raise requested() or Preempted
                    with log.paused(), _taken_back(journals, course):
                        after = pause(course.progress, course.updates)
                        with held_back():
                            course.progress, course.pause_done = after, True
                            if course.updates in phase.save_at:
                                save()
                if stops_after_phase():
                    raise requested() or Preempted
            except Preempted as stopped:
                log.flush(bar)
                if not course.saved:
                    save()
                checkpoints.wait()
                raise stopped.with_words(
                    f"saved after update {course.updates} of {phase.steps} ({phase.title})"
                ) from None
            log.flush(bar)
    return course.progress


@contextmanager
def _taken_back(journals: Sequence[Journal], course: _Course) -> Iterator[None]:
    """Remove the lines of a pause that SIGTERM ended: on resume it is done again."""
    sizes = [journal.size() for journal in journals]
    try:
        yield
    except Preempted:
        if not course.pause_done:
            for journal, size in zip(journals, sizes, strict=True):
                journal.cut_to(size)
        raise


# (course, batch, gate labels) -> what the update measured; the course is one update further.
Update = Callable[[_Course, Batch, jax.Array], StepMetrics]


def _updates(
    trainable: Trainable, phase: Phase, course: _Course
) -> tuple[Iterator[tuple[int, Batch, jax.Array]], Update]:
    """Return the batches that remain, each with its real tokens and gate labels, and the update."""
    step_function = jit_step(trainable, phase.schedule, course.progress.state.lora)
    stream = train_stream(trainable, phase.encoded, phase.steps, phase.method)
    key = jax.random.fold_in(jax.random.key(trainable.seed), KEYS[phase.name])
    key = jax.random.wrap_key_data(replicate(trainable.mesh, jax.random.key_data(key)))
    all_labels = np.asarray(course.progress.labels)
    anchor = None if phase.anchors is None else phase.anchors.config.build()
    # Every number of the method becomes a scalar on the devices, an argument of the step.
    method = jax.tree.map(trainable.scalar, replace(phase.method.build(), anchor=anchor))

    def update(course: _Course, batch: Batch, gate_labels: jax.Array) -> StepMetrics:
        now = course.progress
        # Whatever an update reads lies on the devices already: a copy that slipped in would make
        # the device wait for the host at every step.
        with jax.transfer_guard("disallow"):
            state, metrics = step_function(
                now.state, trainable.model.frozen, batch, gate_labels, now.threshold, method, key
            )
        course.progress = now._replace(state=state)
        course.updates += 1
        course.pause_done = course.saved = False
        return metrics

    steps = range(course.updates, phase.steps)
    start, anchors = phase.start, phase.anchors
    held = None if anchors is None else anchor_stream(trainable, anchors, method.space)

    def made(step: int) -> tuple[int, Batch, jax.Array]:
        tokens, batch, gate_labels = micro_batches(trainable, stream, step, all_labels, start)
        if held is not None:
            batch = batch._replace(anchor=anchor_batches(trainable, anchors, held, step))
            tokens += held.real_tokens(step)
        return tokens, batch, gate_labels

    return prefetch(made, steps), update


def jit_step(trainable: Trainable, schedule: optax.Schedule, lora: nnx.State) -> StepFunction:
    """Return the jitted update, compiled at its first call with a shape and a kind of method.

    It is made once for all that it closes over: phases whose methods differ in numbers only run
    one compiled program.
    """
    model, made = trainable.model, trainable.steps
    key = (model.graphdef, trainable.training, trainable.loss, trainable.dropout)
    key += (trainable.variant,)
    if (*key, schedule) not in made:
        optimizer = trainable.optimizer(schedule)
        step = make_train_step(
            *(model, optimizer, trainable.loss),
            dropout=trainable.dropout,
            variant=trainable.variant,
        )
        shardings = state_shardings(lora, optimizer, trainable.mesh)
        made[*key, schedule] = jit_train_step(step, shardings, model.frozen, trainable.mesh)
    return made[*key, schedule]


# Rough costs, which only choose how many padded lengths are compiled. An update took 6 to 20 s to
# compile (SmolLM2-135M and a 0.5B model, two CPU cores). A token takes 8 operations a weight:
# forward, twice that backward, and forward again where activations are not kept.
COMPILE_SECONDS = 10.0
TOKEN_FLOPS = 8
RATES = {"cpu": 2e11}
"""FLOP/s of all devices of a platform together"""
DEVICE_RATE = 2e14
"""FLOP/s of one device of other platforms"""


def _tokens_per_shape(trainable: Trainable) -> float:
    """Return how many tokens are trained on in the time that a padded length takes to compile."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(trainable.model.frozen))
    mesh = trainable.mesh
    rate = RATES.get(mesh.devices.flat[0].platform, mesh.size * DEVICE_RATE)
    return COMPILE_SECONDS * rate / (TOKEN_FLOPS * weights)


def train_stream(
    trainable: Trainable, encoded: EncodedSplit, steps: int, method: MethodConfig
) -> TrainStream:
    """Return the batches of `steps` updates with `method`.

    A short training, or one of a small model, gets few padded lengths, as each is compiled.
    """
    spaces = trainable.loss.space, method.build().term_space
    return TrainStream(
        encoded,
        trainable.seed,
        trainable.training.batch_size,
        steps=steps,
        tokens_per_shape=_tokens_per_shape(trainable),
        multiple=length_multiple(trainable.mesh),
        option_score=trainable.tree_rule(encoded, *spaces),
    )


def micro_batches(
    trainable: Trainable,
    stream: TrainStream,
    step: int,
    all_labels: np.ndarray,
    start: StartBelief | None = None,
) -> tuple[int, Batch, jax.Array]:
    """Return how many real tokens the batch of `step` reads, the batch as device arrays
    `[accumulation, micro-batch, ...]`, and its gate labels; `all_labels`: `[rows of the split]`."""

    def rows(part: np.ndarray) -> tuple[Batch, np.ndarray]:
        batch = _with_beliefs(stream.batch(step, part), start)
        return batch, all_labels[batch.row]

    return stream.real_tokens(step), *_on_devices(trainable, trainable.training.batch_size, rows)


def anchor_stream(trainable: Trainable, anchors: AnchorRows, space: Space) -> AnchorStream:
    """Return the anchor rows of a phase's updates, for a term in `space`."""
    return AnchorStream(
        anchors.questions,
        trainable.seed,
        anchors.config.rows_per_step,
        multiple=length_multiple(trainable.mesh),
        option_score=trainable.tree_rule(anchors.questions, space),
    )


def anchor_batches(
    trainable: Trainable, anchors: AnchorRows, stream: AnchorStream, step: int
) -> Batch:
    """The anchor rows of `step` as device arrays `[accumulation, rows of a micro-batch, ...]`."""
    return _on_devices(
        trainable,
        anchors.config.rows_per_step,
        lambda part: _with_beliefs(stream.batch(step, part), anchors.start),
    )


def _with_beliefs(batch: Batch, start: StartBelief | None) -> Batch:
    """Return `batch` with the beliefs of its rows, taken from those of all rows."""
    if start is None:
        return batch
    positions = batch.positions.shape[1]
    return batch._replace(start=jax.tree.map(lambda x: np.asarray(x[batch.row, :positions]), start))


def _on_devices(trainable: Trainable, size: int, rows: Callable[[np.ndarray], Any]) -> Any:
    """Arrays of `size` rows cut into micro-batches; rows: from positions in the batch to a pytree
    of arrays `[positions, ...]`. Of several processes, each makes those its devices hold."""
    accumulation = trainable.training.accumulation
    size //= accumulation
    part = local_part(trainable.mesh, size)
    made = rows((size * np.arange(accumulation)[:, None] + part.rows).ravel())
    # Both sizes written out: options of several tokens make axes of length 0, which hide a -1.
    split = (accumulation, len(part.rows))
    tree = jax.tree.map(lambda x: x.reshape(*split, *x.shape[1:]), made)
    return shard_batch(trainable.mesh, tree, batch_axis=1, part=part)
