"""A training run looked at before it starts: data, precision, memory and time.

Nothing is written, and of the base only config.json and the tokenizer are read; the world's is not
built. One pass that scores is compiled from shapes, to see how long that takes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.registries import GATES
from cogcalib_jax.plan.memory import device_limit, update_memory
from cogcalib_jax.plan.plan import BatchShape
from cogcalib_jax.report.text import count, percent
from cogcalib_jax.runs.assemble import (
    with_own_lora,
)
from cogcalib_jax.runs.compiling import (
    Programs,
    compile_seconds,
    loss_programs,
    scoring_programs,
)
from cogcalib_jax.runs.config import BEST_EPOCHS, RunConfig, require_same_config
from cogcalib_jax.runs.dry_report import (
    FEW_CALIBRATION_ROWS,
    Report,
    examples_of,
    show_lengths,
    show_memory,
    show_overlaps,
    show_precision,
    show_prompt,
    show_rows,
    show_time,
)
from cogcalib_jax.runs.folder import choose_folder
from cogcalib_jax.runs.prepare import Prepared, prepare
from cogcalib_jax.runs.workload import (
    METHOD_SECONDS,
    RUN_SECONDS,
    Padding,
    Rates,
    Work,
    Workload,
    measure,
    pretraining,
)
from cogcalib_jax.training.composition import compose, known_to_the_world
from cogcalib_jax.training.finetune import pauses
from cogcalib_jax.training.loop import anchor_stream, train_stream

PRETRAINING, STYLE = "pretraining of the base", "style adaptation"


def dry_run_training(config: RunConfig, name: str) -> str:
    """The report on what `config` would train; name: what a default folder is called after.

    Raises UserError for every mistake that a run itself would refuse before it loads a weight.
    """
    folder = choose_folder(config.run_dir, name, config.resume)
    config = with_own_lora(config)
    if config.resume:
        # What lies there is not read, so a place may be another one.
        require_same_config(folder, config.as_written(), places_too=False)
    notes: list[str] = []
    run = plan(config, notes.append)
    base, splits, sets = run.base, run.splits, run.sets
    share, by = config.composition.known_share, config.composition.by

    report = Report(
        f"Dry run of {', '.join([*config.resolved_methods(), *config.sampling_baselines])} on"
        f" {config.data.task} with {base.name}; nothing was trained, built or written."
    )
    rows = splits | {task: split for task, split in sets.items() if task != config.data.task}
    show_rows(report, rows, notes)
    show_overlaps(report, examples_of(splits), splits)
    show_lengths(report, rows, config.data)
    show_prompt(report, "train", splits["train"], base.tokenizer, config.data)
    _show_steps(report, run)
    show_precision(report, "test", splits["test"], config.evaluation.bins)
    if len(splits["calibration"]) < FEW_CALIBRATION_ROWS:
        report.remarks.append(
            f"calibration: {count(len(splits['calibration']), 'row')} for threshold and"
            f" temperature; below {FEW_CALIBRATION_ROWS} both depend on which rows these are"
        )
    if share is not None and by == "start":
        report.remarks.append(
            f"composition.known_share = {share}: which of the training rows are left is known"
            " only after style adaptation; updates and time above are of all of them"
        )
    _show_cost(report, run)
    return report.text()


class Estimate(NamedTuple):
    """Seconds of a run's operations, and of nothing else; what they rest on: `show_time`."""

    pretraining: float
    """of the world's base; 0 where it is there"""
    style: float
    methods: dict[str, float]
    """by method: fine-tuning, thresholds and validation"""
    others: float
    """evaluation and sampling baselines"""


class Estimator:
    """Estimates runs; the rate of products of one model's shape is measured once for all."""

    def __init__(self) -> None:
        self._rates: dict[tuple[Any, ...], Rates] = {}

    def __call__(self, config: RunConfig) -> Estimate:
        run = plan(config, lambda note: None)
        updates = _updates(run)
        key = (run.base.config, run.assembled.mesh, config.model, run.splits["test"].is_open)
        if key not in self._rates:
            self._rates[key] = _rates(run, updates)
        rates = self._rates[key]
        parts = _parts(run, updates)
        named = {name: rates.seconds(work) for name, work in parts}
        methods = {
            name: rates.seconds(updates["train"][0] + _between(run, method))
            for name, method in run.methods.items()
        }
        before = named.get(PRETRAINING, 0.0), named[STYLE]
        others = sum(named.values()) - sum(before) - sum(methods.values())
        return Estimate(*before, methods, others)


def plan(config: RunConfig, note: Callable[[str], None]) -> Prepared:
    """Everything of a run but its weights; `note` gets what its data had to say."""
    run = prepare(config, abstract=True, note=note)
    if not config.composition.asks_the_world:
        return run
    every = run.trainer.splits["train"]
    train = compose(
        every, config.composition, lambda: known_to_the_world(every), config.data.split_seed
    )
    return replace(run, trainer=run.trainer.with_train_split(train))


