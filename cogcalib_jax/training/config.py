"""Settings of training: length, learning rate, rows and their order, what is saved meanwhile."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import FieldError, UserError, check, check_counts, check_named
from cogcalib_jax.registry import Registry
from cogcalib_jax.settings import TAKEN, often, setting, with_new_names

OPTIMIZERS: Registry = Registry("optimizer", module="cogcalib_jax.training.variant")
DEFAULT_OPTIMIZER = "adamw"
LEARNING_RATES = "a number above 0 and at most a million"


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation of the LoRA parameters; the defaults follow the Laplace-LoRA line of work."""

    epochs: float = often(3.0, affects_style="style_steps")
    """passes over the fine-tuning split"""
    max_steps: int | None = often(None, affects_style="style_steps")
    """stop fine-tuning after this many updates, whatever epochs says"""
    batch_size: int = often(8)
    """examples per update, over all devices and micro-batches"""
    accumulation: int = 1
    """micro-batches an update's examples are split into, to save memory"""
    learning_rate: float = often(1e-4, affects_style="style_learning_rate")
    """peak learning rate of AdamW"""
    optimizer: str = setting(
        DEFAULT_OPTIMIZER, affects_style=False, added=True, registry=OPTIMIZERS
    )
    """of fine-tuning, with settings if wanted: ivon(ess=1e7) has a learning rate of its own, on the
    same schedule, and its adapter is a mean (docs/baselines.md); style adaptation takes adamw"""
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", affects_style=False)
    """decay after the warm-up, down to zero at the last step"""
    warmup_fraction: float = 0.06
    """share of the updates over which the learning rate rises from zero"""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay on LoRA parameters"""
    clip_norm: float = 1.0
    """gradients of a larger global norm are scaled down to it"""
    # A run that stopped at such an update may go on without it: until there, it was the same run.
    nonfinite: Literal["stop", "skip"] = setting("stop", affects_identity=False)
    """an update whose loss or gradient is not finite: stop there, or skip it; five skipped in a row
    stop the run in any case"""
    style_steps: int | None = None
    """plain cross-entropy updates before the first threshold; unset: 5 % of the updates"""
    style_learning_rate: float | None = None
    """constant learning rate of style adaptation after its warm-up; unset: learning_rate"""
    refit_every: int | None = setting(None, affects_style=False)
    """updates between fits of the threshold; unset: once an epoch"""
    validate_every: int | None = setting(None, affects_style=False)
    """updates between validations and probes; unset: once an epoch"""
    keep: Literal["last", "best"] = setting("last", affects_style=False)
    """the adapter that a run keeps: that of the last update, or of the lowest validation NLL"""
    probe_rows: int = setting(512, affects_style=False)
    """fine-tuning rows whose accuracy and confidence are followed over training; 0 for none"""
    log_every: int = 10
    """updates between lines of metrics.jsonl"""

    def __post_init__(self) -> None:
        check_named(self)
        check(0 < self.epochs <= 1e6, "epochs", "must be a number above 0 and at most a million")
        check_counts(self, "max_steps", "refit_every", "validate_every", unset=True)
        check_counts(self, "style_steps", least=0, unset=True)
        check(1 <= self.batch_size <= 2**20, "batch_size", f"must be an integer from 1 to {2**20}")
        check_counts(self, "accumulation", "log_every")
        check_counts(self, "probe_rows", least=0)
        check(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            f"must divide batch_size ({self.batch_size})",
        )
        # One beyond float32 is infinite on the device.
        check(0 < self.learning_rate <= 1e6, "learning_rate", f"must be {LEARNING_RATES}")
        check(
            self.style_learning_rate is None or 0 < self.style_learning_rate <= 1e6,
            "style_learning_rate",
            f"must be {LEARNING_RATES}, or unset",
        )
        check(0 <= self.warmup_fraction < 1, "warmup_fraction", "must be in [0, 1)")
        check(
            0 <= self.weight_decay < math.inf, "weight_decay", "must be a finite number, at least 0"
        )
        check(self.clip_norm > 0, "clip_norm", "must be a number above 0")
        # The default is one, and names are looked up with JAX, which reading a config spares.
        if self.optimizer != DEFAULT_OPTIMIZER:
            try:
                OPTIMIZERS.make(self.optimizer)
            except UserError as error:
                raise FieldError("optimizer", str(error)) from error

    def finetune_steps(self, rows: int) -> int:
        """Return the number of updates of fine-tuning over `rows` examples."""
        steps = max(1, math.ceil(self.epochs * rows / self.batch_size))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def style_updates(self, rows: int) -> int:
        """Return the number of updates of style adaptation for `rows` fine-tuning rows."""
        if self.style_steps is not None:
            return self.style_steps
        return max(1, round(0.05 * self.finetune_steps(rows)))

    def epoch_ends(self, rows: int) -> list[int]:
        """Return the updates that complete an epoch over `rows` examples, and the last one."""
        total = self.finetune_steps(rows)
        ends = [
            math.ceil(epoch * rows / self.batch_size)
            for epoch in range(1, math.ceil(self.epochs) + 1)
        ]
        return sorted({end for end in ends if end < total} | {total})


TAKEN["checkpoint.keep_best"] = False


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved and how much of it is kept."""

    every: int | None = None
    """steps between checkpoints; unset means at the end of each epoch"""
    keep: int = 2
    """checkpoints kept, newest first"""

    def __post_init__(self) -> None:
        check_counts(self, "every", unset=True)
        check_counts(self, "keep")


