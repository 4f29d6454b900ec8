"""The records of the detector study: questions over training, AUROCs and tables of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.cli.method_run import SCORES
from cogcalib_jax.metrics.significance import (
    FEWEST_SEEDS,
    PairedDifference,
    holm,
    paired_difference,
)
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import count

LABELS = "labels.jsonl"
"""what the base knows of the questions, one file a seed"""
NUMBERS = "detector.jsonl"
"""a seed's numbers, written last"""
PROVENANCE = "provenance.json"
TRAINED, HELD_OUT = "train", "validation"
DATA_WORDS = {TRAINED: "trained on", HELD_OUT: "not trained on"}

UNKNOWN = "Unknown"
KNOWN = ("HighlyKnown", "MaybeKnown", "WeaklyKnown")
CATEGORIES = (*KNOWN, UNKNOWN)
"""of SliCK"""
EXPOSURES, START, SLICK, NOW = "exposures", "right at the start", "SliCK", "right now"
FORM = "right in another form"
TARGET_WORDS = {
    EXPOSURES: "known by exposure",
    FORM: "right at the start in another form",
    START: "right at the start",
    SLICK: "SliCK: known of any kind",
    **{name: f"SliCK: {name} against {UNKNOWN}" for name in KNOWN},
    NOW: "right at that moment",
}
LEVEL = 0.05
COURSE = "What the start knows, told by NLL and by confidence"
Pair = tuple[np.ndarray, np.ndarray]
"""Score and truth `[rows]` of one detection task."""


@dataclass(frozen=True)
class Moment:
    """Questions of one kind at one validation."""

    step: int
    threshold: float | None
    """nats; None if it is infinite (one class among the calibration answers)"""
    score: np.ndarray
    """[rows] exp(-NLL): it ranks as -NLL does, with the same ties"""
    correct: np.ndarray
    """[rows] bool"""
    called: np.ndarray
    """[rows] bool: NLL at most the threshold"""
    confidence: np.ndarray
    """[rows] of the model's answer, NaN if it was not recorded"""

    def by(self, score: str) -> Moment:
        """Return the same with another score: "score" (of the NLL, as here) or "confidence"."""
        return replace(self, score=getattr(self, score))


@dataclass(frozen=True)
class Watched:
    """One kind of questions of one seed, followed over one method's training."""

    known: np.ndarray | None
    """[rows] bool by exposure; None if the rows do not record it"""
    slick: np.ndarray | None
    """[rows] of `CATEGORIES`; None beside `known_by`, which takes their place"""
    moments: tuple[Moment, ...]
    right: np.ndarray | None = None
    """[rows] bool: right at the start in the form of `known_by`"""

    def target(self, name: str, moment: Moment) -> Pair | None:
        """Return score and truth of a detection task; None if these rows do not record it."""
        if name == EXPOSURES:
            return None if self.known is None else (moment.score, self.known)
        if name == START:
            return moment.score, self.moments[0].correct
        if name == NOW:
            return moment.score, moment.correct
        if name == FORM:
            return None if self.right is None else (moment.score, self.right)
        if self.slick is None:
            return None
        if name == SLICK:
            return moment.score, self.slick != UNKNOWN
        rows = np.isin(self.slick, (name, UNKNOWN))
        return moment.score[rows], self.slick[rows] == name

    @property
    def rates(self) -> np.ndarray:
        """[moments, 3]: share called known of the known, of the unknown, of all.

        Known: by exposure, or right at the start if the rows do not record exposure, in the form
        of `known_by` if there is one.
        """
        right = self.moments[0].correct if self.right is None else self.right
        truth = right if self.known is None else self.known
        groups = (truth, ~truth, np.ones(len(truth), bool))
        return np.array(
            [
                [moment.called[rows].mean() if rows.any() else np.nan for rows in groups]
                for moment in self.moments
            ]
        )


Seeds = Mapping[int, Mapping[str, Watched]]
"""Seed -> kind of questions -> its course, of one method."""


def read_watched(folder: Path, method: str) -> dict[str, Watched]:
    """Return a seed's questions by kind, from the files in its folder."""
    labels = _lines(folder / LABELS) if (folder / LABELS).is_file() else []
    lines = _lines(folder / method / SCORES)
    found = {}
    for data in dict.fromkeys(line["data"] for line in lines):
        rows = [line for line in labels if line["data"] == data]
        mine = [line for line in lines if line["data"] == data]
        stated = bool(rows) and all(row["known"] is not None for row in rows)
        found[data] = Watched(
            known=np.array([row["known"] for row in rows], bool) if stated else None,
            slick=np.array([row["slick"] for row in rows]) if "slick" in (*rows, {})[0] else None,
            moments=tuple(
                Moment(
                    line["step"],
                    line.get("threshold"),
                    np.exp(-np.array(line["nll"])),
                    np.array(line["correct"], bool),
                    np.array(line.get("called_known", ()), bool),
                    np.array(line.get("confidence", np.full(len(line["nll"]), np.nan))),
                )
                for line in mine
            ),
            right=np.array(mine[0]["known"], bool) if "known" in mine[0] else None,
        )
    return found


