"""The lines of a run while it trains: updates, those that are not finite, and validations.

Validations follow accuracy and confidence on the validation split, and on known and unknown data.
The second is the mechanism the paper describes: known examples are absorbed within a few updates,
after which only confidence grows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.console import AnyBar, warn
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.errors import UserError, first_of
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.sharding import fetch
from cogcalib_jax.training.callbacks import Callback, StepInfo
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.state import Phase
from cogcalib_jax.training.step import StepFaults, StepMetrics
from cogcalib_jax.training.storage import Journal

# A term that is 0 for all but so few rows is warned about, after so many updates or the last one.
IDLE_SHARE = 0.01
IDLE_UPDATES = 100
# A skipped update leaves the parameters as they are. So what breaks batch after batch, each with
# other examples, is the parameters, and no later batch will mend them; a few examples too large for
# the model's precision come back once an epoch (with 1 % of them and batches of 8, five broken
# batches in a row happen in 3 of a million places).
SKIPPED_IN_A_ROW = 5


@dataclass(frozen=True)
class BrokenUpdate:
    """The numbers of one update that were not finite."""

    terms: tuple[str, ...]
    """of `ce`, `cal`, `anchor` and `gradient`; the gradient is named where the terms are finite"""
    examples: tuple[str, ...]
    """ids: those with a broken term, or with a broken gradient or anchor alone all of the batch"""
    of: int
    """examples of the batch"""
    in_a_row: int

    def words(self, phase: Phase, values: dict[str, float]) -> str:
        """Return the faults in words; `values`: the update's means."""
        if self.terms == ("gradient",):
            term = f" and term {values['cal']:.4g}" if phase.method.term != "none" else ""
            return (
                f"the gradient is not finite (cross-entropy {values['ce']:.4g}{term} are; examples"
                f" {first_of(self.examples)})"
            )
        names = {"ce": "cross-entropy", "cal": f"term {phase.method.term}"}
        if phase.anchors is not None:
            names["anchor"] = f"the mean of {phase.anchors.config.term} over the anchor rows"
        broken = " and ".join(names[term] for term in self.terms)
        if self.terms == ("anchor",):
            return f"{broken} not finite"
        if len(self.examples) == self.of > 1:
            return f"{broken} of all {self.of} examples not finite: {first_of(self.examples)}"
        return f"{broken} not finite: example {first_of(self.examples)} (of {self.of})"


def broken_update(faults: StepFaults, phase: Phase, values: dict[str, float]) -> BrokenUpdate:
    """Return the faults of an update with means `values`; all processes must call it."""
    row, ce, cal = map(fetch, (faults.row, *faults.of))
    in_a_row = int(jax.device_get(faults.in_a_row))
    broken = ce | cal
    terms = tuple(name for name, flags in (("ce", ce), ("cal", cal)) if flags.any())
    rows = row[broken] if terms else row
    if not np.isfinite(values.get("anchor", 0.0)):
        terms += ("anchor",)
    ids = tuple(phase.encoded[index].id for index in rows)
    return BrokenUpdate(terms or ("gradient",), ids, len(row), in_a_row)


def require_tolerable(
    broken: BrokenUpdate,
    step: int,
    phase: Phase,
    training: TrainingConfig,
    values: dict[str, float],
) -> None:
    """Raise UserError where a broken update ends the run; `step`: of the phase, from 0."""
    if training.nonfinite == "skip" and broken.in_a_row < SKIPPED_IN_A_ROW:
        return
    where = f"training: step {phase.first_step + step + 1} ({phase.name}, update {step + 1})"
    rate = training.learning_rate
    if phase.name == "style" and training.style_learning_rate is not None:
        rate = training.style_learning_rate
    lower = f"lower training.learning_rate ({rate:g})"
    if phase.method.term != "none":
        lower += f" or method.weight ({phase.method.weight:g})"
    if training.nonfinite == "skip":
        raise UserError(
            f"{where}: {broken.words(phase, values)}; {broken.in_a_row} updates in a row were"
            f" skipped, so it is not the examples: {lower}"
        )
    raise UserError(
        f"{where}: {broken.words(phase, values)}; {lower}, or leave such updates out:"
        " --resume --training.nonfinite skip"
    )


