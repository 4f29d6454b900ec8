"""The trackers of a run, one for each method, in the folder `tracking/` of the method.

Weights & Biases and MLflow follow the user's environment; without settings there, nothing leaves
this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.distributed import is_main
from cogcalib_jax.hf.files import public_name
from cogcalib_jax.settings import identity
from cogcalib_jax.training.callbacks import (
    MlflowTracker,
    StartInfo,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
    announced,
)
from cogcalib_jax.training.finetune import Trainer
from cogcalib_jax.training.log import step_info
from cogcalib_jax.training.storage import Journal

PROJECT = "cogcalib_jax"
# Sections and fields that do not describe a method.
LEFT_OUT = ("compare", "pretrain", "distributed")


def _tensorboard(place: Path, title: str, env: Mapping[str, str]) -> Tracker:
    return TensorBoardTracker(place / "tensorboard")


def _wandb(place: Path, title: str, env: Mapping[str, str]) -> Tracker:
    mode = env.get("WANDB_MODE", "offline")
    return WandbTracker(
        env.get("WANDB_PROJECT", PROJECT),
        name=title,
        mode=mode,
        dir=str(place),
        # stdout and stderr are the program's own.
        settings={"console": "off", "disable_git": True, "silent": mode == "offline"},
    )


def _mlflow(place: Path, title: str, env: Mapping[str, str]) -> Tracker:
    return MlflowTracker(
        env.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        tracking_uri=None if "MLFLOW_TRACKING_URI" in env else place / "mlflow",
        name=title,
    )


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, str]], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def make_trackers(
    names: Sequence[str], place: Path, title: str, env: Mapping[str, str] = os.environ
) -> list[Tracker]:
    """Return trackers, which have written nothing yet.

    Args:
        place: the folder for their files.
        title: their name of the run.

    Raises:
        UserError: a library is not installed.
    """
    return [TRACKERS[name](place, title, env) for name in names]


@contextmanager
def tracked(
    run_folder: Path,
    config: RunConfig,
    base: str | Path,
    trainer: Trainer,
    style_folder: Path,
    folder: Path,
) -> Iterator[Trainer]:
    """Yield a trainer that calls the trackers of `config`, for one fine-tuning.

    The main process tracks. Steps of style adaptation, which methods share, come from its journal.
    """
    if not config.track or not is_main():
        yield trainer
        return
    title = "/".join((run_folder.resolve().name, *folder.relative_to(run_folder).parts))
    place = folder / "tracking"
    place.mkdir(parents=True, exist_ok=True)
    trackers = make_trackers(config.track, place, title)
    begun = (folder / "metrics.jsonl").is_file()
    described = {k: v for k, v in identity(config).items() if k not in LEFT_OUT}
    start = StartInfo(
        rows=len(trainer.splits["train"]),
        style_steps=trainer.style_steps,
        steps=trainer.total_steps,
        method=config.method.label,
        config=described | {"base": public_name(base)},
    )
    with announced(trackers, start):
        lines = [] if begun else Journal(style_folder / "metrics.jsonl").read()
        for line in lines:
            if line["phase"] == "style":
                for tracker in trackers:
                    tracker.on_step(step_info(line))
        yield replace(trainer, trainable=replace(trainer.trainable, callbacks=trackers))
    for tracker in trackers:
        tracker.on_end(None)
