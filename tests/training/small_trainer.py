"""A trainer over a tiny decoder and random questions, and what a killed process looks like."""

import json
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import jax

from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.method.config import LossConfig
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.training.checkpoint import CheckpointConfig
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.finetune import Trainer, make_trainer
from cogcalib_jax.training.state import Trainable
from tests.inference.tiny import LORA, questions, tiny_decoder
from tests.models.small import one_device

TRAINING = TrainingConfig(
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
    style_steps=3,
    refit_every=2,
    validate_every=3,
    probe_rows=10,
    log_every=1,
)
SIZES = {"style": 12, "train": 20, "calibration": 24, "validation": 12}
# Times differ between two runs; nothing else may.
TIMES = ("examples_per_s", "tokens_per_s")


class Killed(BaseException):
    """The process ends here: nothing in between may catch it."""


@cache
def model():
    return split_model(tiny_decoder(lora=replace(LORA, lora_dropout=0.2)))


@cache
def splits():
    """Prompts of one padded length, so that every pass compiles once."""
    return {
        name: questions(n, seed=seed, options=(4,), longest=8)
        for seed, (name, n) in enumerate(SIZES.items())
    }


@cache
def trainer(training: TrainingConfig = TRAINING, every: int | None = 2) -> Trainer:
    trainable = Trainable(
        model=model()[0],
        mesh=one_device(),
        training=training,
        # In the vocabulary a random model answers nothing right: there would be no threshold.
        loss=LossConfig(space="options"),
        checkpoint=CheckpointConfig(every=every),
        dropout=True,
        seed=0,
        identity={"seed": 0, "training": asdict(training)},
        made_from={"base": "tiny"},
    )
    made = make_trainer(trainable, EvaluationConfig(batch_size=24), splits())
    if (training, every) == (TRAINING, 2):
        return made
    # Scoring does not depend on how one trains: it is compiled once for all trainers.
    return replace(made, predictor=trainer().predictor, losses=trainer().losses)


def lora():
    return model()[1]


def lines(folder: Path, name: str = "metrics.jsonl", phase: str | None = None) -> list[dict]:
    records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    for record in records:
        for time in TIMES:
            record.pop(time, None)
    return [r for r in records if phase in (None, r.get("phase"))]


def checksums(folder: Path) -> dict[str, str]:
    """Of every array of the newest checkpoint."""
    places = (folder / "checkpoints").iterdir()
    newest = max((p for p in places if p.name.isdigit()), key=lambda p: int(p.name))
    return {"step": newest.name} | json.loads((newest / "manifest.json").read_text())["leaves"]


def without_last_checkpoint(folder: Path, to: Path) -> Path:
    """Copy a finished method as it was when killed after the checkpoint before the last."""
    shutil.copytree(folder, to)
    *before, last = sorted((to / "checkpoints").iterdir(), key=lambda place: int(place.name))
    assert before
    shutil.rmtree(last)
    return to


def same_bits(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))