def require_finite(what: str, values: np.ndarray, ids: Sequence[str]) -> None:
    """Raise UserError naming the examples where `values` `[n]` of the model are not finite."""
    broken = ~np.isfinite(values)
    if broken.any():
        named = first_of([one for one, bad in zip(ids, broken, strict=True) if bad])
        raise UserError(
            f"training: {what} of {int(broken.sum())} of {len(values)} questions is not finite"
            f" ({named}), so the model has diverged; lower training.learning_rate"
        )


def step_info(line: Mapping[str, Any]) -> StepInfo:
    """Return what callbacks hear of an update whose line of metrics.jsonl is `line`."""
    names = {"cal": "term", "lr": "learning_rate"}
    told = {names.get(name, name): value for name, value in line.items()}
    # JSON has no numbers that are not finite.
    missing = {"threshold": -math.inf}
    return StepInfo(
        **{
            field.name: missing.get(field.name, math.nan)
            if told[field.name] is None
            else told[field.name]
            for field in fields(StepInfo)
        }
    )


class StepLog:
    """Progress bar and metrics.jsonl, one update late so that host and device overlap."""

    def __init__(
        self,
        journal: Journal,
        phase: Phase,
        training: TrainingConfig,
        callbacks: Sequence[Callback] = (),
    ):
        self._journal, self._phase, self._training = journal, phase, training
        self._callbacks = callbacks
        self._pending: tuple[int, StepMetrics, jax.Array, int] | None = None
        self._since = time.perf_counter()
        self._steps_since = 0
        self._tokens_since = 0
        self._active: list[float] = []
        """share of the examples that the term acted on, by update, until that is looked at"""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out of the training time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def updated(
        self, step: int, metrics: StepMetrics, threshold: jax.Array, tokens: int, bar: AnyBar
    ) -> None:
        self.flush(bar)
        self._pending = (step, metrics, threshold, tokens)

    def flush(self, bar: AnyBar) -> None:
        if self._pending is None:
            return
        step, metrics, threshold, tokens = self._pending
        self._pending = None
        scalars = {name: value for name, value in metrics._asdict().items() if value is not None}
        faults = scalars.pop("faults")
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        skipped = values["skipped"] = int(values["skipped"])
        broken = not np.isfinite([values["loss"], values["grad_norm"]]).all()
        if broken:
            self._broken(step, faults, values)
        self._steps_since += 1
        self._tokens_since += tokens
        self._watch_idle(step, values.get("active_fraction"))
        bar.update()
        # It follows the updates made; a skipped one shows what it would have had.
        counted = step - skipped + broken
        if self._callbacks:
            self._tell(step, values, float(threshold), float(self._phase.schedule(counted)))
        last = step + 1 == self._phase.steps
        if (step + 1) % self._training.log_every and not last:
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        examples_per_s = self._steps_since * self._training.batch_size / seconds
        tokens_per_s = self._tokens_since / seconds
        self._since, self._steps_since, self._tokens_since = now, 0, 0
        self._journal.write(
            step=self._phase.first_step + step + 1,
            phase=self._phase.name,
            **values,
            threshold=float(threshold),
            lr=float(self._phase.schedule(counted)),
            examples_per_s=round(examples_per_s, 2),
            tokens_per_s=round(tokens_per_s, 1),
        )
        bar.set_postfix_str(
            f"loss {values['loss']:.3f}, known {values['known_fraction']:.0%},"
            f" {examples_per_s:.0f} examples/s" + (f", {skipped} skipped" if skipped else "")
        )

    def _watch_idle(self, step: int, active: float | None) -> None:
        """Warn once, after some updates, about a term that is 0 nearly everywhere."""
        if active is None:
            return
        self._active.append(active)
        seen = len(self._active)
        if seen == IDLE_UPDATES or (step + 1 == self._phase.steps and seen < IDLE_UPDATES):
            share = float(np.mean(self._active))
            if share < IDLE_SHARE:
                warn(
                    f"method.term is {self._phase.method.term}, and only {share:.1%} of the rows of"
                    f" {seen} updates have logits as far apart as its margin. Set a smaller margin,"
                    " or it changes nothing"
                )

    def _tell(self, step: int, values: dict[str, float], threshold: float, rate: float) -> None:
        line = {"step": self._phase.first_step + step + 1, "phase": self._phase.name, **values}
        info = step_info(line | {"threshold": threshold, "lr": rate})
        for callback in self._callbacks:
            callback.on_step(info)

    def _broken(self, step: int, faults: StepFaults, values: dict[str, float]) -> None:
        """A line for an update that changed nothing; UserError where the run ends with it."""
        broken = broken_update(faults, self._phase, values)
        self._journal.write(
            step=self._phase.first_step + step + 1,
            phase="nonfinite",
            during=self._phase.name,
            terms=list(broken.terms),
            examples=list(broken.examples),
            skipped=values["skipped"],
        )
        require_tolerable(broken, step, self._phase, self._training, values)


