"""A training run from top to bottom: base, data, style, threshold, fine-tuning, evaluation.

With `compare`, every method starts from the same style-adapted model and sees the same batches.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from cogcalib_jax.configlib import style_identity, with_places_of
from cogcalib_jax.console import say
from cogcalib_jax.distributed import from_main
from cogcalib_jax.files import whole_folder
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.report.load_run import TEMPERED
from cogcalib_jax.report.names import best_epoch_of, tempered
from cogcalib_jax.report.recommendation import THE_RUN
from cogcalib_jax.runs.assemble import with_processes
from cogcalib_jax.runs.config import BEST_EPOCHS, PROGRAM, RunConfig, require_same_config
from cogcalib_jax.runs.folder import (
    choose_folder,
    holding_locks,
    make_folder,
    original_command,
    resumable,
    take_up,
    write_config,
)
from cogcalib_jax.runs.inputs import hash_inputs, require_same_inputs, write_inputs
from cogcalib_jax.runs.method_run import (
    Run,
    Start,
    keep_best_epoch,
    score_adapter,
    train_method,
)
from cogcalib_jax.runs.option_score import settle_option_score
from cogcalib_jax.runs.prepare import prepare
from cogcalib_jax.runs.recommend import recommend, simplest_first
from cogcalib_jax.runs.references import look_at_base, reference_rows
from cogcalib_jax.runs.sampling import sampling_rows
from cogcalib_jax.runs.stored import resume_command
from cogcalib_jax.training.composition import compose
from cogcalib_jax.training.finetune import FinetuneResult, style_phase


def train_run(config: RunConfig, name: str, argv: list[str], style: Path | None = None) -> Path:
    """Train and evaluate everything `config` asks for; returns the run's folder.

    name: what a default run folder is called after; argv: the command line, kept for the record;
    style: the style folder of another run, finished and with the same `style_identity`.
    """
    config = with_processes(config)
    with holding_locks():
        run = open_run(config, name, argv)
        with resumable(run.folder, resume_command(PROGRAM, run.folder)):
            _train_and_score(run, style)
    return run.folder


def _train_and_score(run: Run, style: Path | None) -> None:
    config = run.config
    look_at_base(run)
    if style is not None:
        from_main(partial(_take_over, style, run.folder / "style"))
    say(f"== Style adaptation: {run.trainer.style_steps} updates of plain cross-entropy")
    lora = style_phase(
        run.trainer, run.assembled.lora, run.folder / "style", style_identity(config)
    )
    start = Start(lora, run.folder)
    run = with_option_score(run, lora)
    references = reference_rows(run) if config.compare else {}
    run = composed(run, lora)
    config = run.config

    methods = config.resolved_methods()
    if not config.compare:
        (method,) = methods.values()
        result = train_method(run, run.trainer, config.for_method(method), start, run.folder)
        score_adapter(run, run.folder, run.folder / TEMPERED, start, result.lora)
        recommend(run, [THE_RUN])
        return
    results: dict[str, dict[str, Any]] = references
    sft = None
    for key, method in methods.items():
        folder = run.folder / key
        alone = config.for_method(method)
        write_config(folder, alone)
        result = train_method(run, run.trainer, alone, start, folder)
        results |= score_adapter(run, folder, run.folder / tempered(key), start, result.lora)
        if key in BEST_EPOCHS:
            results |= _best_epoch(run, alone, key, start, result)
        if key == "sft":
            sft = result.lora
    recommend(run, simplest_first(list(results)))
    results |= sampling_rows(run, start, sft)
    write_json(run.folder / "comparison.json", results)


def _best_epoch(
    run: Run, config: RunConfig, key: str, start: Start, result: FinetuneResult
) -> dict[str, dict[str, Any]]:
    """The rows of a method's best validation epoch, which needs no training of its own."""
    best = best_epoch_of(key)
    folder = run.folder / best
    say(f"== {best}: epoch {result.best_epoch:.1f} of the same training")
    keep_best_epoch(run, config, start, result, folder)
    return score_adapter(run, folder, run.folder / tempered(best), start, result.best_lora)


def open_run(config: RunConfig, name: str, argv: list[str]) -> Run:
    """Base, data and model of a run on their devices, and its folder opened."""
    folder = choose_folder(config.run_dir, name, config.resume)
    with resumable(folder, resume_command(PROGRAM, folder)):
        return _open(config, folder, argv)


def _open(config: RunConfig, folder: Path, argv: list[str]) -> Run:
    methods = ", ".join([*config.resolved_methods(), *config.sampling_baselines])
    if config.resume:
        say(f"== Resuming {folder}: {methods}")
        take_up(folder)
    else:
        say(f"== Run {folder}: {methods}")
    prepared = prepare(config)
    config, base, hashes = prepared.config, prepared.base, prepared.hashes

    # Only now: until here a mistake leaves nothing behind.
    make_folder(folder)
    command = original_command(folder, PROGRAM, argv)
    written = config.as_written()
    inputs = hash_inputs(config, base.place, hashes)
    if config.resume:
        stored = require_same_config(folder, written, places_too=False)
        if not require_same_inputs(folder, config, inputs):
            require_same_config(folder, written)
        moved = with_places_of(stored, written)
        if moved != stored:
            write_config(folder, moved)
    else:
        write_inputs(folder, inputs)
        write_config(folder, written)
    # From here on it is the run that was started: configs of its methods say nothing of a resume.
    config = replace(config, resume=False)
    trainer = prepared.trainer
    made_from = {"data": {key: hashes[key] for key in trainer.splits}, "base": inputs["base"]}
    trainer = replace(trainer, trainable=replace(trainer.trainable, made_from=made_from))
    return Run(
        config,
        folder,
        command,
        base.place,
        base.tokenizer,
        prepared.assembled,
        trainer,
        prepared.sets,
    )


def _take_over(style: Path, folder: Path) -> None:
    """A copy of another run's style phase, where this run has not begun its own."""
    if style.is_dir() and not folder.exists():
        with whole_folder(folder) as building:
            shutil.copytree(style, building, dirs_exist_ok=True)


def composed(run: Run, start: nnx.State) -> Run:
    """The run with the fine-tuning rows that `composition` asks for."""
    trainer, composition = run.trainer, run.config.composition
    train = compose(
        trainer.splits["train"],
        composition,
        lambda: trainer.known_at(start, trainer.splits["train"]),
        run.config.data.split_seed,
    )
    if train is trainer.splits["train"]:
        return run
    say(f"   composed: {len(train)} fine-tuning rows, {composition.words} known")
    return replace(run, trainer=trainer.with_train_split(train))


def with_option_score(run: Run, start: nnx.State) -> Run:
    """Settle the rule that scores the run's options; log what `auto` chose on the start."""
    config = run.config
    if config.option_score != "auto":
        return run
    rule, line = settle_option_score(run.trainer, start, run.folder, config.seed)
    say(f"   {line}")
    trainer = replace(run.trainer, predictor=run.trainer.predictor.scored_by(rule))
    return replace(run, config=replace(config, option_score=rule), trainer=trainer)
