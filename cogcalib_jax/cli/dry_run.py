"""The dry run of train.py: its data, precision and parameters before it starts.

Nothing is written, and of each base only config.json and the tokenizer are read; a world's base
that is missing is not built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import jax
from flax import nnx

from cogcalib_jax.cli import data_report
from cogcalib_jax.cli.data_report import Report
from cogcalib_jax.cli.prepare import (
    Prepared,
    prepare,
    with_own_lora,
)
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import choose_folder
from cogcalib_jax.cli.stored import require_same_config
from cogcalib_jax.report.text import count
from cogcalib_jax.training.config import compose, known_to_the_world
from cogcalib_jax.training.finetune import pauses

FEW_CALIBRATION_ROWS = 100


def dry_run_training(config: RunConfig, name: str) -> str:
    """Return the report on what `config` would train.

    Args:
        name: the preset's name, after which a default folder is called.

    Raises:
        UserError: every mistake that a run refuses before it loads a weight.
    """
    folder = choose_folder(config.run_dir, name, config.resume)
    config = with_own_lora(config)
    if config.resume:
        # The places are not read, so they may have moved.
        require_same_config(folder, config.as_written(), places_too=False)
    notes: list[str] = []
    run = prepare_abstract(config, notes.append)
    base, splits, composition = run.base, run.splits, config.composition

    report = Report(
        f"Dry run of {', '.join([*config.resolved_methods(), *config.baselines])} on"
        f" {config.data.task} with {base.name}; nothing was trained, built or written."
    )
    rows = splits | {task: rows for task, rows in run.sets.items() if task != config.data.task}
    data_report.show_rows(report, rows, notes)
    data_report.show_repeats(
        report, {name: [e.example for e in rows] for name, rows in splits.items()}
    )
    data_report.show_lengths(report, rows, config.data)
    data_report.show_prompt(report, "train", splits["train"], base.tokenizer, config.data)
    _show_updates(report, run)
    data_report.show_precision(report, "test", splits["test"], config.evaluation.bins)
    if len(splits["calibration"]) < FEW_CALIBRATION_ROWS:
        report.remarks.append(
            f"calibration: {count(len(splits['calibration']), 'row')} for threshold and"
            f" temperature; below {FEW_CALIBRATION_ROWS} both depend on which rows these are"
        )
    if composition.known_share is not None and composition.by == "start":
        report.remarks.append(
            f"composition.known_share = {composition.known_share}: the training rows that remain"
            " are known only after style adaptation; the updates above are those of all rows"
        )
    report.section("Parameters on each device")
    model, lora = _local_bytes(run.assembled.model.frozen), _local_bytes(run.assembled.lora)
    report.line(f"{base.name}: base {_size(model)}, adapter {_size(lora)}.")
    report.line(
        "Training holds the adapter four times: weights, gradient and AdamW's two moments."
        " Activations are not counted here; cogcalib plan compiles a step and counts them."
    )
    return report.text()


def prepare_abstract(config: RunConfig, note: Callable[[str], None]) -> Prepared:
    """Return all parts of a run without its weights; `note` gets the notes on its data."""
    run = prepare(config, abstract=True, note=note)
    if not config.composition.asks_the_world:
        return run
    every = run.trainer.splits["train"]
    train = compose(
        every, config.composition, lambda: known_to_the_world(every), config.data.split_seed
    )
    return replace(run, trainer=run.trainer.with_train_split(train))


def _held(config: RunConfig) -> str:
    """Describe the methods that are trained with anchors, and how long they are trained."""
    held, anchor = [key for key in config.resolved_methods() if config.holds(key)], config.anchor
    words = "" if anchor.methods is None else f", for {', '.join(held) or 'no method'}"
    own = ", ".join(f"{name} {value:g}" for name, value in anchor.of_training.items())
    return f"{words}, with {own}" if own else words


def _show_updates(report: Report, run: Prepared) -> None:
    training, steps = run.config.training, run.trainer.total_steps
    rows, methods = len(run.splits["train"]), ", ".join(run.config.resolved_methods())
    epochs = steps * training.batch_size / rows
    report.section("Updates")
    report.line(
        f"Style adaptation: {count(run.trainer.style_steps, 'update')} of {training.batch_size} on"
        f" {count(len(run.splits['style']), 'question')}, plain cross-entropy."
    )
    report.line(
        f"Fine-tuning: {count(steps, 'update')} of {training.batch_size} on"
        f" {count(rows, 'question')} ({epochs:.1f} epochs) for each of: {methods}."
    )
    if (anchors := run.trainer.trainable.anchors) is not None:
        anchor, questions = run.config.anchor, count(len(anchors.questions), "question")
        report.line(
            f"Each update also takes {anchor.rows_per_step} of {questions} without answers, under"
            f" the term {anchor.term}{_held(run.config)}."
        )
    refits, validations = (
        len(pauses(every, steps, training.epoch_ends(rows)))
        for every in (training.refit_every, training.validate_every)
    )
    report.line(
        f"Threshold on {count(len(run.splits['calibration']), 'question')}: fitted first, then"
        f" {count(refits, 'time')}; validation on {len(run.splits['validation']):,}: first, then"
        f" {count(validations, 'time')}."
    )
    if run.base.place is None:
        report.line("Before that, the base is pretrained once; later runs reuse it.")


def _local_bytes(shapes: nnx.State) -> int:
    """Return the bytes that one device holds of parameters given as sharded shapes."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _size(number: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} bytes"
