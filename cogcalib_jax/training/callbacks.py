"""Callbacks: a caller hears of a fine-tuning while it runs.

Callbacks follow those of levanter and of transformers: a class whose methods do nothing, of which
a caller overrides what it needs. An exception in a callback ends the fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx


@dataclass(frozen=True)
class StartInfo:
    """The work that is about to begin."""

    rows: int
    """fine-tuning rows"""
    style_steps: int
    """updates of plain cross-entropy before the threshold"""
    steps: int
    """updates of gated fine-tuning"""
    method: str
    """the method's name, such as "cols" """
    config: Mapping[str, Any]
    """all settings of method, loss, training and adapter, JSON-able"""


@dataclass(frozen=True)
class StepInfo:
    """One update; losses are means over its examples, in nats."""

    step: int
    """updates so far, style adaptation included"""
    phase: str
    """"style" or "finetune" """
    loss: float
    ce: float
    """cross-entropy"""
    term: float
    """the calibration term, ungated and unweighted"""
    gated_fraction: float
    """share of the examples that the term applied to"""
    known_fraction: float
    """share of the examples with NLL at most the threshold"""
    grad_norm: float
    learning_rate: float
    threshold: float
    """nats; -infinity while nothing counts as known"""


@dataclass(frozen=True)
class ThresholdInfo:
    """One fit of the threshold on the calibration split."""

    step: int
    threshold: float
    """nats"""
    record: Mapping[str, Any]
    """all numbers of the fit, as in metrics.jsonl"""


@dataclass(frozen=True)
class ValidationInfo:
    """One validation."""

    step: int
    epoch: float
    metrics: Mapping[str, float | None]
    """accuracy, confidence, nll, gold_nll, brier, ece and auroc on the validation split"""
    lora: nnx.State
    """the adapter's parameters of this moment; the next update overwrites the arrays"""
    wrap: Callable[[nnx.State], Any] | None = None

    @property
    def model(self) -> Any:
        """The `Model` of this moment, to ask anything else; use it within the callback."""
        if self.wrap is None:
            raise ValueError("model is None; expected a fine-tuning that finetune() started")
        return self.wrap(self.lora)


@dataclass(frozen=True)
class CheckpointInfo:
    """One saved checkpoint."""

    step: int
    folder: Path


class Callback:
    """Override what you need; every method does nothing."""

    def on_start(self, info: StartInfo) -> None:
        """Called before the first update."""

    def on_step(self, info: StepInfo) -> None:
        """Called for each update, one update later."""

    def on_threshold(self, info: ThresholdInfo) -> None:
        """Called after each fit of the threshold."""

    def on_validation(self, info: ValidationInfo) -> None:
        """Called after each validation."""

    def on_checkpoint(self, info: CheckpointInfo) -> None:
        """Called after each checkpoint, which may not be on the disk yet."""

    def on_end(self, result: Any) -> None:
        """Called at the end; `result` is the `FinetuneResult` that `finetune` returns."""

    def on_failure(self, error: BaseException) -> None:
        """Called instead of `on_end` after an error or Ctrl-C, which is then raised again."""


@contextmanager
def announced(callbacks: Sequence[Callback], start: StartInfo) -> Iterator[None]:
    """Call `on_start`, and `on_failure` if the block raises; `on_end` is the caller's, after it."""
    try:
        for callback in callbacks:
            callback.on_start(start)
        yield
    except BaseException as error:
        for callback in callbacks:
            callback.on_failure(error)
        raise
