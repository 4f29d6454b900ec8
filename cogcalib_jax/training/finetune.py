"""The two phases of the method: style adaptation, then gated fine-tuning with threshold refits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.console import say
from cogcalib_jax.data.batching import Batch, scored_batches
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, EvaluationConfig, OptionScore
from cogcalib_jax.inference.forward import example_losses
from cogcalib_jax.inference.open_ended import OpenPredictor
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.inference.predict import Predictor, SplitPass
from cogcalib_jax.method.config import GATES, MethodConfig
from cogcalib_jax.method.gates import ThresholdFit, fit_threshold
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.training.callbacks import ThresholdInfo, ValidationInfo
from cogcalib_jax.training.log import (
    Belief,
    Followed,
    options_belief,
    reference_belief,
    require_finite,
    validate,
)
from cogcalib_jax.training.loop import run_phase
from cogcalib_jax.training.state import (
    Phase,
    Progress,
    Trainable,
    anchors_with_start,
    begin,
    start_beliefs,
)
from cogcalib_jax.training.step import learning_rate_schedule
from cogcalib_jax.training.storage import Journal
from cogcalib_jax.training.variant import PLAIN

SFT = MethodConfig(name="sft").resolve()


@dataclass(frozen=True)
class Trainer:
    """A run's data and compiled passes, shared by its methods."""

    trainable: Trainable
    evaluation: EvaluationConfig
    splits: dict[str, EncodedSplit]
    """style, train, calibration, validation"""
    predictor: Predictor
    losses: SplitPass
    """per-example (nll, correct) in `loss.space`"""
    answers: OpenPredictor | None = None
    """of open questions: what writes their answers"""

    @property
    def total_steps(self) -> int:
        return self.trainable.training.finetune_steps(len(self.splits["train"]))

    @property
    def style_steps(self) -> int:
        return self.trainable.training.style_updates(len(self.splits["train"]))

    def scored_by(self, option_score: OptionScore) -> Trainer:
        """Return the same trainer with another rule that scores options."""
        return replace(
            self,
            trainable=replace(self.trainable, option_score=option_score),
            predictor=self.predictor.scored_by(option_score),
        )

    def nll(self, lora: nnx.State, encoded: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
        """Return NLL `[rows]` in nats and correctness `[rows]` bool of the examples, in order
        (UserError: an NLL that is not finite)."""
        split = EncodedSplit.of(encoded)
        rule = self.trainable.tree_rule(split, self.trainable.loss.space)
        batches = scored_batches(split, self.evaluation.batch_size, rule)
        rows, (nll, correct) = self.losses(lora, batches)
        order = np.argsort(rows)
        require_finite("the NLL", nll[order], [e.id for e in split])
        return nll[order].astype(np.float64), correct[order] > 0

    def refit(self, lora: nnx.State) -> ThresholdFit:
        """Return the threshold that best separates right from wrong calibration answers."""
        calibration = self.splits["calibration"]
        nll, correct = self.nll(lora, calibration)
        if self.trainable.loss.correct == "exact_match":
            correct = self.answers.answers(lora, calibration).exact_match
        return fit_threshold(nll, correct)

    def known_at(self, lora: nnx.State, encoded: Sequence[Encoded]) -> np.ndarray:
        """Return knownness `[rows]` bool: an NLL of at most the threshold fitted there."""
        return self.nll(lora, encoded)[0] <= self.refit(lora).threshold

    def with_train_split(self, train: EncodedSplit) -> Trainer:
        """The same on other fine-tuning rows; style adaptation stays as long as it was."""
        training = replace(self.trainable.training, style_steps=self.style_steps)
        return replace(
            self,
            trainable=replace(self.trainable, training=training),
            splits=self.splits | {"train": train},
        )

    def belief(self, lora: nnx.State, encoded: Sequence[Encoded]) -> Belief:
        """Return the model's belief in the right answers, as validation follows it."""
        if self.answers is None:
            return options_belief(self.predictor(lora, encoded))
        nll, correct = self.nll(lora, encoded)
        tokens = np.array([len(e.completion_ids[e.answer]) for e in encoded])
        if self.trainable.loss.tokens == "mean":
            nll = nll * tokens
        return reference_belief(nll, correct)


@dataclass(frozen=True)
class Watch:
    """The lines that a study writes with every validation, also before the first update."""

    journal: Journal
    """cut back on resume, as a run's own journals are"""
    records: Callable[[nnx.State, Sequence[tuple[Followed, Belief]]], Iterable[dict[str, Any]]]
    """from the LoRA parameters of that moment, and what is believed of the questions that are
    followed, to lines; they get its step"""


@dataclass(frozen=True)
class FinetuneResult:
    """The outcome of one method's fine-tuning."""

    lora: nnx.State
    """what the run keeps: after the last update, or with `keep: best` the next"""
    best_lora: nnx.State
    """at the lowest validation NLL"""
    best_epoch: float
    threshold: float
    draw: Callable[[jax.Array], nnx.State]
    """from a key to a draw of the LoRA parameters: `lora` itself, unless the variant has a
    distribution"""


def make_trainer(
    trainable: Trainable,
    evaluation: EvaluationConfig,
    splits: dict[str, EncodedSplit],
    answers: OpenPredictor | None = None,
) -> Trainer:
    """Collect what the methods of a run share; nothing is compiled yet.

    answers: the predictor of open questions, if those of `splits` are open.
    """

    def nll_and_correct(decoder: Decoder, batch: Batch) -> tuple[jax.Array, jax.Array]:
        losses = example_losses(decoder, batch, trainable.loss)
        return losses.nll, losses.correct

    model, mesh = trainable.model, trainable.mesh
    return Trainer(
        trainable,
        evaluation,
        splits,
        predictor=Predictor(model, mesh, evaluation, trainable.option_score),
        losses=SplitPass(model, mesh, nll_and_correct),
        answers=answers,
    )


def style_phase(
    trainer: Trainer, lora: nnx.State, folder: Path, identity: dict[str, Any] | None = None
) -> nnx.State:
    """Train on the style split with plain cross-entropy: NLL then measures knowledge, not format.

    identity: what a run must have in common to take up its checkpoints, as JSON: less than all of
    a run, for another method, or another share of known rows, may start from the same style phase.
    None: all of the trainer's.
    """
    steps = trainer.style_steps
    if steps == 0:
        return lora
    training = trainer.trainable.training
    phase = Phase(
        name="style",
        method=SFT,
        encoded=trainer.splits["style"],
        steps=steps,
        schedule=learning_rate_schedule(
            training.style_learning_rate or training.learning_rate,
            "constant",
            steps,
            training.warmup_fraction,
        ),
        save_at=frozenset({steps}),
        folder=folder,
    )
    # Rules are chosen from one start, and compared from one: it depends on none of them.
    trainable = replace(trainer.trainable, option_score=DEFAULT_OPTION_SCORE, variant=PLAIN)
    if identity is not None:
        trainable = replace(trainable, identity=identity)
    # No threshold yet: nothing counts as known.
    progress = begin(trainable, phase, lora, float("-inf"), np.zeros(len(phase.encoded)))
    journal = trainable.storage.journal(folder / "metrics.jsonl")
    return run_phase(
        trainable, phase, progress, [journal], lambda progress, step: progress
    ).state.lora


def finetune(
    trainer: Trainer,
    method: MethodConfig,
    start: nnx.State,
    style_folder: Path,
    folder: Path,
    watch: Watch | None = None,
    wrap: Callable[[nnx.State], Any] | None = None,
) -> FinetuneResult:
    """Fine-tune `method` (resolved) from the style-adapted `start` into `folder`.

    wrap: makes of LoRA parameters what callbacks are given as the model.
    """
    trainable, training = trainer.trainable, trainer.trainable.training
    train, total, style_steps = trainer.splits["train"], trainer.total_steps, trainer.style_steps
    ends = training.epoch_ends(len(train))
    refit_at = pauses(training.refit_every, total, ends)
    validate_at = pauses(training.validate_every, total, ends)
    built, batch_size, anchors = method.build(), trainer.evaluation.batch_size, trainable.anchors

    def scratch(name: str) -> Callable[[], Path]:
        return partial(trainable.storage.scratch, folder / name)

    if anchors is not None:
        place = scratch("start_anchor")
        temperature = 1.0
        if anchors.config.tempered:
            temperature = fit_temperature(trainer.predictor(start, trainer.splits["calibration"]))
            say(f"   anchors are held to the start at temperature {temperature:.2f}")
        anchors = anchors_with_start(
            anchors, trainable, built.space, start, batch_size, place, temperature
        )
    phase = Phase(
        name="finetune",
        method=method,
        encoded=train,
        steps=total,
        schedule=learning_rate_schedule(
            training.learning_rate, training.schedule, total, training.warmup_fraction
        ),
        save_at=pauses(trainable.checkpoint.every, total, ends),
        pause_at=refit_at | validate_at,
        folder=folder,
        start=start_beliefs(trainable, built, start, train, batch_size, scratch("start")),
        anchors=anchors,
        first_step=style_steps,
    )
    first_fit, refits = trainer.refit(start), GATES.make(method.gate).refits
    labels = fixed_labels(trainer, method, start, first_fit.threshold)
    followed = _followed(trainer, start, first_fit.threshold)
    stored = trainable.storage.journal
    journal, dynamics = stored(folder / "metrics.jsonl"), stored(folder / "dynamics.jsonl")
    journals = [journal, dynamics] + ([watch.journal] if watch else [])

    def record_fit(fit: ThresholdFit, step: int) -> None:
        journal.write(step=style_steps + step, phase="refit", **fit.record(), note=fit.note)
        for callback in trainable.callbacks:
            callback.on_threshold(ThresholdInfo(style_steps + step, fit.threshold, fit.record()))

    def pause(progress: Progress, step: int) -> Progress:
        lora = trainable.variant.mean(progress.state.lora)
        if step == 0:
            journal.begin(stored(style_folder / "metrics.jsonl"))
            for one in journals[1:]:
                one.begin()
            record_fit(first_fit, 0)
        elif step in refit_at and refits:
            fit = trainer.refit(lora)
            record_fit(fit, step)
            progress = progress._replace(threshold=trainable.scalar(fit.threshold))
        if step == 0 or step in validate_at:
            epoch = step * training.batch_size / len(train)
            numbers, beliefs = validate(
                partial(trainer.belief, lora),
                followed,
                trainer.evaluation.bins,
                style_steps + step,
                epoch,
                journal,
                dynamics,
            )
            nll = numbers.get("nll", float("nan"))
            for callback in trainable.callbacks:
                callback.on_validation(
                    ValidationInfo(style_steps + step, epoch, numbers, lora, wrap)
                )
            for record in watch.records(lora, beliefs) if watch else ():
                watch.journal.write(step=style_steps + step, **record)
            # The start is no candidate: a fine-tuned model is what was asked for.
            if step > 0 and nll < float(progress.best_nll):
                progress = progress._replace(
                    best_lora=jax.tree.map(jnp.copy, progress.state.lora),
                    best_nll=trainable.scalar(nll),
                    best_step=trainable.scalar(step),
                )
        return progress

    progress = begin(trainable, phase, start, first_fit.threshold, labels)
    progress = run_phase(trainable, phase, progress, journals, pause)
    variant, state = trainable.variant, progress.state
    kept = progress.best_lora if training.keep == "best" else state.lora
    return FinetuneResult(
        lora=variant.mean(kept),
        best_lora=variant.mean(progress.best_lora),
        best_epoch=float(progress.best_step) * training.batch_size / len(train),
        threshold=float(progress.threshold),
        draw=partial(variant.draw, kept, state.opt_state),
    )


def fixed_labels(
    trainer: Trainer, method: MethodConfig, start: nnx.State, threshold: float
) -> np.ndarray:
    """Return the labels of a gate that flags examples once, `[rows of train]` float64; 0 for a gate
    that uses none."""
    train, gate = trainer.splits["train"], GATES.make(method.gate)
    if gate.labelled_by == "world":
        known = np.array([float(e.example.extra["known"]) for e in train])
    elif gate.labelled_by == "start":
        known = (trainer.nll(start, train)[0] <= threshold).astype(np.float64)
    else:
        return np.zeros(len(train))
    return gate.labels(known, trainer.trainable.seed)


def _followed(trainer: Trainer, start: nnx.State, threshold: float) -> list[Followed]:
    """The questions followed over training, split into known and unknown once and for all."""
    sets = {
        "validation": trainer.splits["validation"],
        "train": trainer.splits["train"][: trainer.trainable.training.probe_rows],
    }
    followed = []
    for data, encoded in sets.items():
        if not encoded:
            continue
        if all("known" in e.example.extra for e in encoded):
            known = np.array([bool(e.example.extra["known"]) for e in encoded])
        else:
            known = trainer.nll(start, encoded)[0] <= threshold
        followed.append(Followed(data, encoded, known))
    return followed


def pauses(every: int | None, total: int, epoch_ends: list[int]) -> frozenset[int]:
    """Return every n-th update and the last one, or the ends of epochs."""
    if every is None:
        return frozenset(epoch_ends)
    return frozenset(range(every, total, every)) | {total}
