"""The loop around the jitted step, the same for style adaptation and for fine-tuning.

All state that later updates depend on lies in one pytree (`Progress`), which is saved whole, and a
batch is a pure function of (seed, step): a resumed phase continues bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.prefetch import prefetch
from cogcalib_jax.data.stream import MAX_SHAPES, TrainStream
from cogcalib_jax.distributed import is_main
from cogcalib_jax.engine.checkpoint import CheckpointConfig, Checkpoints
from cogcalib_jax.engine.step import (
    SplitModel,
    StepFunction,
    StepMetrics,
    TrainState,
    init_state,
    jit_train_step,
    make_train_step,
    state_shardings,
)
from cogcalib_jax.errors import UserError
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.objective import GateInputs
from cogcalib_jax.sharding import length_multiple, local_part, replicate, shard_batch
from cogcalib_jax.training.config import TrainingConfig, make_optimizer
from cogcalib_jax.training.journal import Journal


@dataclass(frozen=True)
class Trainable:
    """What all phases of a run share."""

    model: SplitModel
    mesh: Mesh
    training: TrainingConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    dropout: bool
    """whether the LoRA layers drop inputs while training"""
    seed: int
    identity: dict[str, Any]
    """the resolved config as JSON: a checkpoint made with another one is refused"""

    def scalar(self, value: float) -> jax.Array:
        """A float32 scalar on every device."""
        return replicate(self.mesh, np.float32(value))


@dataclass(frozen=True)
class Phase:
    """One stretch of updates with one objective on one split."""

    name: str
    method: MethodConfig
    """resolved"""
    encoded: EncodedSplit
    steps: int
    schedule: optax.Schedule
    save_at: frozenset[int]
    """updates after which a checkpoint is written"""
    folder: Path
    first_step: int = 0
    """updates of earlier phases: steps in files count on from there"""

    @property
    def title(self) -> str:
        """What the progress bar calls it."""
        return self.name if self.name == "style" else self.method.label


class Progress(NamedTuple):
    """Everything a later update depends on."""

    state: TrainState
    threshold: jax.Array
    """float32 scalar, nats"""
    labels: jax.Array
    """float32 [rows of the split]: fixed knownness for the gates that use it"""
    best_lora: nnx.State
    """LoRA parameters at the lowest validation NLL so far"""
    best_nll: jax.Array
    best_step: jax.Array
    """float32 scalar: update at which best_lora was taken, counted within the phase"""


def begin(
    trainable: Trainable, phase: Phase, lora: nnx.State, threshold: float, labels: np.ndarray
) -> Progress:
    """The state before the first update: fresh optimizer, nothing validated yet."""
    optimizer = make_optimizer(trainable.training, phase.schedule)
    return Progress(
        state=init_state(lora, optimizer, trainable.mesh),
        threshold=trainable.scalar(threshold),
        labels=replicate(trainable.mesh, labels.astype(np.float32)),
        best_lora=jax.tree.map(jnp.copy, lora),
        best_nll=trainable.scalar(float("inf")),
        best_step=trainable.scalar(0),
    )


# (progress, updates made in this phase) -> progress; validation, refits and other pauses.
Pause = Callable[[Progress, int], Progress]


def run_phase(
    trainable: Trainable,
    phase: Phase,
    progress: Progress,
    journals: Sequence[Journal],
    pause: Pause,
) -> Progress:
    """All updates of `phase`, from `progress` or from the newest checkpoint in its folder.

    `pause(progress, 0)` runs before the first update of a fresh phase and `pause(progress, n)`
    after update n; checkpoints are written after the pause, so that they hold its outcome. The
    first of `journals` gets a line per logged update; on resume all are cut to the checkpoint.
    """
    checkpoints = Checkpoints(phase.folder / "checkpoints", trainable.checkpoint.keep)
    identity = trainable.identity | {"phase": phase.name}
    start = checkpoints.latest_step or 0
    if start:
        progress = checkpoints.restore(progress, identity)
    # Also without a checkpoint: the phase may have been killed before its first one.
    for journal in journals:
        journal.cut_to(phase.first_step + start)
    if not start:
        progress = pause(progress, 0)

    step_function = jit_step(trainable, phase.method, phase.schedule, progress.state.lora)
    stream = train_stream(trainable, phase.encoded, phase.steps)
    log = _StepLog(journals[0], phase, trainable.training)
    key = jax.random.fold_in(jax.random.key(trainable.seed), _stream(phase.name))
    key = jax.random.wrap_key_data(replicate(trainable.mesh, jax.random.key_data(key)))
    labels = np.asarray(progress.labels)
    weight = trainable.scalar(phase.method.weight)
    steps = range(start, phase.steps)
    batches = prefetch(lambda step: micro_batches(trainable, stream, step, labels), steps)
    bar = tqdm(
        total=phase.steps, initial=start, desc=phase.title, unit="step", disable=not is_main()
    )
    with bar:
        for step, (tokens, batch, batch_labels) in zip(steps, batches, strict=True):
            gate = GateInputs(progress.threshold, weight)
            # Whatever an update reads lies on the devices already: a copy that slipped in would
            # make the device wait for the host at every step.
            with jax.transfer_guard("disallow"):
                state, metrics = step_function(
                    progress.state, trainable.model.frozen, batch, batch_labels, gate, key
                )
            progress = progress._replace(state=state)
            log.updated(step, metrics, progress.threshold, tokens, bar)
            if step + 1 in phase.save_at:
                # Before the checkpoint: a resumed run writes only the lines after it. And a state
                # whose loss is not finite is never saved.
                log.flush(bar)
            with log.paused():
                progress = pause(progress, step + 1)
                if step + 1 in phase.save_at:
                    checkpoints.save(step + 1, progress, identity)
        log.flush(bar)
    checkpoints.close()
    return progress


def _stream(name: str) -> int:
    """Phases draw from different random streams of the run's seed."""
    return {"style": 0, "finetune": 1}[name]


