"""The dry run of train.py and eval.py: their data, precision and parameters before they start.

Nothing is written, and of each base only config.json and the tokenizer are read; a world's base
that is missing is not built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax
from flax import nnx

from cogcalib_jax.cli import data_report
from cogcalib_jax.cli.data_report import Report
from cogcalib_jax.cli.eval_config import (
    EvalConfig,
    settled_option_score,
)
from cogcalib_jax.cli.evaluate import anchors_of, require_suitable
from cogcalib_jax.cli.evaluated import Evaluated, evaluated_models
from cogcalib_jax.cli.prepare import (
    Outline,
    Prepared,
    open_predictor,
    outline_base,
    prepare,
    with_own_lora,
)
from cogcalib_jax.cli.questions import encode_questions, test_questions
from cogcalib_jax.cli.run_config import RunConfig, require_same_config
from cogcalib_jax.cli.run_folder import choose_folder
from cogcalib_jax.cli.train import require_prefix
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.report.text import count
from cogcalib_jax.sharding import make_mesh
from cogcalib_jax.training.compatible import check_context
from cogcalib_jax.training.config import compose, known_to_the_world
from cogcalib_jax.training.finetune import pauses
from cogcalib_jax.world.config import PretrainConfig

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
    data_report.show_overlaps(report, _examples(splits), splits)
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
    _show_parameters(report, base.name, run.assembled.model, run.assembled.lora)
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
    """The words on which methods are held on anchors, and how long they are trained."""
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
    if run.base.corpus is not None:
        report.line(
            f"Before that, the base is pretrained once on {len(run.base.corpus):,} rows; later runs"
            " reuse it."
        )


def dry_run_evaluation(config: EvalConfig) -> str:
    """Return the report on what `config` would evaluate.

    Raises:
        UserError: the mistakes that an evaluation refuses before it loads a weight. Whether an
            adapter belongs to its base is not checked, for only the weights tell.
    """
    folder = choose_folder(config.run_dir, "eval", config.resume)
    if config.resume:
        require_same_config(folder, config, places_too=False)
    models = evaluated_models(config, look_only=True)
    runs = [member.run for model in models for member in model.members or (model,)]
    runs = [run for run in runs if run is not None]
    notes: list[str] = []
    questions = test_questions(config, runs, notes.append)
    report = Report(
        f"Dry run of evaluating {', '.join(model.name for model in models)} on"
        f" {', '.join(questions)}; nothing was loaded, built or written."
    )
    bases = {model.reads_with: _outline(config, model, notes.append) for model in models}
    sets = {
        reading: encode_questions(config, questions, base.tokenizer, notes.append)
        for reading, base in bases.items()
    }
    parts = [_check(config, one, bases[one.reads_with], sets[one.reads_with]) for one in models]
    for reading, base in bases.items():
        new_tokens = config.evaluation.open.max_new_tokens
        context = base.config.max_position_embeddings
        notes.extend(check_context(context, sets[reading].values(), new_tokens))

    for one in models:
        if not one.members:
            anchors_of(config, one, sets, notes.append)
    tasks = next(iter(sets.values()))
    data_report.show_rows(report, tasks, notes)
    trained = _training_rows(report, runs)
    data_report.show_overlaps(report, trained | _examples(tasks), trained)
    for reading, base in bases.items():
        if len(bases) > 1:
            report.section(f"With the tokenizer of {base.tokenizer.name_or_path or base.name}:")
        data_report.show_lengths(report, sets[reading], config.data)
        for task, encoded in sets[reading].items():
            data = config.data.for_task(task.partition(":")[0])
            data_report.show_prompt(report, task, encoded, base.tokenizer, data)
    for task, encoded in tasks.items():
        data_report.show_precision(report, task, encoded, config.evaluation.bins)
    report.section("Parameters on each device")
    for model, (frozen, lora) in zip(models, parts, strict=True):
        _show_parameters(report, model.name, frozen, lora, max(1, len(model.members)))
    return report.text()


def _outline(config: EvalConfig, model: Evaluated, note: Callable[[str], None]) -> Outline:
    run, own = model.run, (model.tokenizer_from, note)
    if run is None or config.model.path is not None:
        return outline_base(config.model, config.world, PretrainConfig(), config.seed, *own)
    return outline_base(run.model, run.world, run.pretrain, run.seed, *own)


def _check(
    config: EvalConfig, model: Evaluated, base: Outline, sets: Mapping[str, EncodedSplit]
) -> tuple[FrozenModel, nnx.State]:
    """Refuse what an evaluation refuses once it has the questions; return the model as shapes."""
    require_suitable(config, sets)
    require_prefix(settled_option_score(config), sets.values())
    mesh = make_mesh(config.mesh)
    frozen, lora = base.parts(model.lora, config.model, mesh)
    predictor = Predictor(frozen, mesh, config.evaluation)
    open_predictor(frozen, predictor, config.evaluation, config.data, base.tokenizer, sets.values())
    return frozen, lora


def _training_rows(report: Report, runs: Sequence[RunConfig]) -> dict[str, tuple[Example, ...]]:
    """Return the rows that the runs were trained on, as far as they can still be read."""
    trained = {}
    for data, made, seed in dict.fromkeys((run.data, run.made, run.seed) for run in runs):
        name = f"training rows of {data.task}"
        name += f" (seed {seed})" if isinstance(TASKS[data.task], MadeTask) else ""
        try:
            splits = load_splits(data, seed, made=made)
        except UserError as error:
            report.remarks.append(f"not compared with the {name}: {error}")
            continue
        trained[name] = (*splits.style, *splits.train)
    return trained


def _examples(splits: Mapping[str, EncodedSplit]) -> dict[str, list[Example]]:
    return {name: [e.example for e in split] for name, split in splits.items()}


def _show_parameters(
    report: Report, name: str, model: FrozenModel, lora: nnx.State, adapters: int = 1
) -> None:
    base, adapter = _local_bytes(model.frozen), adapters * _local_bytes(lora)
    shown = f", adapter {_size(adapter)}" if adapter else ""
    report.line(f"{name}: base {_size(base)}{shown}.")


def _local_bytes(shapes: nnx.State) -> int:
    """Return the bytes that one device holds of parameters given as sharded shapes."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _size(number: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} bytes"
