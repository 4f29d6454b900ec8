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

from cogcalib_jax.distributed import from_main, require_agreement
from cogcalib_jax.evaluation.evaluate import data_hash, write_json
from cogcalib_jax.evaluation.option_score import DEFAULT_OPTION_SCORE
from cogcalib_jax.evaluation.predict import Predictor
from cogcalib_jax.reporting.names import best_epoch_of, tempered
from cogcalib_jax.reporting.recommendation import THE_RUN
from cogcalib_jax.reporting.records import TEMPERED
from cogcalib_jax.runs.anchors import load_anchors
from cogcalib_jax.runs.assemble import (
    assemble_model,
    base_path,
    encode_splits,
    evaluation_sets,
    load_base_tokenizer,
    make_trainable,
    note_beyond_context,
    require_even_batches,
    require_open_questions,
    require_options_space,
    require_shared_classes,
    require_true_labels,
    say,
    with_own_lora,
    with_processes,
)
from cogcalib_jax.runs.config import BEST_EPOCHS, RunConfig, require_same_config
from cogcalib_jax.runs.folder import (
    choose_folder,
    holding_locks,
    make_folder,
    original_command,
    resumable,
    resume_command,
    take_up,
    write_config,
)
from cogcalib_jax.runs.inputs import (
    hash_inputs,
    may_have_moved,
    require_same_inputs,
    write_inputs,
)
from cogcalib_jax.runs.method_run import Run, keep_best_epoch, score_adapter, train_method
from cogcalib_jax.runs.open_questions import open_predictor
from cogcalib_jax.runs.option_score import require_options, settle_option_score
from cogcalib_jax.runs.recommend import recommend, simplest_first
from cogcalib_jax.runs.references import look_at_base, reference_rows
from cogcalib_jax.runs.sampling import require_single_tokens, sampling_rows
from cogcalib_jax.training.composition import compose
from cogcalib_jax.training.finetune import FinetuneResult, make_trainer, style_phase
from cogcalib_jax.weights.folders import whole_folder

PROGRAM = "train.py"


def train_run(config: RunConfig, name: str, argv: list[str], style: Path | None = None) -> Path:
    """Train and evaluate everything `config` asks for; returns the run's folder.

    name: what a default run folder is called after; argv: the command line, kept for the record;
    style: the style folder of another run, finished and with the same `style_identity`.
    """
    config = with_processes(config)
    with holding_locks():
        run = prepare(config, name, argv)
        with resumable(run.folder, resume_command(PROGRAM, run.folder)):
            _train_and_score(run, style)
    return run.folder


def _train_and_score(run: Run, style: Path | None) -> None:
    config = run.config
    look_at_base(run)
    style_folder = run.folder / "style"
    if style is not None:
        from_main(partial(_take_over, style, style_folder))
    say(f"== Style adaptation: {run.trainer.style_steps} updates of plain cross-entropy")
    start = style_phase(run.trainer, run.assembled.lora, style_folder)
    run = with_option_score(run, start)
    references = reference_rows(run) if config.compare else {}
    run = composed(run, start)
    config = run.config

    methods = config.resolved_methods()
    if not config.compare:
        (method,) = methods.values()
        result = train_method(
            run, run.trainer, config.for_method(method), start, style_folder, run.folder
        )
        score_adapter(run, run.folder, run.folder / TEMPERED, result.lora)
        recommend(run, [THE_RUN])
        return
    results: dict[str, dict[str, Any]] = references
    sft = None
    for key, method in methods.items():
        folder = run.folder / key
        alone = config.for_method(method)
        write_config(folder, alone)
        result = train_method(run, run.trainer, alone, start, style_folder, folder)
        results |= score_adapter(run, folder, run.folder / tempered(key), result.lora)
        if key in BEST_EPOCHS:
            results |= _best_epoch(run, alone, key, result)
        if key == "sft":
            sft = result.lora
    recommend(run, simplest_first(list(results)))
    results |= sampling_rows(run, start, style_folder, sft)
    write_json(run.folder / "comparison.json", results)


