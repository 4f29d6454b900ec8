"""The candidates of tuning, trained one by one; what each believes is kept as soon as it is known.

FOLDER/seed-S/epochs-E/          a run folder: its style phase is the start of all candidates
FOLDER/seed-S/epochs-E/tried/    a file for each finished training, named as in compare
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogcalib_jax.configlib import style_identity
from cogcalib_jax.data.json_values import as_json
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of, write_whole
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.assemble import say, with_own_lora
from cogcalib_jax.runs.config import RunConfig, require_same_config
from cogcalib_jax.runs.stored import CONFIG_FILE, read_config
from cogcalib_jax.runs.train import composed, open_run
from cogcalib_jax.studies.choosing import BEST_EPOCH, SFT, TEMPERATURE, Candidate
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, finetune, style_phase
from cogcalib_jax.training.validation import Belief, options_belief

KEPT = ("correct", "confidence", "nll")


@dataclass(frozen=True)
class Trial:
    """Candidates of one seed and length, which share their start."""

    config: RunConfig
    entries: tuple[str, ...]
    """methods as in compare, with their weights; `sft` stands for what is derived from it, too"""
    folder: Path

    def tried(self, entry: str) -> Path:
        """The file of a finished training."""
        return self.folder / "tried" / f"{entry}.json"

    @property
    def missing(self) -> list[str]:
        """Entries that are not finished."""
        return [entry for entry in self.entries if not self.tried(entry).is_file()]

    def method(self, entry: str) -> MethodConfig:
        (method,) = replace(self.config, compare=(entry,)).resolved_methods().values()
        return method


def require_same_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Whatever lies in `folder` was tried with this config, but for its seed and length.

    Raises UserError with the first field that differs.
    """
    config = trials[0].config
    for file in sorted(folder.glob(f"seed-*/epochs-*/{CONFIG_FILE}")):
        stored = read_config(file.parent, RunConfig)
        training = replace(config.training, epochs=stored.training.epochs)
        asked = with_own_lora(replace(config, seed=stored.seed, training=training))
        require_same_config(file.parent, asked)


def train_missing(trial: Trial, argv: Sequence[str]) -> None:
    """Train what is not finished, and keep what it believes; a begun training goes on."""
    folder, missing = trial.folder, trial.missing
    if not missing:
        return
    resume = (folder / CONFIG_FILE).is_file()
    run = open_run(replace(trial.config, resume=resume), "tune", list(argv))
    style = folder / "style"
    start = style_phase(run.trainer, run.assembled.lora, style, style_identity(run.config))
    run = composed(run, start)
    for entry in missing:
        at = f"{trial.entries.index(entry) + 1} of {len(trial.entries)}"
        epochs = trial.config.training.epochs
        say(f"== seed {trial.config.seed}, {epochs:g} epochs: {entry} ({at})")
        method, place = trial.method(entry), folder / entry
        result = finetune(run.trainer, method, start, style, place)
        belief = run.trainer.belief(result.lora, run.trainer.splits["validation"])
        found = {SFT if entry == SFT else f"{method.label}, weight {method.weight:g}": belief}
        if entry == SFT:
            found |= _derived(run.trainer, result)
        kept = {
            name: {key: getattr(belief, key).tolist() for key in KEPT}
            for name, belief in found.items()
        }
        write_whole(trial.tried(entry), json.dumps(as_json(kept), allow_nan=False))
        # Only beliefs are compared; of dozens of trainings the weights would fill a disk.
        shutil.rmtree(place)


def read_trial(trial: Trial) -> list[tuple[Candidate, Belief]]:
    """What was kept of a trial with nothing missing, in the order it was asked for."""
    results = []
    for entry in trial.entries:
        file = trial.tried(entry)
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            beliefs = {
                name: Belief(**{key: np.array(one[key], np.float64) for key in KEPT}, brier=None)
                for name, one in kept.items()
            }
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file}: damaged ({reason_of(error)}); remove it, and it is trained again"
            ) from error
        for name, belief in beliefs.items():
            method = None if name in (BEST_EPOCH, TEMPERATURE) else trial.method(entry)
            candidate = Candidate(name, trial.config.training.epochs, method)
            results.append((candidate, belief))
    return results


def _derived(trainer: Trainer, result: FinetuneResult) -> dict[str, Belief]:
    """What plain fine-tuning also gives, by name."""
    validation = trainer.splits["validation"]
    derived = {BEST_EPOCH: trainer.belief(result.best_lora, validation)}
    if trainer.answers is None:
        try:
            calibration = trainer.predictor(result.lora, trainer.splits["calibration"])
            temperature = fit_temperature(calibration)
        except UserError as error:
            say(f"   note: no candidate {TEMPERATURE}: {error}")
        else:
            predictions = trainer.predictor(result.lora, validation, temperature)
            derived[TEMPERATURE] = options_belief(predictions)
    return derived
