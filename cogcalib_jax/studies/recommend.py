"""Recommend one of the candidates of a tuning, with the table and sentences that say why.

Among candidates whose accuracy is within one point of plain fine-tuning's, the lowest validation
NLL leads. Recommended is the simplest candidate that cannot be told from the leader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.metrics import ece
from cogcalib_jax.metrics.significance import FEWEST_SEEDS, holm, paired_difference, resamples_for
from cogcalib_jax.report.tables import Table, as_markdown, cell
from cogcalib_jax.training.validation import Belief

ACCURACY_MARGIN = 0.01
LEVEL = 0.05
RESAMPLES = 2000
SFT, BEST_EPOCH, TEMPERATURE = "sft", "sft, best epoch", "sft + temperature"


@dataclass(frozen=True)
class Candidate:
    """A way to fine-tune that could be recommended."""

    name: str
    epochs: float
    method: MethodConfig | None
    """resolved; None for those derived from plain fine-tuning"""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.epochs:g} epochs"

    @property
    def simplicity(self) -> tuple[int, float]:
        """A sort key: nothing added, best epoch, temperature, all rows, a gate; then length."""
        order = {SFT: 0, BEST_EPOCH: 1, TEMPERATURE: 2}
        if self.name in order:
            return order[self.name], self.epochs
        return (3 if self.method.gate == "all" else 4), self.epochs


Found = dict[Candidate, list[Belief]]
"""Candidate -> its answers to the validation questions, one for each seed."""


def recommend(found: Found, seeds: int) -> tuple[Candidate, str]:
    """Return the recommended candidate, and a table and sentences in Markdown.

    Candidates that lack a seed (a temperature that could not be fitted) are left out.
    """
    whole = {c: beliefs for c, beliefs in found.items() if len(beliefs) == seeds}
    plain = max((c for c in whole if c.name == SFT), key=lambda c: c.epochs)
    floor = _average(whole[plain], "correct") - ACCURACY_MARGIN
    kept = [c for c in whole if _average(whole[c], "correct") >= floor]
    leader = min(kept, key=lambda c: _average(whole[c], "nll"))
    others = [c for c in kept if c != leader]
    differences = {
        c: paired_difference(
            [b.nll for b in whole[c]],
            [b.nll for b in whole[leader]],
            statistic="mean",
            resamples=max(RESAMPLES, resamples_for(len(others), LEVEL)),
        )
        for c in others
    }
    adjusted = dict(zip(others, holm([d.p_value for d in differences.values()]), strict=True))
    tied = [leader, *(c for c in others if adjusted[c] > LEVEL)]
    chosen = min(tied, key=lambda c: (c.simplicity, _average(whole[c], "nll")))
    rows = []
    for c in sorted(whole, key=lambda c: _average(whole[c], "nll")):
        numbers = [numbers_of(belief) for belief in whole[c]]
        against = "leads" if c == leader else "accuracy too low"
        if c in differences:
            d = differences[c]
            against = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            against += "" if adjusted[c] <= LEVEL else " (not beyond noise)"
        cells = [cell([n[key] for n in numbers]) for key in ("accuracy", "nll", "ece")]
        rows.append((c.label, *cells, against))
    n = len(whole[plain][0].nll)
    note = (
        f"Validation, {n:,} questions in each of {seeds} seed(s). Beyond noise: p at most {LEVEL}"
        f" after Holm's correction over {len(others)} comparisons with the leader. The best epoch"
        " was chosen on these same questions, so its numbers are optimistic."
    )
    if seeds < FEWEST_SEEDS:
        note += " With so few seeds, intervals hold the noise of questions and little of training."
    header = ("candidate", "accuracy", "NLL (nats)", "ECE", "NLL minus the leader's")
    return chosen, "\n\n".join(
        [as_markdown(Table(header, tuple(rows), note)), _sentence(chosen, leader, plain, n, seeds)]
    )


def _sentence(chosen: Candidate, leader: Candidate, plain: Candidate, n: int, seeds: int) -> str:
    if chosen == plain:
        return (
            f"No difference detectable at this n ({n:,} questions, {seeds} seed(s)): no candidate"
            f" is better than {plain.label} beyond noise. Recommended: {plain.label}."
        )
    if chosen == leader:
        return f"Recommended: {chosen.label}, the lowest validation NLL."
    return (
        f"Recommended: {chosen.label}, the simplest that cannot be told from the lowest validation"
        f" NLL ({leader.label})."
    )


def _average(beliefs: Sequence[Belief], field: str) -> float:
    return mean(float(getattr(belief, field).mean()) for belief in beliefs)


def numbers_of(belief: Belief) -> dict[str, Any]:
    """Return the numbers of one candidate with one seed."""
    return {
        "n": len(belief.nll),
        "accuracy": float(np.mean(belief.correct)),
        "nll": float(np.mean(belief.nll)),
        "ece": ece(belief.confidence, belief.correct),
        "confidence": float(np.mean(belief.confidence)),
    }