def _best_epoch(
    run: Run, config: RunConfig, key: str, result: FinetuneResult
) -> dict[str, dict[str, Any]]:
    """The rows of a method's best validation epoch, which needs no training of its own."""
    best = best_epoch_of(key)
    folder = run.folder / best
    say(f"== {best}: epoch {result.best_epoch:.1f} of the same training")
    keep_best_epoch(run, config, result, folder)
    return score_adapter(run, folder, run.folder / tempered(best), result.best_lora)


def prepare(config: RunConfig, name: str, argv: list[str]) -> Run:
    """Base, data and model of a run on their devices, and its folder opened."""
    folder = choose_folder(config.run_dir, name, config.resume)
    with resumable(folder, resume_command(PROGRAM, folder)):
        return _prepare(config, folder, argv)


def _prepare(config: RunConfig, folder: Path, argv: list[str]) -> Run:
    methods = ", ".join([*config.resolved_methods(), *config.sampling_baselines])
    if config.resume:
        say(f"== Resuming {folder}: {methods}")
        take_up(folder)
    else:
        say(f"== Run {folder}: {methods}")
    with may_have_moved(config.adapter, "--adapter", config.resume):
        config = with_own_lora(config)
    require_even_batches(config)
    with may_have_moved(config.model.path, "--model.path", config.resume):
        base = base_path(config.model, config.data, config.pretrain, config.seed)
        say(f"== Data and model: {config.data.task} with {base}")
        tokenizer = load_base_tokenizer(base, config.adapter)
    with may_have_moved(config.data.path, "--data.path", config.resume):
        splits = encode_splits(config.data, tokenizer, config.seed)
    hashes = {name: data_hash(rows) for name, rows in splits.items()}
    require_agreement("data", lambda: hashes)
    require_options_space(config, splits)
    require_options(config.option_score, config.data.task, splits)
    require_shared_classes(config, splits["train"])
    require_true_labels(config, splits["train"])
    sets = evaluation_sets(config, tokenizer, splits["test"])
    require_open_questions(config, splits["train"])
    require_single_tokens(config, [splits["train"], *sets.values()])
    with may_have_moved(config.anchor.path, "--anchor.path", config.resume):
        measured = [splits["calibration"], splits["validation"], *sets.values()]
        anchors = load_anchors(config, tokenizer, measured)
    held = {} if anchors is None else {"anchor": anchors.data_hash}
    require_agreement("anchor", lambda: held)
    assembled = assemble_model(config, config.lora, base)
    context = assembled.decoder.config.max_position_embeddings
    asked = [] if anchors is None else [anchors.questions]
    note_beyond_context(context, [*splits.values(), *sets.values(), *asked])
    answers = open_predictor(
        assembled.model,
        context,
        Predictor(assembled.model, assembled.mesh, config.evaluation),
        config.evaluation,
        config.data,
        tokenizer,
        [*splits.values(), *sets.values()],
    )

    # Only now: until here a mistake leaves nothing behind.
    make_folder(folder)
    command = original_command(folder, PROGRAM, argv)
    written = config if config.compare else config.for_method(config.method.resolve())
    inputs = hash_inputs(config, base, hashes | held)
    if config.resume:
        stored = require_same_config(folder, written, places_too=False)
        if not require_same_inputs(folder, config, inputs):
            require_same_config(folder, written)
        moved = stored.with_places_of(written)
        if moved != stored:
            write_config(folder, moved)
    else:
        write_inputs(folder, inputs)
        write_config(folder, written)
    # From here on it is the run that was started: configs of its methods say nothing of a resume.
    config = replace(config, resume=False)
    training_splits = {key: rows for key, rows in splits.items() if key != "test"}
    made_from = {"data": {key: hashes[key] for key in training_splits}, "base": inputs["base"]}
    trainable = replace(make_trainable(config, assembled, anchors), made_from=made_from)
    rule = DEFAULT_OPTION_SCORE if config.option_score == "auto" else config.option_score
    trainer = make_trainer(trainable, config.evaluation, training_splits, answers, rule)
    return Run(config, folder, command, base, tokenizer, assembled, trainer, sets)


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
