"""The baselines of a comparison that average several models of plain fine-tuning.

MC-dropout keeps dropout on while it answers. A deep ensemble is several fine-tunings with their own
first weights, style phase and data order. Laplace-LoRA puts a normal distribution around a trained
adapter; BLoB trains such a distribution from the beginning. TFB adds noise to a trained adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from cogcalib_jax.baselines import tfb
from cogcalib_jax.baselines.ib_edl import IbEdl, IbEdlPredictor, scale_tokens
from cogcalib_jax.baselines.kfac import NoPosterior
from cogcalib_jax.baselines.laplace import LaplacePredictor, fit
from cogcalib_jax.baselines.registry import BASELINES
from cogcalib_jax.baselines.rows import (
    Blob,
    Ensemble,
    IbEdlRow,
    IvonRow,
    LaplaceLora,
    McDropout,
    ScalaBlRow,
    Tfb,
)
from cogcalib_jax.baselines.sampling import DropoutPredictor, EnsemblePredictor, draws
from cogcalib_jax.baselines.variational import Prior, ScalaBl
from cogcalib_jax.cli.method_run import Run, Start, score, train_method, write_answers
from cogcalib_jax.cli.references import interpolation_row
from cogcalib_jax.cli.results import Predict, has_results, read_results
from cogcalib_jax.cli.run_config import MC_DROPOUT, RunConfig
from cogcalib_jax.cli.run_folder import write_config
from cogcalib_jax.console import say
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.models.parameters import (
    abstract_decoder,
    random_lora,
    split_model,
    with_dropout,
    with_uncertainty,
)
from cogcalib_jax.report.recommendation import VALIDATION_FILE
from cogcalib_jax.settings import identity, style_identity
from cogcalib_jax.training.config import OPTIMIZERS
from cogcalib_jax.training.finetune import FinetuneResult, make_trainer, style_phase
from cogcalib_jax.training.log import options_belief
from cogcalib_jax.training.variant import Variant


@dataclass(frozen=True)
class _Row:
    """A baseline of the comparison, and what it is made from."""

    run: Run
    start: Start
    folder: Path
    shared: FinetuneResult | None
    """the comparison's plain fine-tuning, if it has one"""

    @property
    def config(self) -> RunConfig:
        return self.run.config.as_plain_finetuning()

    def sft(self) -> FinetuneResult:
        """Return plain fine-tuning: the comparison's, or one of this row's own."""
        if self.shared is not None:
            return self.shared
        write_config(self.folder, self.config)
        return train_method(self.run, self.run.trainer, self.config, self.start, self.folder)


def sampling_rows(run: Run, start: Start, sft: FinetuneResult | None) -> dict[str, dict[str, Any]]:
    """Train and score the baselines of the comparison, each into a folder of its name, with its
    answers to the validation questions; they reuse its plain fine-tuning `sft`, if it has one."""
    rows = {}
    for name, baseline in run.config.baselines.items():
        folder = run.folder / name
        if has_results(folder):
            rows[name] = read_results(folder)
            continue
        make = FITS[BASELINES.entry_of(baseline).name]
        try:
            predict = make(_Row(run, start, folder, sft), baseline)
        except NoPosterior as error:
            say(f"   note: no row {name}: {error}")
            continue
        if validation := run.trainer.splits["validation"]:
            belief = options_belief(predict(validation))
            write_answers(folder / VALIDATION_FILE, validation, belief)
        rows[name] = score(run, folder, predict)
    return rows


def _mc_dropout(row: _Row, baseline: McDropout) -> Predict:
    run, config = row.run, row.config
    dropout = config.lora.lora_dropout or MC_DROPOUT
    passes = config.evaluation.mc_passes
    say(f"== mc_dropout: sft with dropout {dropout:g}, {passes} passes a question")
    model = run.assembled.model
    if config.lora.lora_dropout == 0:
        config = replace(config, lora=replace(config.lora, lora_dropout=dropout))
        model, _ = split_model(with_dropout(run.assembled.decoder, dropout))
    if row.shared is not None and config.lora == run.config.lora:
        sft = row.shared.lora
    else:
        sft = _train(row, config, model=model, dropout=True).lora
    predictor = DropoutPredictor(model, run.assembled.mesh, config.evaluation, config.option_score)
    return partial(predictor, sft, seed=config.seed)