def tidy_rows(seed: int, folder: Path, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row a method, kind of questions, step and target; undefined numbers are None."""
    rows = []
    for method in methods:
        for data, watched in read_watched(folder, method).items():
            for moment, rates in zip(watched.moments, watched.rates, strict=True):
                tpr, fpr, share = (None if np.isnan(rate) else float(rate) for rate in rates)
                for target in TARGET_WORDS:
                    pair = watched.target(target, moment)
                    sure = watched.target(target, moment.by("confidence"))
                    if pair is not None:
                        rows.append(
                            {
                                "seed": seed,
                                "method": method,
                                "data": data,
                                "step": moment.step,
                                "target": target,
                                "n": len(pair[1]),
                                "positives": int(pair[1].sum()),
                                "auroc": auroc_of(pair),
                                "auroc_of_confidence": auroc_of(sure),
                                "threshold": moment.threshold,
                                "called_known": share,
                                "called_known_of_known": tpr,
                                "called_known_of_unknown": fpr,
                            }
                        )
    return rows


def auroc_table(seeds: Seeds) -> Table:
    """Return AUROC of -NLL at the start and at the end, with 95 % intervals, and the change."""
    lines, changes = [], []
    for target, words in TARGET_WORDS.items():
        for data in (TRAINED, HELD_OUT):
            start, end = (pairs_of(seeds, data, target, at) for at in (0, -1))
            if start is None or end is None:
                continue
            counts = [truth for _, truth in start]
            size = f"{np.mean([t.sum() for t in counts]):.0f} of {np.mean([*map(len, counts)]):.0f}"
            # Other rows are right at the end: no paired change of one quantity.
            change = None if target == NOW else paired_difference(end, start, statistic="auroc")
            changes.append(change)
            lines.append((words, DATA_WORDS[data], size, _auroc(start), _auroc(end)))
    tested = [change for change in changes if change is not None]
    adjusted = iter(holm([change.p_value for change in tested]))
    rows = tuple(
        (*line, "" if change is None else _change(change, next(adjusted)))
        for line, change in zip(lines, changes, strict=True)
    )
    head = ("detected", "questions", "positive", "AUROC at the start", "at the end", "change")
    note = (
        f"AUROC of -NLL, mean of {count(len(seeds), 'seed')} [95 % interval over seeds and"
        " questions]. Positive: questions of a seed with that property, of those compared."
    )
    if len(seeds) >= FEWEST_SEEDS:
        note += f" *: p at most {LEVEL} after Holm's correction over {len(tested)} changes."
    else:
        note += " Changes are listed seed by seed: the seeds are too few for a test."
    return Table(head, rows, note)


def course_table(seeds: Seeds) -> Table | None:
    """Return at each validation the AUROCs of -NLL and of confidence for what the start knows by
    `known_by`, with 95 % intervals; None if no row was asked in that form."""
    lines = []
    for data, words in DATA_WORDS.items():
        watched = [kinds[data] for kinds in seeds.values() if data in kinds]
        if not watched or len(watched) < len(seeds) or any(one.right is None for one in watched):
            continue
        sizes = [np.mean([f(one.right) for one in watched]) for f in (np.sum, len)]
        for at in range(min(len(one.moments) for one in watched)):
            step = np.mean([one.moments[at].step for one in watched])
            each = [pairs_of(seeds, data, FORM, at, by) for by in ("score", "confidence")]
            areas = ("-" if pairs is None else _auroc(pairs) for pairs in each)
            lines.append((words, f"{sizes[0]:.0f} of {sizes[1]:.0f}", f"{step:.0f}", *areas))
    if not lines:
        return None
    head = ("questions", "positive", "update", "AUROC of -NLL", "AUROC of confidence")
    note = (
        f"{count(len(seeds), 'seed')} [95 % interval over seeds and questions]. Positive: questions"
        " of a seed that the start gets right in the form of `known_by`, of those compared."
    )
    return Table(head, tuple(lines), note)


def auroc_of(pair: Pair) -> float | None:
    """Return the AUROC; None if one class is absent, or the score was not recorded."""
    return None if np.isnan(pair[0]).any() or not len(pair[0]) else metrics.auroc(*pair)


def pairs_of(seeds: Seeds, data: str, target: str, at: int, by: str = "score") -> list[Pair] | None:
    """Return every seed's score and truth at a moment; None if one seed's AUROC is undefined.

    by: as for `Moment.by`.
    """
    found = [kinds[data].target(target, kinds[data].moments[at].by(by)) for kinds in seeds.values()]
    pairs = [pair for pair in found if pair is not None and auroc_of(pair) is not None]
    return pairs if pairs and len(pairs) == len(found) else None


def exposures_stated(seeds: Seeds) -> bool:
    """Tell if all rows record how often the corpus states their fact."""
    return all(one.known is not None for kinds in seeds.values() for one in kinds.values())


def main_target(seeds: Seeds) -> str:
    """Return the best recorded evidence of what is known."""
    if exposures_stated(seeds):
        return EXPOSURES
    asked = all(one.right is not None for kinds in seeds.values() for one in kinds.values())
    return FORM if asked else START


def _auroc(pairs: Sequence[Pair]) -> str:
    """Return the mean over seeds with its interval, as the difference from a constant score."""
    chance = [(np.full(len(truth), 0.5), truth) for _, truth in pairs]
    d = paired_difference(pairs, chance, statistic="auroc")
    # Student's t knows of no upper end.
    low, high = np.clip([0.5 + d.low, 0.5 + d.high], 0, 1)
    return f"{0.5 + d.difference:.3f} [{low:.3f}, {high:.3f}]"


def _change(change: PairedDifference, p_value: float) -> str:
    if len(change.per_seed) < FEWEST_SEEDS:
        return ", ".join(f"{value:+.3f}" for value in change.per_seed)
    mark = "*" if p_value <= LEVEL else ""
    return f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]{mark}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
