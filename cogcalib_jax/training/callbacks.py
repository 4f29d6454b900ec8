"""Callbacks: a caller hears of a fine-tuning while it runs; trackers hand it to a library.

Callbacks follow those of levanter and of transformers: a class whose methods do nothing, of which
a caller overrides what it needs. An exception in a callback ends the fine-tuning. The libraries of
trackers belong to the extra `trackers`, and each is imported when its tracker is made. All of them
get the same names: style/loss, train/loss, train/known_fraction, threshold/value, validation/nll
and so on. The settings of the fine-tuning are a run's hyperparameters.
"""

from __future__ import annotations

import math
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import nnx
from flax.traverse_util import flatten_dict

from cogcalib_jax.errors import UserError


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


# Phases by what the names of their numbers begin with.
PREFIXES = {"style": "style", "finetune": "train"}
# MLflow takes no more parameters at once.
MLFLOW_BATCH = 100


def import_library(module: str, package: str) -> ModuleType:
    """Return a module of the extra `trackers` (UserError: it is not installed)."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{package} is not installed; expected the library of the tracker. Install it with `pip"
            f" install {package}`, or all trackers with the extra `trackers`"
        ) from error


class Tracker(Callback):
    """The common part of trackers: a run begins with the first number and ends with the last.

    A fine-tuning that was finished before, and is only looked at again, begins no run. Numbers that
    are missing or not finite are left out.
    """

    _start: tuple[str, dict[str, Any]] | None = None
    _begun = False

    @abstractmethod
    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        """Begin a run; settings: dotted name -> value."""

    @abstractmethod
    def _log(self, numbers: dict[str, float], step: int) -> None:
        """Keep finite numbers of an update."""

    @abstractmethod
    def _finish(self, failed: bool) -> None:
        """End the run, which was begun."""

    def on_start(self, info: StartInfo) -> None:
        """Remember name and settings."""
        counts = {"rows": info.rows, "style_steps": info.style_steps, "steps": info.steps}
        self._start = info.method, flatten_dict(dict(info.config), sep=".") | counts

    def on_step(self, info: StepInfo) -> None:
        """Track the numbers of an update."""
        numbers = asdict(info)
        del numbers["step"], numbers["phase"]
        self._track(PREFIXES[info.phase], numbers, info.step)

    def on_threshold(self, info: ThresholdInfo) -> None:
        """Track a threshold and how well it tells right from wrong answers."""
        self._track(
            "threshold", {**info.record, "threshold": None, "value": info.threshold}, info.step
        )

    def on_validation(self, info: ValidationInfo) -> None:
        """Track the numbers of a validation."""
        self._track("validation", info.metrics, info.step)

    def on_end(self, result: Any) -> None:
        """End the run."""
        self._end(failed=False)

    def on_failure(self, error: BaseException) -> None:
        """End the run as one that failed."""
        self._end(failed=True)

    def _track(self, prefix: str, numbers: Mapping[str, Any], step: int) -> None:
        if not self._begun:
            if self._start is None:
                raise ValueError("on_start was not called; expected it before any number")
            self._begun = True
            self._begin(*self._start)
        self._log(
            {
                f"{prefix}/{name}": float(number)
                for name, number in numbers.items()
                if number is not None and math.isfinite(number)
            },
            step,
        )

    def _end(self, failed: bool) -> None:
        if self._begun:
            self._begun = False
            self._finish(failed)


class TensorBoardTracker(Tracker):
    """Write TensorBoard's event files, with tensorboardX.

    Args:
        log_dir: the folder, which `tensorboard --logdir` shows.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self, log_dir: str | Path):
        self._library = import_library("tensorboardX", "tensorboardX")
        self._log_dir = str(log_dir)

    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        self._writer = self._library.SummaryWriter(self._log_dir)
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
        # Its `add_hparams` would put them into a folder, and so a run, of their own.
        for summary in import_module("tensorboardX.summary").hparams(plain, {}):
            self._writer.file_writer.add_summary(summary)

    def _log(self, numbers: dict[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def _finish(self, failed: bool) -> None:
        self._writer.close()


class WandbTracker(Tracker):
    """Log to Weights & Biases.

    Args:
        project: where its run appears; None: what WANDB_PROJECT says, or wandb's default.
        init: further arguments of `wandb.init`, such as mode="offline", name, dir.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, project: str | None = None, **init: Any):
        self._library = import_library("wandb", "wandb")
        self._init = {"project": project, "reinit": "create_new"} | init

    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        self._run = self._library.init(**({"name": name, "config": settings} | self._init))

    def _log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def _finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowTracker(Tracker):
    """Log to MLflow.

    Args:
        experiment: where its run appears; it is made if there is none of that name.
        tracking_uri: a server, a database or a local folder; None: what MLFLOW_TRACKING_URI says,
            or MLflow's default.
        name: of the run; None: the method's.

    Raises:
        UserError: MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str = "cogcalib_jax",
        tracking_uri: str | Path | None = None,
        name: str | None = None,
    ):
        self._library = import_library("mlflow", "mlflow-skinny")
        self._experiment, self._name = experiment, name
        self._uri = tracking_uri
        if tracking_uri is not None and "://" not in str(tracking_uri):
            self._uri = Path(tracking_uri).absolute().as_uri()

    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        if str(self._uri).startswith("file:"):
            # MLflow 3 takes a folder only if told so. Its other local store, SQLite, needs the
            # whole of MLflow.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = self._library.MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            self._client.create_experiment(self._experiment)
            if found is None
            else found.experiment_id
        )
        self._run = self._client.create_run(experiment, run_name=self._name or name).info.run_id
        params = [self._library.entities.Param(k, str(v)) for k, v in settings.items()]
        for start in range(0, len(params), MLFLOW_BATCH):
            self._client.log_batch(self._run, params=params[start : start + MLFLOW_BATCH])

    def _log(self, numbers: dict[str, float], step: int) -> None:
        now, metric = round(1000 * time.time()), self._library.entities.Metric
        metrics = [metric(name, number, now, step) for name, number in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def _finish(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
