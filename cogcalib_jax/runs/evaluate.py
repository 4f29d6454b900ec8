"""An evaluation from top to bottom: base and adapter, questions, scores, numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_splits, load_test
from cogcalib_jax.data.tokenization import encode_split
from cogcalib_jax.engine.step import SplitModel
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.predict import Predictor
from cogcalib_jax.reporting.names import long_name
from cogcalib_jax.reporting.tables import as_text, comparison_table
from cogcalib_jax.runs.assemble import (
    base_path,
    extra_examples,
    load_base_tokenizer,
    load_on_mesh,
    say,
)
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.eval_config import EvalConfig, read_trained_run
from cogcalib_jax.runs.folder import choose_folder, make_folder, original_command, write_config
from cogcalib_jax.runs.results import read_results, write_results
from cogcalib_jax.weights.base_hash import require_trained_on
from cogcalib_jax.weights.hub import model_folder
from cogcalib_jax.weights.peft_adapter import load_adapter, read_lora_config


def evaluate_run(config: EvalConfig, argv: list[str]) -> Path:
    """Score everything `config` asks for; returns the folder of the results.

    argv: the command line, kept for the record.
    """
    folder = choose_folder(config.run_dir, "eval", resume=False)
    run = None if config.run is None else read_trained_run(config.run)
    base = config.model.path or base_path(run.model, run.data, run.pretrain, run.seed)
    adapter = config.adapter if run is None else str(Path(config.run) / "adapter")
    say(f"== Evaluating {base}" + (f" with {adapter}" if adapter else ", no adapter"))
    if adapter is not None:
        require_trained_on(Path(adapter), model_folder(base))
    sets = question_sets(config, run, load_base_tokenizer(base))
    lora = None if adapter is None else read_lora_config(adapter)
    mesh, decoder = load_on_mesh(config.model, config.mesh, lora, base, config.seed)
    if adapter is not None:
        load_adapter(adapter, decoder)

    # Only now: until here a mistake leaves nothing behind.
    make_folder(folder)
    command = original_command(folder, "eval.py", argv)
    write_config(folder, config)
    graphdef, adapter_state, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
    predictor = Predictor(SplitModel(graphdef, frozen), mesh, config.evaluation)
    predict = partial(predictor, adapter_state)
    write_results(folder, sets, predict, config.evaluation, config.seed, command)
    return folder


def question_sets(
    config: EvalConfig, run: RunConfig | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, EncodedSplit]:
    """Task, or TASK:GROUP, -> test questions as token ids; notes and sizes are shown."""
    if config.task:
        examples = {entry: _entry(entry, config, run) for entry in config.task}
    else:
        examples = {config.data.task: _test(config.data, config.seed, run)}
        examples |= extra_examples(config.data, config.seed)
    sets = {}
    for entry, rows in examples.items():
        data = _data(entry.partition(":")[0], config)
        sets[entry], notes = encode_split("test", rows, tokenizer, data)
        say(f"   {entry}: {len(sets[entry]):,} questions")
        for note in notes:
            say(f"   note: {note}")
    return sets


def _data(task: str, config: EvalConfig) -> DataConfig:
    """Where the rows of `task` are: `data.path` holds those of `data.task` alone."""
    if task == config.data.task:
        return config.data
    return replace(config.data, task=task, path=None)


def _entry(entry: str, config: EvalConfig, run: RunConfig | None) -> tuple[Example, ...]:
    task, _, group = entry.partition(":")
    data = _data(task, config)
    if not group:
        return _test(data, config.seed, run)
    groups = extra_examples(data, config.seed)
    if entry not in groups:
        allowed = ", ".join(groups) or f"{task} alone, which has no groups"
        raise UserError(f"task = {entry}: no such group of questions (allowed: {allowed})")
    return groups[entry]


def _test(data: DataConfig, seed: int, run: RunConfig | None) -> tuple[Example, ...]:
    """The test split: as it was made for training where these are the run's own rows, for they
    may have been its training rows otherwise; else the stored one."""
    if run is not None and (data.task, data.path) == (run.data.task, run.data.path):
        splits = load_splits(data, seed)
        examples, notes = splits.test, splits.notes
    else:
        examples, notes = load_test(data, seed)
    for note in notes:
        say(f"   note: {note}")
    return examples


def results_text(config: EvalConfig, folder: Path) -> str:
    """The text to print: whose numbers, a line a task, and where the files lie."""
    if config.run is None:
        whose = f"{config.model.path} with {config.adapter or 'no adapter'}"
    else:
        whose = f"{long_name(read_trained_run(config.run).method.label)}, from {config.run}"
    table = comparison_table([read_results(folder)])
    table = replace(table, header=("task", *table.header[1:]))
    return (
        f"{whose}:\n\n{as_text(table)}\n\nAll numbers: {folder / 'eval.json'}\n"
        f"Every answer: {folder / 'predictions'}"
    )