def _steps(run: Prepared) -> dict[str, int]:
    """Updates of each phase; of fine-tuning, for one method."""
    return {"style": run.trainer.style_steps, "train": run.trainer.total_steps}


def _show_steps(report: Report, run: Prepared) -> None:
    training, steps = run.config.training, _steps(run)
    report.section("Updates")
    report.line(
        f"Style adaptation: {count(steps['style'], 'update')} of {training.batch_size} on"
        f" {count(len(run.splits['style']), 'question')}, plain cross-entropy."
    )
    rows = len(run.splits["train"])
    epochs = steps["train"] * training.batch_size / rows
    report.line(
        f"Fine-tuning: {count(steps['train'], 'update')} of {training.batch_size} on"
        f" {count(rows, 'question')} ({epochs:.1f} epochs) for each of: {', '.join(run.methods)}."
    )
    if (anchors := run.trainer.trainable.anchors) is not None:
        anchor, questions = run.config.anchor, count(len(anchors.questions), "question")
        report.line(
            f"Each update is held on {anchor.rows_per_step} of {questions} without answers, by"
            f" {anchor.term}."
        )
    refits, validations = (
        len(pauses(every, steps["train"], training.epoch_ends(rows)))
        for every in (training.refit_every, training.validate_every)
    )
    report.line(
        f"Threshold on {count(len(run.splits['calibration']), 'question')}: fitted first, then"
        f" {count(refits, 'time')}; validation on {len(run.splits['validation']):,}: first, then"
        f" {count(validations, 'time')}."
    )
    for name, (_, padding) in _updates(run).items():
        shapes = ", ".join(map(str, padding.lengths))
        report.line(
            f"Batches of {name} are padded to {shapes} tokens;"
            f" {percent(padding.real)} of what is computed is real."
        )
    if run.base.corpus is not None:
        report.line(
            f"Before all that, the base is pretrained on {len(run.base.corpus):,} rows, once: it"
            " is kept for later runs."
        )


def _updates(run: Prepared) -> dict[str, tuple[Work, Padding]]:
    """Phase -> its updates (of fine-tuning: for one method) and how they are padded."""
    config, workload = run.config, _workload(run)
    classes = max(_classes(run, config.loss, method) for method in run.methods.values())
    trainable, found = run.trainer.trainable, {}
    for name, steps in _steps(run).items():
        if steps:
            split = run.splits[name]
            stream = train_stream(trainable, split, steps)
            found[name] = workload.updates(stream, split, steps, classes, config.model.remat)
    if run.trainer.trainable.anchors is not None:
        rows, length = _anchor_shape(run)
        held = workload.update([length] * rows, rows, classes, config.model.remat)
        work, padding = found["train"]
        found["train"] = work + held * _steps(run)["train"], padding
    return found


def _anchor_shape(run: Prepared) -> tuple[int, int]:
    """Anchor rows of an update, and the length they are padded to."""
    trainable = run.trainer.trainable
    if trainable.anchors is None:
        return 0, 0
    stream = anchor_stream(trainable, trainable.anchors)
    return run.config.anchor.rows_per_step, stream.padded_length


def _workload(run: Prepared) -> Workload:
    return Workload(run.base.config, run.config.lora, run.config.evaluation)


def _classes(run: Prepared, loss: LossConfig, method: MethodConfig) -> int:
    """Logits formed at a scored position."""
    options, spaces = run.splits["train"].options, (loss.space, method.build().term_space)
    return run.base.config.vocab_size if "vocab" in spaces else options


def _show_cost(report: Report, run: Prepared) -> None:
    config, training = run.config, run.config.training
    updates = _updates(run)
    longest = max(length for _, padding in updates.values() for length in padding.lengths)
    answer_tokens = max(run.splits[name].answer_tokens for name in updates)
    dtype = config.model.jax_dtype(run.assembled.mesh)
    held, length = _anchor_shape(run)
    examples = (training.batch_size + held) // training.accumulation
    shape = BatchShape(examples, max(longest, length), answer_tokens)
    memory = update_memory(
        run.base.config,
        run.assembled.mesh,
        lora=config.lora,
        shape=shape,
        dtype=dtype,
        classes=max(_classes(run, config.loss, method) for method in run.methods.values()),
        remat=config.model.remat,
        attention=config.model.attention,
    )
    report.section("Memory")
    devices = f"{run.assembled.mesh.size} x {run.assembled.mesh.devices.flat[0].device_kind}"
    basis = (
        f"{shape.examples} x {longest} tokens, {dtype.name}, remat {config.model.remat}, {devices}"
    )
    show_memory(report, "An update", memory, device_limit(run.assembled.mesh), basis)

    trainings = len(run.methods) + len(config.sampling_baselines)
    show_time(
        report,
        "Time",
        _parts(run, updates),
        _rates(run, updates),
        _programs(run, updates),
        RUN_SECONDS + METHOD_SECONDS * trainings,
    )


