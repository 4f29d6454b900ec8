"""The inputs of a training phase, and the state that its later updates depend on.

Beliefs of the start about training and anchor rows are computed once before training. The start is
the model in which the gated phase begins. A term that compares with it reads these arrays, so the
training step holds no second model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.console import say
from cogcalib_jax.data.batching import (
    Batch,
    StartBelief,
    length_buckets,
    prompt_lengths,
    question_batches,
    scored_batches,
    without_answers,
)
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, OptionScore
from cogcalib_jax.inference.forward import start_belief
from cogcalib_jax.inference.predict import SplitPass
from cogcalib_jax.method.config import AnchorConfig, LossConfig, MethodConfig, Space
from cogcalib_jax.method.loss import Objective
from cogcalib_jax.method.terms import Term
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import replicate
from cogcalib_jax.training.callbacks import Callback
from cogcalib_jax.training.config import CheckpointConfig, TrainingConfig
from cogcalib_jax.training.step import StepFunction, TrainState, init_state, make_optimizer
from cogcalib_jax.training.storage import Files
from cogcalib_jax.training.variant import PLAIN, Variant

# Above this many bytes the start's beliefs lie in files that are mapped into memory.
IN_MEMORY = 4 * 2**30


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
    storage: Files = field(default_factory=Files)
    callbacks: Sequence[Callback] = ()

    def optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Return the transformation of gradients into updates."""
        plain = make_optimizer(self.training, schedule)
        return self.variant.optimizer(plain, schedule, self.training.learning_rate)

    def tree_rule(self, encoded: EncodedSplit, *spaces: Space | None) -> OptionScore | None:
        """Return the rule that scores options if batches of `encoded` must hold all of them.

        spaces: those of the loss and the terms that see the batches.
        """
        whole = "options" in spaces and encoded.needs_trees(self.option_score)
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
    """The state before the first update from LoRA parameters `lora`: fresh optimizer, nothing
    validated."""
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


def start_beliefs(
    trainable: Trainable,
    method: Objective,
    lora: nnx.State,
    encoded: EncodedSplit,
    batch_size: int,
    scratch: Callable[[], Path],
) -> StartBelief | None:
    """Return the start's beliefs by row of `encoded`; None if the method's term asks for none.

    Args:
        scratch: gives the folder of the arrays if they take more than `IN_MEMORY` bytes.
    """
    if method.term is None or not method.term.needs_start:
        return None
    rule = trainable.tree_rule(encoded, trainable.loss.space, method.space)
    batches = scored_batches(encoded, batch_size, rule)
    positions = encoded.answer_tokens if rule is None else encoded.scored_tokens.max()
    shape = len(encoded), int(positions)
    return _beliefs(trainable, method.term, method.space, lora, batches, shape, scratch)


def anchors_with_start(
    anchors: AnchorRows,
    trainable: Trainable,
    space: Space,
    lora: nnx.State,
    batch_size: int,
    scratch: Callable[[], Path],
    temperature: float = 1.0,
) -> AnchorRows:
    """Return `anchors` with the start's beliefs of their answers' first token, or of their options
    in options space, if their term asks for those.

    temperature: it divides the start's scores; other arguments as for `start_beliefs`.
    """
    term, questions = anchors.config.build().term, anchors.questions
    if not term.needs_start:
        return anchors
    rule = trainable.tree_rule(questions, space)
    if rule is None:
        buckets = length_buckets(prompt_lengths(questions))
        batches = question_batches(questions, batch_size, buckets)
    else:
        batches = map(without_answers, scored_batches(questions, batch_size, rule))
    shape = len(questions), 1
    start = _beliefs(trainable, term, space, lora, batches, shape, scratch, temperature)
    return replace(anchors, start=start)


def _beliefs(
    trainable: Trainable,
    term: Term,
    space: Space,
    lora: nnx.State,
    batches: Iterable[Batch],
    shape: tuple[int, int],
    scratch: Callable[[], Path],
    temperature: float = 1.0,
) -> StartBelief:
    """The beliefs that `term` asks for; shape: rows and scored positions of all `batches`."""
    top = min(term.top, trainable.model.merge(lora).config.vocab_size)
    function = partial(start_belief, space=space, top=top, temperature=temperature)
    passed = SplitPass(trainable.model, trainable.mesh, function)
    arrays: dict[str, np.ndarray] = {}
    for batch in batches:
        rows, belief = passed(lora, [batch])
        found = {name: x for name, x in belief._asdict().items() if x is not None}
        if not arrays:
            axes = (shape[0], 1 if space == "options" else shape[1])
            arrays = _allocate(found, axes, scratch)
        for name, values in found.items():
            # Trees of another padded length have fewer scored positions.
            arrays[name][rows, : values.shape[1]] = values
    return StartBelief(**arrays)


def _allocate(
    found: dict[str, np.ndarray], axes: tuple[int, int], scratch: Callable[[], Path]
) -> dict[str, np.ndarray]:
    """Arrays like those of a batch, with other first two axes."""
    shapes = {name: (*axes, *values.shape[2:]) for name, values in found.items()}
    size = sum(math.prod(shapes[name]) * found[name].itemsize for name in found)
    folder = scratch() if size > IN_MEMORY else None
    place = "memory" if folder is None else f"files in {folder}"
    say(f"   the start's beliefs of {axes[0]:,} rows: {size / 1e6:.1f} MB in {place}")
    if folder is None:
        return {name: np.zeros(shape, found[name].dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", found[name].dtype, shape)
        for name, shape in shapes.items()
    }
