"""The baselines of a comparison that average several models of plain fine-tuning.

MC-dropout keeps dropout on while it answers. A deep ensemble is several fine-tunings with their own
first weights, style phase and data order. Laplace-LoRA puts a normal distribution around a trained
adapter; BLoB trains such a distribution from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from cogcalib_jax.baselines.kfac import NoPosterior
from cogcalib_jax.baselines.laplace import LaplacePredictor, fit
from cogcalib_jax.baselines.sampling import DropoutPredictor, EnsemblePredictor
from cogcalib_jax.cli.method_run import Run, Start, score, train_method
from cogcalib_jax.cli.results import has_results, read_results
from cogcalib_jax.cli.run_config import MC_DROPOUT
from cogcalib_jax.cli.run_folder import write_config
from cogcalib_jax.console import say
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.parameters import (
    abstract_decoder,
    random_lora,
    split_model,
    with_dropout,
    with_uncertainty,
)
from cogcalib_jax.settings import identity, style_identity
from cogcalib_jax.training.blob import Prior
from cogcalib_jax.training.finetune import make_trainer, style_phase

Predict = Callable[[EncodedSplit], Predictions]


def sampling_rows(run: Run, start: Start, sft: nnx.State | None) -> dict[str, dict[str, Any]]:
    """Train and score the baselines of the comparison, each into a folder of its name.

    sft: LoRA parameters of the comparison's plain fine-tuning, if it has one; baselines reuse it.
    """
    baselines: dict[str, Callable[[Path], Predict]] = {
        "mc_dropout": lambda folder: _mc_dropout(run, start, sft, folder),
        "ensemble": lambda folder: _ensemble(run, sft, folder),
        "laplace_lora": lambda folder: _laplace_lora(run, start, sft, folder),
        "blob": lambda folder: _blob(run, start, folder),
    }
    rows = {}
    for name in run.config.sampling_baselines:
        folder = run.folder / name
        if has_results(folder):
            rows[name] = read_results(folder)
            continue
        try:
            rows[name] = score(run, folder, baselines[name](folder))
        except NoPosterior as error:
            say(f"   note: no row {name}: {error}")
    return rows


def _mc_dropout(run: Run, start: Start, sft: nnx.State | None, folder: Path) -> Predict:
    config = run.config.as_plain_finetuning()
    dropout = config.lora.lora_dropout or MC_DROPOUT
    passes = config.evaluation.mc_passes
    say(f"== mc_dropout: sft with dropout {dropout:g}, {passes} passes a question")
    model = run.assembled.model
    if config.lora.lora_dropout == 0:
        config = replace(config, lora=replace(config.lora, lora_dropout=dropout))
        model, _ = split_model(with_dropout(run.assembled.decoder, dropout))
    if sft is None or config.lora != run.config.lora:
        trainable = replace(
            run.trainer.trainable, model=model, dropout=True, identity=identity(config)
        )
        trainer = replace(run.trainer, trainable=trainable)
        write_config(folder, config)
        sft = train_method(run, trainer, config, start, folder).lora
    predictor = DropoutPredictor(model, run.assembled.mesh, config.evaluation, config.option_score)
    return partial(predictor, sft, seed=config.seed)


def _ensemble(run: Run, sft: nnx.State | None, folder: Path) -> Predict:
    # The comparison's sft has the run's own seed: it is the first member.
    count = run.config.ensemble_members
    members = [] if sft is None else [sft]
    for number in range(len(members), count):
        say(f"== ensemble: member {number + 1} of {count}, in {folder / f'member-{number}'}")
        members.append(_member(run, number, folder / f"member-{number}"))
    predictor = EnsemblePredictor(
        run.assembled.model, run.assembled.mesh, run.config.evaluation, run.config.option_score
    )
    return partial(predictor, members)


def _member(run: Run, number: int, folder: Path) -> nnx.State:
    config = replace(run.config.as_plain_finetuning(), ensemble_member=number)
    write_config(folder, config)
    trainable = replace(run.trainer.trainable, seed=config.training_seed, identity=identity(config))
    trainer = replace(run.trainer, trainable=trainable)
    first, decoder = run.assembled.lora, run.assembled.decoder
    if config.adapter is None:
        _, abstract = abstract_decoder(
            decoder.config, config.lora, decoder.dtype, run.assembled.mesh
        )
        first = random_lora(decoder.config, config.lora, abstract, config.training_seed)
    lora = style_phase(trainer, first, folder / "style", style_identity(config))
    return train_method(run, trainer, config, Start(lora, folder), folder).lora


def _laplace_lora(run: Run, start: Start, sft: nnx.State | None, folder: Path) -> Predict:
    config = run.config.as_plain_finetuning()
    if sft is None:
        write_config(folder, config)
        sft = train_method(run, run.trainer, config, start, folder).lora
    rows = run.trainer.splits["train"]
    say(f"== laplace_lora: a posterior around sft from {len(rows)} fine-tuning rows")
    model, mesh, evaluation = run.assembled.model, run.assembled.mesh, config.evaluation
    fitted = fit(model, sft, mesh, rows, evaluation.batch_size, option_score=config.option_score)
    record = fitted.record()
    write_json(folder / "laplace.json", record)
    say(
        f"   prior precision {record['prior_precision']:.4g},"
        f" {record['effective_parameters']:.0f} effective parameters"
    )
    predictor = LaplacePredictor(model, mesh, evaluation, option_score=config.option_score)
    return partial(predictor, sft, fitted.posterior, seed=config.seed)


def _blob(run: Run, start: Start, folder: Path) -> Predict:
    """Train standard deviations beside A; validations and the stored adapter take the mean."""
    config = run.config.as_plain_finetuning()
    evaluation, training = config.evaluation, config.training
    say(f"== blob: sft with a distribution over A, {evaluation.mc_passes} draws a question")
    decoder = with_uncertainty(run.assembled.model.merge(start.lora), config.training_seed)
    model, lora = split_model(decoder)
    rows = len(run.trainer.splits["train"])
    prior = Prior(rows, training.batch_size, training.learning_rate)
    trainable = replace(
        run.trainer.trainable,
        model=model,
        dropout=True,
        variant=prior,
        identity=identity(config) | prior.identity(),
    )
    trainer = make_trainer(trainable, evaluation, run.trainer.splits)
    write_config(folder, config)
    trained = train_method(run, trainer, config, replace(start, lora=lora), folder)
    predictor = DropoutPredictor(model, run.assembled.mesh, evaluation, config.option_score)
    return partial(predictor, trained.lora, seed=config.seed)