def _programs(run: Prepared, updates: dict[str, tuple[Work, Padding]]) -> Programs:
    """What the run compiles: every training its updates anew, and the passes once for all."""
    config, splits = run.config, run.splits
    style, train = (len(updates[name][1].lengths) if name in updates else 0 for name in _steps(run))
    baselines = set(config.sampling_baselines) - {"ensemble"}
    trainings = len(run.methods) + len(baselines)
    if "ensemble" in config.sampling_baselines:
        trainings += config.ensemble_members - ("sft" in run.methods)
        style *= config.ensemble_members
    probe = EncodedSplit(splits["train"][: config.training.probe_rows])
    scored = [splits["validation"], splits["calibration"], probe, *run.sets.values()]
    passes = scoring_programs(scored) + loss_programs(splits["calibration"])
    seconds = compile_seconds(
        run.assembled.model,
        run.assembled.lora,
        run.assembled.mesh,
        config.evaluation,
        splits["calibration"],
    )
    return Programs(style + train * trainings, passes, seconds)


def _rates(run: Prepared, updates: dict[str, tuple[Work, Padding]]) -> Rates:
    """Operations a second on this machine, in products as large as an update's."""
    config, training = run.config, run.config.training
    tokens = float(np.mean(updates["train"][1].lengths)) * training.batch_size
    answers = config.evaluation.batch_size if run.splits["test"].is_open else None
    dtype = config.model.jax_dtype(run.assembled.mesh)
    return measure(
        run.base.config, run.assembled.mesh, dtype, tokens / training.accumulation, answers
    )


def _parts(run: Prepared, updates: dict[str, tuple[Work, Padding]]) -> list[tuple[str, Work]]:
    """All work of the run, in its order."""
    config, workload, splits = run.config, _workload(run), run.splits
    nothing = Work()
    style = updates.get("style", (nothing, None))[0]
    between = {name: _between(run, method) for name, method in run.methods.items()}
    tests = sum((workload.evaluating(split) for split in run.sets.values()), nothing)
    finetuning = updates["train"][0]
    parts = [(STYLE, style)]
    if run.base.corpus is not None:
        first = pretraining(run.base.config, run.base.corpus, config.pretrain.batch_size)
        parts.insert(0, (PRETRAINING, first))
    trained = finetuning * len(run.methods)
    parts.append((f"fine-tuning ({count(len(run.methods), 'method')})", trained))
    parts.append(("thresholds and validation", sum(between.values(), nothing)))
    # A temperature costs no pass of its own. In a comparison: the base, and best epochs.
    rows = len(run.methods)
    if config.compare:
        rows += 1 + len(run.methods.keys() & set(BEST_EPOCHS))
    parts.append(("evaluation on test questions", tests * rows))
    if "mc_dropout" in config.sampling_baselines:
        again = config.lora.lora_dropout == 0 or "sft" not in run.methods
        train = (
            finetuning + _between(run, config.as_plain_finetuning().method) if again else nothing
        )
        parts.append(("MC-dropout", train + tests * config.evaluation.mc_passes))
    if "ensemble" in config.sampling_baselines:
        alone = style + finetuning + _between(run, config.as_plain_finetuning().method)
        members = config.ensemble_members
        more = members - ("sft" in run.methods)
        parts.append(("ensemble", alone * more + tests * members))
    if "laplace_lora" in config.sampling_baselines:
        # Each row: a forward pass, and for every option a backward one that costs about as much.
        asked = [splits["train"], *run.sets.values()]
        passes = (workload.losses(split) * (1 + split.options) for split in asked)
        alone = finetuning + _between(run, config.as_plain_finetuning().method)
        again = nothing if "sft" in run.methods else alone
        parts.append(("Laplace-LoRA", sum(passes, again)))
    if "blob" in config.sampling_baselines:
        train = finetuning + _between(run, config.as_plain_finetuning().method)
        parts.append(("BLoB", train + tests * config.evaluation.mc_passes))
    return parts


def _between(run: Prepared, method: MethodConfig) -> Work:
    """All that a method does beside updates, until its test questions."""
    config, workload, splits = run.config, _workload(run), run.splits
    training, total = config.training, _steps(run)["train"]
    ends = training.epoch_ends(len(splits["train"]))
    calibration = splits["calibration"]
    fit = workload.losses(calibration)
    if config.loss.correct == "exact_match":
        fit += workload.answers(calibration, confidences=False)
    gate = GATES.make(method.gate)
    fits = 1 + (len(pauses(training.refit_every, total, ends)) if gate.refits else 0)
    probe = EncodedSplit(splits["train"][: training.probe_rows])
    followed = [split for split in (splits["validation"], probe) if split]
    is_open = splits["train"].is_open
    look = sum((workload.losses(s) if is_open else workload.scores(s) for s in followed), Work())
    looks = 1 + len(pauses(training.validate_every, total, ends))
    last = workload.answers(calibration, False) if is_open else workload.scores(calibration)
    work = fit * fits + look * looks + last
    if gate.labelled_by == "start":
        work += workload.losses(splits["train"])
    return work
