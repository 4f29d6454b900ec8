"""Updates whose loss or gradient is not finite: said in words, and when there are too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from cogcalib_jax.errors import UserError
from cogcalib_jax.sharding import fetch
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.state import Phase
from cogcalib_jax.training.step import StepFaults

# A skipped update leaves the parameters as they are. So what breaks batch after batch, each with
# other examples, is the parameters, and no later batch will mend them; a few examples too large for
# the model's precision come back once an epoch (with 1 % of them and batches of 8, five broken
# batches in a row happen in 3 of a million places).
SKIPPED_IN_A_ROW = 5
NAMED = 8


@dataclass(frozen=True)
class BrokenUpdate:
    """What was not finite in one update."""

    terms: tuple[str, ...]
    """of `ce`, `cal`, `anchor` and `gradient`; the gradient is named where the terms are finite"""
    examples: tuple[str, ...]
    """ids: those with a broken term, or with a broken gradient or anchor alone all of the batch"""
    of: int
    """examples of the batch"""
    in_a_row: int

    def words(self, phase: Phase, values: dict[str, float]) -> str:
        """What broke where; `values`: the update's means."""
        if self.terms == ("gradient",):
            term = f" and term {values['cal']:.4g}" if phase.method.term != "none" else ""
            return (
                f"the gradient is not finite (cross-entropy {values['ce']:.4g}{term} are; examples"
                f" {listed(self.examples)})"
            )
        names = {"ce": "cross-entropy", "cal": f"term {phase.method.term}"}
        if phase.anchors is not None:
            names["anchor"] = f"the mean of {phase.anchors.config.term} over the anchor rows"
        broken = " and ".join(names[term] for term in self.terms)
        if self.terms == ("anchor",):
            return f"{broken} not finite"
        if len(self.examples) == self.of > 1:
            return f"{broken} of all {self.of} examples not finite: {listed(self.examples)}"
        return f"{broken} not finite: example {listed(self.examples)} (of {self.of})"


def broken_update(faults: StepFaults, phase: Phase, values: dict[str, float]) -> BrokenUpdate:
    """From what an update reported, `values` being its means; of several processes, all ask."""
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


def listed(ids: Sequence[str]) -> str:
    """The first few of `ids`."""
    more = len(ids) - NAMED
    return ", ".join(ids[:NAMED]) + (f" and {more} more" if more > 0 else "")


def require_finite(what: str, values: np.ndarray, ids: Sequence[str]) -> None:
    """Raise UserError naming the examples where `values` `[n]` of the model are not finite."""
    broken = ~np.isfinite(values)
    if broken.any():
        named = listed([one for one, bad in zip(ids, broken, strict=True) if bad])
        raise UserError(
            f"training: {what} of {int(broken.sum())} of {len(values)} questions is not finite"
            f" ({named}), so the model has diverged; lower training.learning_rate"
        )