@dataclass(frozen=True)
class Followed:
    """A set of questions followed over training, and which of them count as known."""

    data: str
    """"train" or "validation" """
    encoded: EncodedSplit
    known: np.ndarray
    """[rows] bool: by the world's exposures, or as the style-adapted model's NLL says"""


class Belief(NamedTuple):
    """The belief of a model in `n` questions, as it is followed over training."""

    correct: np.ndarray
    """[n] 0 or 1"""
    confidence: np.ndarray
    """[n] in [0, 1]"""
    nll: np.ndarray
    """[n] nats, of the right answer"""
    brier: np.ndarray | None
    """[n]; None for open questions, where `confidence` is in another answer than the model's"""
    gold: np.ndarray | None = None
    """[n] nats: NLL of the right option over the vocabulary per token; None for open questions"""


def options_belief(predictions: Predictions) -> Belief:
    """Return the belief in the options of each question."""
    probs, mask, answers = predictions.probs, predictions.mask, predictions.answers
    top = metrics.top_label(probs, mask, answers)
    return Belief(
        top.correct,
        top.confidence,
        metrics.nll_per_row(probs, mask, answers),
        metrics.brier_per_row(probs, mask, answers),
        predictions.gold_nll,
    )


def reference_belief(nll: np.ndarray, correct: np.ndarray) -> Belief:
    """Return the belief in the reference answers of open questions, without generating.

    nll `[n]` nats of the whole reference, its stop included; correct `[n]`: each of its tokens is
    the argmax, so that the model would say just this. The confidence is the reference's
    probability: that of the model's answer where it is correct, and a lower one where it is not.
    """
    return Belief(correct.astype(np.float64), np.exp(-nll), nll, None)


def quick_metrics(belief: Belief, bins: int) -> dict[str, float | None]:
    """The numbers of one validation, without intervals or floors."""
    numbers = _means(belief)
    if belief.gold is not None:
        numbers["gold_nll"] = float(belief.gold.mean())
    if belief.brier is None:
        return numbers | {"brier": None, "ece": None, "auroc": None}
    return numbers | {
        "brier": float(belief.brier.mean()),
        "ece": metrics.ece(belief.confidence, belief.correct, bins=bins),
        "auroc": metrics.auroc(belief.confidence, belief.correct),
    }


def validate(
    believes: Callable[[Sequence[Encoded]], Belief],
    followed: Sequence[Followed],
    bins: int,
    step: int,
    epoch: float,
    journal: Journal,
    dynamics: Journal,
) -> tuple[dict[str, float | None], list[tuple[Followed, Belief]]]:
    """Follow every set, write metrics.jsonl and dynamics.jsonl, and return the numbers of the
    validation split, none if it is not followed, and the belief in each set."""
    validation: dict[str, float | None] = {}
    beliefs = []
    for one in followed:
        belief = believes(one.encoded)
        beliefs.append((one, belief))
        for group, rows in (("known", one.known), ("unknown", ~one.known)):
            if rows.any():
                of_group = Belief(*(None if x is None else x[rows] for x in belief))
                record = {"n": int(rows.sum())} | _means(of_group)
                dynamics.write(step=step, data=one.data, group=group, **record)
        if one.data == "validation":
            validation = quick_metrics(belief, bins)
            journal.write(step=step, phase="validation", epoch=round(epoch, 4), **validation)
    return validation, beliefs


def _means(belief: Belief) -> dict[str, Any]:
    return {
        "accuracy": metrics.accuracy(belief.correct),
        "confidence": metrics.mean_confidence(belief.confidence),
        "nll": float(belief.nll.mean()),
    }
