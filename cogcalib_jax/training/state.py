"""The inputs of a training phase, and the state that its later updates depend on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.data.batching import StartBelief
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.inference.option_score import DEFAULT_OPTION_SCORE, OptionScore
from cogcalib_jax.method.config import AnchorConfig, LossConfig, MethodConfig, Space
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import replicate
from cogcalib_jax.training.callbacks import Callback
from cogcalib_jax.training.config import CheckpointConfig, TrainingConfig
from cogcalib_jax.training.step import StepFunction, TrainState, init_state, make_optimizer
from cogcalib_jax.training.storage import Files, Storage
from cogcalib_jax.training.variant import PLAIN, Variant


@dataclass(frozen=True)
class AnchorRows:
    """A run's questions without answers, and the term that holds the model on them."""

    config: AnchorConfig
    questions: EncodedSplit
    data_hash: str
    """of the questions: a checkpoint made with others is refused"""
    start: StartBelief | None = None
    """by question, for a term that compares with the start"""


@dataclass(frozen=True)
class Trainable:
    """The parts that all phases of a run share."""

    model: FrozenModel
    mesh: Mesh
    training: TrainingConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    dropout: bool
    """whether the LoRA layers drop inputs while training"""
    seed: int
    identity: dict[str, Any]
    """the resolved config as JSON: a checkpoint made with another one is refused"""
    made_from: dict[str, Any] = field(default_factory=dict)
    """hashes of the base's weights and of the rows, JSON: likewise"""
    option_score: OptionScore = DEFAULT_OPTION_SCORE
    """the rule that scores options of several tokens"""
    variant: Variant = PLAIN
    """what a baseline or the optimizer changes in an update of fine-tuning"""
    anchors: AnchorRows | None = None
    """what fine-tuning, and not style adaptation, is held on"""
    steps: dict[Hashable, StepFunction] = field(default_factory=dict, compare=False)
    """jitted updates by all that they close over; shared by what `replace` makes of this"""
    storage: Storage = field(default_factory=Files)
    callbacks: Sequence[Callback] = ()

    def optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Return the transformation of gradients into updates."""
        plain = make_optimizer(self.training, schedule)
        return self.variant.optimizer(plain, schedule, self.training.learning_rate)

    def branching(self, encoded: EncodedSplit, *spaces: Space | None) -> OptionScore | None:
        """Return the rule that scores options if batches of `encoded` must hold all of them.

        spaces: those of the loss and the terms that see the batches.
        """
        whole = "options" in spaces and not encoded.single_token_options
        return self.option_score if whole else None

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
    pause_at: frozenset[int] = frozenset()
    """updates after which a pause writes lines: that of the update comes before them"""
    start: StartBelief | None = None
    """by row of `encoded`, for a term that compares with the start"""
    anchors: AnchorRows | None = None
    first_step: int = 0
    """updates of earlier phases: steps in files count on from there"""

    @property
    def title(self) -> str:
        """The name in the progress bar."""
        return self.name if self.name == "style" else self.method.label


class Progress(NamedTuple):
    """Everything a later update depends on."""

    state: TrainState
    threshold: jax.Array
    """float32 scalar, nats"""
    labels: jax.Array
    """float32 [rows of the split]: fixed knownness for the gates that use it"""
    best_lora: nnx.State
    """trained parameters at the lowest validation NLL so far"""
    best_nll: jax.Array
    best_step: jax.Array
    """float32 scalar: update at which best_lora was taken, counted within the phase"""


def begin(
    trainable: Trainable, phase: Phase, lora: nnx.State, threshold: float, labels: np.ndarray
) -> Progress:
    """The state before the first update: fresh optimizer, nothing validated yet.

    lora: LoRA parameters of the start.
    """
    lora = trainable.variant.begin(lora)
    optimizer = trainable.optimizer(phase.schedule)
    return Progress(
        state=init_state(lora, optimizer, trainable.mesh),
        threshold=trainable.scalar(threshold),
        labels=replicate(trainable.mesh, labels.astype(np.float32)),
        best_lora=jax.tree.map(jnp.copy, lora),
        best_nll=trainable.scalar(float("inf")),
        best_step=trainable.scalar(0),
    )