def _ensemble(row: _Row, baseline: Ensemble) -> Predict:
    # The comparison's sft has the run's own seed: it is the first member.
    run, folder = row.run, row.folder
    count = run.config.ensemble_members
    members = [] if row.shared is None else [row.shared.lora]
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


def _laplace_lora(row: _Row, baseline: LaplaceLora) -> Predict:
    run, config, folder, sft = row.run, row.config, row.folder, row.sft().lora
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


def _blob(row: _Row, baseline: Blob) -> Predict:
    """Train standard deviations beside A; validations and the stored adapter take the mean."""
    run, config, start, folder = row.run, row.config, row.start, row.folder
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


def _tfb(row: _Row, baseline: Tfb) -> Predict:
    run, config, sft = row.run, row.config, row.sft()
    lora = sft.best_lora if baseline.of == "best_epoch" else sft.lora
    train, assembled = run.trainer.splits["train"], run.assembled
    say(f"== {row.folder.name}: noise on A, {config.evaluation.mc_passes} draws a question")
    fitted = tfb.fit(
        *(baseline, assembled.model, lora, assembled.mesh, train, config.evaluation),
        option_score=config.option_score,
        seed=config.seed,
    )
    write_json(row.folder / tfb.FILE, fitted.record)
    say(f"   {fitted.words}")
    return fitted


def _ivon(row: _Row, baseline: IvonRow) -> Predict:
    spec = OPTIMIZERS.spec(baseline.optimizer)
    config = replace(row.config, training=replace(row.config.training, optimizer=spec))
    say(f"== {row.folder.name}: sft by {spec}")
    return _drawn(row, config, baseline.optimizer, mean=baseline.predict == "mean")


def _scalabl(row: _Row, baseline: ScalaBlRow) -> Predict:
    run, config = row.run, row.config
    training = config.training
    say(f"== {row.folder.name}: sft with a distribution over the scales of ranks")
    variant = ScalaBl(
        *(len(run.trainer.splits["train"]), training.batch_size, training.learning_rate),
        rate=baseline.rate,
        deviation=baseline.deviation,
        seed=config.training_seed,
    )
    return _drawn(row, config, variant)


def _ib_edl(row: _Row, baseline: IbEdlRow) -> Predict:
    run, config = row.run, row.config
    say(f"== {row.folder.name}: an evidential loss over the options")
    tokens = scale_tokens(run.trainer.splits | run.sets, run.assembled.decoder.config.vocab_size)
    variant = IbEdl(tokens, baseline.beta, baseline.draws)
    trained = _train(row, config, variant=variant, training=config.training)
    predictor = IbEdlPredictor(
        *(run.assembled.model, run.assembled.mesh, config.evaluation, variant, baseline.caution),
        option_score=config.option_score,
    )
    return partial(predictor, trained.lora, seed=config.seed)


def _drawn(row: _Row, config: RunConfig, variant: Variant, mean: bool = False) -> Predict:
    """Train `variant` and average over draws of its distribution; mean: take its mean instead."""
    run, evaluation = row.run, config.evaluation
    trained = _train(row, config, variant=variant, training=config.training)
    if mean:
        return partial(run.trainer.predictor, trained.lora)
    together = EnsemblePredictor(
        run.assembled.model, run.assembled.mesh, evaluation, config.option_score
    )
    members = draws(trained.draw, config.seed, evaluation.mc_passes)
    return partial(together, members, over="posterior_samples")


def _train(row: _Row, config: RunConfig, **changes: Any) -> FinetuneResult:
    """Fine-tune into the row's folder, with `changes` to what the phases of the run share."""
    made = identity(config)
    if "variant" in changes:
        made |= changes["variant"].identity()
    trainable = replace(row.run.trainer.trainable, identity=made, **changes)
    write_config(row.folder, config)
    trainer = replace(row.run.trainer, trainable=trainable)
    return train_method(row.run, trainer, config, row.start, row.folder)


# Name of a baseline -> the function from its settings to predictions.
FITS: dict[str, Callable[[_Row, Any], Predict]] = {
    "mc_dropout": _mc_dropout,
    "ensemble": _ensemble,
    "laplace_lora": _laplace_lora,
    "blob": _blob,
    "tfb": _tfb,
    "ivon": _ivon,
    "scalabl": _scalabl,
    "ib_edl": _ib_edl,
    "start": lambda row, _: partial(row.run.trainer.predictor, row.start.lora),
    "interpolation": lambda row, _: interpolation_row(row.run, row.start, row.folder),
}
