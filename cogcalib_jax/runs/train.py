"""A training run from top to bottom: base, data, style, threshold, fine-tuning, evaluation.

With `compare`, every method starts from the same style-adapted model and sees the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.evaluate import write_json
from cogcalib_jax.evaluation.posthoc import fit_temperature
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.assemble import (
    Assembled,
    assemble_model,
    base_path,
    encode_splits,
    evaluation_sets,
    load_base_tokenizer,
    make_trainable,
    require_even_batches,
    require_options_space,
    require_true_labels,
    say,
    with_own_lora,
)
from cogcalib_jax.runs.calibration import write_calibration
from cogcalib_jax.runs.config import RunConfig, require_same_config
from cogcalib_jax.runs.folder import choose_folder, make_folder, original_command, write_config
from cogcalib_jax.runs.results import has_results, read_results, write_results
from cogcalib_jax.training.finetune import (
    FinetuneResult,
    Trainer,
    finetune,
    make_trainer,
    style_phase,
)
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


def train_run(config: RunConfig, name: str, argv: list[str]) -> Path:
    """Train and evaluate everything `config` asks for; returns the run's folder.

    name: what a default run folder is called after; argv: the command line, kept for the record.
    """
    run = prepare(config, name, argv)
    config = run.config
    style_folder = run.folder / "style"
    say(f"== Style adaptation: {run.trainer.style_steps} updates of plain cross-entropy")
    start = style_phase(run.trainer, run.assembled.lora, style_folder)

    methods = config.resolved_methods()
    if not config.compare:
        (method,) = methods.values()
        _train_method(run, method, start, style_folder, run.folder)
        return run.folder
    results: dict[str, dict[str, Any]] = {}
    for key, method in methods.items():
        folder = run.folder / key
        write_config(folder, config.for_method(method))
        result = _train_method(run, method, start, style_folder, folder)
        results[key] = read_results(folder)
        if key == "sft":
            results |= _derived_rows(run, folder, result)
    write_json(run.folder / "comparison.json", results)
    return run.folder


def prepare(config: RunConfig, name: str, argv: list[str]) -> Run:
    """Base, data and model of a run on their devices, and its folder opened."""
    folder = choose_folder(config.run_dir, name, config.resume)
    config = with_own_lora(config)
    require_even_batches(config)
    base = base_path(config.model, config.data, config.pretrain, config.seed)
    say(f"== Data and model: {config.data.task} with {base}")
    tokenizer = load_base_tokenizer(base)
    splits = encode_splits(config.data, tokenizer, config.seed)
    require_options_space(config, splits)
    require_true_labels(config, splits["train"])
    sets = evaluation_sets(config.data, tokenizer, splits["test"], config.seed)
    assembled = assemble_model(config, config.lora, base)

    # Only now: until here a mistake leaves nothing behind.
    make_folder(folder)
    command = original_command(folder, "train.py", argv)
    written = config if config.compare else config.for_method(config.method.resolve())
    if config.resume:
        require_same_config(folder, written)
    else:
        write_config(folder, written)
    trainable = make_trainable(config, assembled)
    training_splits = {key: rows for key, rows in splits.items() if key != "test"}
    trainer = make_trainer(trainable, config.evaluation, training_splits)
    return Run(config, folder, command, base, tokenizer, assembled, trainer, sets)


def _train_method(
    run: Run, method: MethodConfig, start: nnx.State, style_folder: Path, folder: Path
) -> FinetuneResult:
    """Fine-tune one method into `folder`, evaluate it and write its adapter."""
    say(
        f"== {method.label}: term {method.term} on {method.gate}, weight {method.weight:g},"
        f" {run.trainer.total_steps} updates"
    )
    result = finetune(run.trainer, method, start, style_folder, folder)
    decoder = run.assembled.model.merge(result.lora)
    save_adapter(folder / "adapter", decoder, run.config.lora, run.base)
    calibration = run.trainer.splits["calibration"]
    write_calibration(
        folder / "adapter",
        run.config,
        method,
        run.base,
        run.tokenizer,
        calibration,
        run.trainer.predictor(result.lora, calibration),
    )
    if not has_results(folder):
        _evaluate(run, folder, result.lora, temperature=1.0)
    return result


def _derived_rows(run: Run, sft: Path, result: FinetuneResult) -> dict[str, dict[str, Any]]:
    """The strongest simple rivals, which need no training of their own.

    A calibration split without a mistake has no best temperature: that row is left out, and said.
    """
    calibration = run.trainer.predictor(result.lora, run.trainer.splits["calibration"])
    say("== Rivals derived from sft: its best validation epoch, and a fitted temperature")
    rivals = [("sft_best_epoch", result.best_lora, 1.0)]
    try:
        rivals.append(("sft_temperature", result.lora, fit_temperature(calibration)))
    except UserError as error:
        say(f"   note: no row sft_temperature: {error}")
    rows = {}
    for key, lora, temperature in rivals:
        folder = sft.parent / key
        if not has_results(folder):
            _evaluate(run, folder, lora, temperature)
        rows[key] = read_results(folder)
    return rows


def _evaluate(run: Run, folder: Path, lora: nnx.State, temperature: float) -> None:
    """Score every test set; predictions/ and eval.json."""

    def predict(encoded: EncodedSplit) -> Predictions:
        return run.trainer.predictor(lora, encoded, temperature)

    config = run.config
    write_results(folder, run.sets, predict, config.evaluation, config.seed, run.command)
