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
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.evaluate import data_hash, write_json
from cogcalib_jax.evaluation.posthoc import fit_temperature
from cogcalib_jax.evaluation.predict import Predictor
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
from cogcalib_jax.runs.calibration import NO_OPTIONS
from cogcalib_jax.runs.config import RunConfig, require_same_config
from cogcalib_jax.runs.folder import (
    choose_folder,
    holding_locks,
    make_folder,
    original_command,
    resumable,
    take_up,
    write_config,
)
from cogcalib_jax.runs.method_run import Run, predict_function, score, train_method
from cogcalib_jax.runs.open_questions import open_predictor
from cogcalib_jax.runs.sampling import require_single_tokens, sampling_rows
from cogcalib_jax.training.composition import compose
from cogcalib_jax.training.finetune import FinetuneResult, make_trainer, style_phase
from cogcalib_jax.weights.base_hash import base_hash
from cogcalib_jax.weights.folders import whole_folder
from cogcalib_jax.weights.hub import model_folder


def train_run(config: RunConfig, name: str, argv: list[str], style: Path | None = None) -> Path:
    """Train and evaluate everything `config` asks for; returns the run's folder.

    name: what a default run folder is called after; argv: the command line, kept for the record;
    style: the style folder of another run, finished and with the same `style_identity`.
    """
    config = with_processes(config)
    with holding_locks():
        run = prepare(config, name, argv)
        with resumable(run.folder):
            _train_and_score(run, style)
    return run.folder


def _train_and_score(run: Run, style: Path | None) -> None:
    config = run.config
    style_folder = run.folder / "style"
    if style is not None:
        from_main(partial(_take_over, style, style_folder))
    say(f"== Style adaptation: {run.trainer.style_steps} updates of plain cross-entropy")
    start = style_phase(run.trainer, run.assembled.lora, style_folder)
    run = composed(run, start)

    methods = config.resolved_methods()
    if not config.compare:
        (method,) = methods.values()
        result = train_method(
            run, run.trainer, config.for_method(method), start, style_folder, run.folder
        )
        predict = predict_function(run, result.lora, run.folder / "adapter")
        score(run, run.folder, predict)
        return
    results: dict[str, dict[str, Any]] = {}
    sft = None
    for key, method in methods.items():
        folder = run.folder / key
        alone = config.for_method(method)
        write_config(folder, alone)
        result = train_method(run, run.trainer, alone, start, style_folder, folder)
        results[key] = score(run, folder, predict_function(run, result.lora, folder / "adapter"))
        if key == "sft":
            results |= _derived_rows(run, folder, result)
            sft = result.lora
    results |= sampling_rows(run, start, style_folder, sft)
    write_json(run.folder / "comparison.json", results)


def prepare(config: RunConfig, name: str, argv: list[str]) -> Run:
    """Base, data and model of a run on their devices, and its folder opened."""
    folder = choose_folder(config.run_dir, name, config.resume)
    if config.resume:
        take_up(folder)
    config = with_own_lora(config)
    require_even_batches(config)
    base = base_path(config.model, config.data, config.pretrain, config.seed)
    say(f"== Data and model: {config.data.task} with {base}")
    tokenizer = load_base_tokenizer(base)
    splits = encode_splits(config.data, tokenizer, config.seed)
    hashes = {name: data_hash(rows) for name, rows in splits.items()}
    require_agreement("data", lambda: hashes)
    require_options_space(config, splits)
    require_shared_classes(config, splits["train"])
    require_true_labels(config, splits["train"])
    sets = evaluation_sets(config, tokenizer, splits["test"])
    require_open_questions(config, splits["train"])
    require_single_tokens(config, [splits["train"], *sets.values()])
    assembled = assemble_model(config, config.lora, base)
    context = assembled.decoder.config.max_position_embeddings
    note_beyond_context(context, [*splits.values(), *sets.values()])
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
    command = original_command(folder, "train.py", argv)
    written = config if config.compare else config.for_method(config.method.resolve())
    if config.resume:
        require_same_config(folder, written)
    else:
        write_config(folder, written)
    # From here on it is the run that was started: configs of its methods say nothing of a resume.
    config = replace(config, resume=False)
    training_splits = {key: rows for key, rows in splits.items() if key != "test"}
    made_from = {"data": {key: hashes[key] for key in training_splits}, "base": _base_hash(base)}
    trainable = replace(make_trainable(config, assembled), made_from=made_from)
    trainer = make_trainer(trainable, config.evaluation, training_splits, answers)
    return Run(config, folder, command, base, tokenizer, assembled, trainer, sets)


def _base_hash(base: str | Path) -> str:
    """Of several processes the main one reads: a thousandth of the weights, but of all tensors."""
    return from_main(lambda: base_hash(model_folder(base)))


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


def _derived_rows(run: Run, sft: Path, result: FinetuneResult) -> dict[str, dict[str, Any]]:
    """The strongest simple rivals, which need no training of their own.

    A calibration split without a mistake has no best temperature, nor have open questions: that row
    is left out, and said.
    """
    say("== Rivals derived from sft: its best validation epoch, and a fitted temperature")
    rivals = {"sft_best_epoch": predict_function(run, result.best_lora)}
    try:
        temperature = _fitted_temperature(run, result)
        predict = partial(run.trainer.predictor, result.lora, temperature=temperature)
        rivals["sft_temperature"] = predict
    except UserError as error:
        say(f"   note: no row sft_temperature: {error}")
    return {key: score(run, sft.parent / key, predict) for key, predict in rivals.items()}


def _fitted_temperature(run: Run, result: FinetuneResult) -> float:
    if run.trainer.answers is not None:
        raise UserError(NO_OPTIONS)
    return fit_temperature(run.trainer.predictor(result.lora, run.trainer.splits["calibration"]))