def require_same_identity(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to resume what was started with other settings, naming the first that differs."""
    # Through JSON, as stored ones went: tuples become lists.
    stored, wanted = json.loads(json.dumps([stored, wanted]))
    stored = with_new_names(stored)

    def differences(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [
                line
                for key in sorted(a.keys() | b.keys())
                for line in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
            ]
        return [] if a == b else [f"{path} is {b!r} but it was started with {a!r}"]

    different = differences(stored, wanted, "")
    if different:
        raise UserError(
            f"{folder}: cannot resume: {different[0]}; use the original value or another --run-dir"
        )


@dataclass(frozen=True)
class CompositionConfig:
    """The composition of the fine-tuning rows."""

    known_share: float | Literal["natural"] | None = None
    """share of rows the model knows, at equal size for every share; natural: as they come, at that
    size, too; unset: all rows as they are"""
    by: Literal["start", "world"] = "start"
    """decides if a row is known: the NLL rule on the style-adapted model, or the world's record"""

    def __post_init__(self) -> None:
        share = self.known_share
        if share not in (None, "natural"):
            check(0 <= share <= 1, "known_share", "must be from 0 to 1, natural, or unset")

    @property
    def asks_the_world(self) -> bool:
        """Return whether the rows themselves must say what the base knows."""
        return self.known_share is not None and self.by == "world"

    @property
    def words(self) -> str:
        """The known share in words, if `known_share` is set."""
        share = self.known_share
        return "the natural share" if share == "natural" else f"{share:.0%}"


def known_to_the_world(rows: EncodedSplit) -> np.ndarray:
    """Return knownness `[rows]` bool as the world states it; UserError for rows of other tasks."""
    if not all("known" in row.example.extra for row in rows):
        raise UserError(
            "composition.by = world: these rows do not say what the base knows, as only the"
            " world's do; use composition.by start"
        )
    return np.array([bool(row.example.extra["known"]) for row in rows])


def compose(
    rows: EncodedSplit,
    config: CompositionConfig,
    known_at_start: Callable[[], np.ndarray],
    seed: int,
) -> EncodedSplit:
    """The rows that are trained on, in their order; all of them without `known_share`.

    known_at_start: knownness `[rows]` bool by the method's rule on the style-adapted model. Raises
    UserError where all rows are known, or none is.
    """
    if config.known_share is None:
        return rows
    known = known_to_the_world(rows) if config.by == "world" else known_at_start()
    sizes = int(known.sum()), int((~known).sum())
    total = min(sizes)
    if total == 0:
        kind = "known" if sizes[1] == 0 else "unknown"
        raise UserError(
            f"composition.known_share = {config.known_share}: all {len(rows)} fine-tuning rows"
            f" are {kind}, so no share can be composed; use other rows, or leave it unset"
        )
    share = known.mean() if config.known_share == "natural" else config.known_share
    wanted = round(float(share) * total)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xC0DE])))
    order = rng.permutation(len(rows))
    chosen = np.concatenate([order[known[order]][:wanted], order[~known[order]][: total - wanted]])
    return EncodedSplit(rows[i] for i in sorted(chosen))