def jit_step(
    trainable: Trainable, method: MethodConfig, schedule: optax.Schedule, lora: nnx.State
) -> StepFunction:
    """The jitted update of `method` (resolved), compiled at its first call with a shape."""
    optimizer = make_optimizer(trainable.training, schedule)
    step = make_train_step(
        trainable.model, optimizer, method, trainable.loss, dropout=trainable.dropout
    )
    shardings = state_shardings(lora, optimizer, trainable.mesh)
    return jit_train_step(step, shardings, trainable.model.frozen, trainable.mesh)


# A compiled shape pays for itself within this many updates: a step of a 0.5B model took 20 s to
# compile on two CPU cores, and a padded length more saves some tenths of a second an update.
STEPS_PER_SHAPE = 25


def train_stream(trainable: Trainable, encoded: EncodedSplit, steps: int) -> TrainStream:
    """The batches of a phase of `steps` updates; a short one gets few padded lengths."""
    return TrainStream(
        encoded,
        trainable.seed,
        trainable.training.batch_size,
        max_shapes=min(MAX_SHAPES, max(1, steps // STEPS_PER_SHAPE)),
        multiple=length_multiple(trainable.mesh),
    )


def micro_batches(
    trainable: Trainable, stream: TrainStream, step: int, labels: np.ndarray
) -> tuple[int, Batch, jax.Array]:
    """The batch of `step` as device arrays `[accumulation, micro-batch, ...]` with its labels, and
    how many real tokens it reads. Of several processes, each makes the rows its devices hold."""
    accumulation = trainable.training.accumulation
    size = trainable.training.batch_size // accumulation
    part = local_part(trainable.mesh, size)
    batch = stream.batch(step, (size * np.arange(accumulation)[:, None] + part.rows).ravel())
    # Both sizes written out: options of several tokens make axes of length 0, which hide a -1.
    split = (accumulation, len(part.rows))
    tree = jax.tree.map(lambda x: x.reshape(*split, *x.shape[1:]), (batch, labels[batch.row]))
    return stream.real_tokens(step), *shard_batch(trainable.mesh, tree, batch_axis=1, part=part)


class _StepLog:
    """Progress bar and metrics.jsonl, one update late so that host and device overlap."""

    def __init__(self, journal: Journal, phase: Phase, training: TrainingConfig):
        self._journal, self._phase, self._training = journal, phase, training
        self._pending: tuple[int, StepMetrics, jax.Array, int] | None = None
        self._since = time.perf_counter()
        self._steps_since = 0
        self._tokens_since = 0

    def paused(self) -> _Paused:
        return _Paused(self)

    def shift(self, seconds: float) -> None:
        """Time spent outside updates does not count as training time."""
        self._since += seconds

    def updated(
        self, step: int, metrics: StepMetrics, threshold: jax.Array, tokens: int, bar: tqdm
    ) -> None:
        self.flush(bar)
        self._pending = (step, metrics, threshold, tokens)

    def flush(self, bar: tqdm) -> None:
        if self._pending is None:
            return
        step, metrics, threshold, tokens = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
        if not np.isfinite(values["loss"]):
            broken = [name for name in ("ce", "cal", "grad_norm") if not np.isfinite(values[name])]
            raise UserError(
                f"training: the loss is not finite at step {step + 1} of {self._phase.name}"
                f" (not finite: {', '.join(broken) or 'loss'}); lower training.learning_rate"
                f" ({self._training.learning_rate}) or method.weight ({self._phase.method.weight})"
            )
        self._steps_since += 1
        self._tokens_since += tokens
        bar.update()
        last = step + 1 == self._phase.steps
        if (step + 1) % self._training.log_every and not last:
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        examples_per_s = self._steps_since * self._training.batch_size / seconds
        tokens_per_s = self._tokens_since / seconds
        self._since, self._steps_since, self._tokens_since = now, 0, 0
        self._journal.write(
            step=self._phase.first_step + step + 1,
            phase=self._phase.name,
            **values,
            threshold=float(threshold),
            lr=float(self._phase.schedule(step)),
            examples_per_s=round(examples_per_s, 2),
            tokens_per_s=round(tokens_per_s, 1),
        )
        bar.set_postfix_str(
            f"loss {values['loss']:.3f}, known {values['known_fraction']:.0%},"
            f" {examples_per_s:.0f} examples/s"
        )


class _Paused:
    """Context in which the training clock stands still."""

    def __init__(self, log: _StepLog):
        self._log = log

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._log.shift(time.perf_counter() - self._start)
