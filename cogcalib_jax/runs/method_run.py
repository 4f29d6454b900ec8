"""One method of a run: trained from a start into a folder of its own, and scored."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import main_only
from cogcalib_jax.evaluation.open_ended import Answers
from cogcalib_jax.evaluation.open_results import Calibrators, fit_calibrators
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.evaluation.probe import choose_probe, reduced_adapter
from cogcalib_jax.models.parameters import without_uncertainty
from cogcalib_jax.reporting.words import count
from cogcalib_jax.runs.assemble import Assembled, say
from cogcalib_jax.runs.calibration import write_calibration
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.open_questions import answering, stored_calibrators
from cogcalib_jax.runs.results import Predict, has_results, read_results, write_results
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, finetune
from cogcalib_jax.weights.adapter_tokenizer import tokenizer_files
from cogcalib_jax.weights.peft_adapter import save_adapter


@dataclass(frozen=True)
class Run:
    """A run under way: everything its methods share."""

    config: RunConfig
    folder: Path
    command: str
    base: str | Path
    tokenizer: PreTrainedTokenizerBase
    assembled: Assembled
    trainer: Trainer
    sets: dict[str, EncodedSplit]
    """task -> test questions"""


def train_method(
    run: Run,
    trainer: Trainer,
    config: RunConfig,
    start: nnx.State,
    style_folder: Path,
    folder: Path,
) -> FinetuneResult:
    """Fine-tune the one method of `config` into `folder` and write its adapter.

    trainer: the run's, or one that differs in seed or dropout as `config` does. start: LoRA
    parameters after the style phase, whose journal is in `style_folder`.
    """
    method = config.method.resolve()
    term = f"term {method.term} on {method.gate}, weight {method.weight:g}"
    plain = method.term == "none"
    updates = count(trainer.total_steps, "update")
    say(f"== {method.label}: {'no term' if plain else term}, {updates}")
    result = finetune(trainer, method, start, style_folder, folder)
    # A PEFT adapter has no distributions: of one it holds the mean.
    decoder = without_uncertainty(trainer.trainable.model.merge(result.lora))
    save_adapter(folder / "adapter", decoder, config.lora, run.base)
    _keep_tokenizer(config.adapter, folder / "adapter")
    calibration = trainer.splits["calibration"]
    predictions = _on_calibration_split(trainer, result.lora)
    write_calibration(
        folder / "adapter",
        config,
        method,
        run.base,
        run.tokenizer,
        calibration,
        predictions,
        _probe(trainer, config, result.lora, predictions),
    )
    return result


@main_only
def _keep_tokenizer(start: str | None, adapter: Path) -> None:
    """Copy the tokenizer of the adapter that the run started from beside the new adapter."""
    if start is not None:
        for name, file in tokenizer_files(Path(start)).items():
            shutil.copyfile(file, adapter / name)


def _probe(
    trainer: Trainer, config: RunConfig, lora: nnx.State, predictions: Predictions | Answers
) -> dict[str, Any] | None:
    """The calibration question that best shows whether a server applies the whole adapter."""
    if isinstance(predictions, Answers):
        return None
    reduced = reduced_adapter(lora, touches_head="lm_head" in config.lora.modules)
    without = trainer.predictor(reduced, trainer.splits["calibration"])
    return choose_probe(trainer.splits["calibration"], predictions, without)


def _on_calibration_split(trainer: Trainer, lora: nnx.State) -> Predictions | Answers:
    scorer = trainer.predictor if trainer.answers is None else trainer.answers.answers
    return scorer(lora, trainer.splits["calibration"])


def predict_function(run: Run, lora: nnx.State, adapter: Path | None = None) -> Predict:
    """From test questions to predictions with `lora`.

    adapter: the folder these parameters were written to, whose `calibration.json` says how likely
    an open answer is to be right; None: fitted anew on the calibration split.
    """
    trainer = run.trainer
    if trainer.answers is None:
        return partial(trainer.predictor, lora)

    @cache
    def calibrators() -> Calibrators:
        if adapter is not None:
            return stored_calibrators(adapter)
        return fit_calibrators(_on_calibration_split(trainer, lora))

    return answering(trainer.answers, lora, run.config.seed, calibrators)


def score(run: Run, folder: Path, predict: Predict) -> dict[str, dict[str, Any]]:
    """Task -> numbers of every test set; predictions/ and eval.json, unless they are there."""
    if not has_results(folder):
        config = run.config
        write_results(
            folder,
            run.sets,
            predict,
            config.evaluation,
            config.seed,
            run.command,
            model=f"{folder.name} on {run.base}",
        )
    return read_results(folder)
