"""Trackers: callbacks that hand the numbers of a fine-tuning to a library which keeps them.

Their libraries belong to the extra `trackers`, and each is imported when its tracker is made. All
of them get the same names: style/loss, train/loss, train/known_fraction, threshold/value,
validation/nll and so on. The settings of the fine-tuning are a run's hyperparameters.
"""

from __future__ import annotations

import math
import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from flax.traverse_util import flatten_dict

from cogcalib_jax.errors import UserError
from cogcalib_jax.training.callbacks import (
    Callback,
    StartInfo,
    StepInfo,
    ThresholdInfo,
    ValidationInfo,
)

# Phases by what the names of their numbers begin with.
PREFIXES = {"style": "style", "finetune": "train"}
# MLflow takes no more parameters at once.
MLFLOW_BATCH = 100


def import_library(module: str, package: str) -> ModuleType:
    """Return a module of the extra `trackers`.

    Raises:
        UserError: it is not installed.
    """
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

    _start: StartInfo | None = None
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
        self._start = info

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
            self._begun = True
            self._begin(*_name_and_settings(self._start))
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


def _name_and_settings(start: StartInfo | None) -> tuple[str, dict[str, Any]]:
    if start is None:
        raise ValueError("on_start was not called; expected it before any number")
    counts = {"rows": start.rows, "style_steps": start.style_steps, "steps": start.steps}
    return start.method, flatten_dict(dict(start.config), sep=".") | counts


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
