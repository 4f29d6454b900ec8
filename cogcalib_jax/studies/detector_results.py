"""What the gate's NLL detects: from the files of watched seeds to tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.metrics.significance import (
    FEWEST_SEEDS,
    PairedDifference,
    holm,
    paired_difference,
)
from cogcalib_jax.report.tables import Table, cell
from cogcalib_jax.report.text import percent
from cogcalib_jax.studies.slick_rule import CATEGORIES, KNOWN, UNKNOWN

LABELS = "labels.jsonl"
"""what is known of the questions, once a seed"""
SCORES = "knownness.jsonl"
"""what the gate saw, for each method"""
NUMBERS = "detector.jsonl"
"""a seed's numbers; last to be written"""
PROVENANCE = "provenance.json"
TRAINED, HELD_OUT = "train", "held-out"
DATA_WORDS = {TRAINED: "trained on", HELD_OUT: "not trained on"}

EXPOSURES, START, SLICK, NOW = "exposures", "right at the start", "SliCK", "right now"
TARGET_WORDS = {
    EXPOSURES: "known by exposure",
    START: "right at the start",
    SLICK: "SliCK: known of any kind",
    **{name: f"SliCK: {name} against {UNKNOWN}" for name in KNOWN},
    NOW: "right at that moment",
}
LEVEL = 0.05


@dataclass(frozen=True)
class Moment:
    """What was seen of the questions of one kind at one step."""

    step: int
    threshold: float | None
    """nats; None where it is infinite (one class among the calibration answers)"""
    score: np.ndarray
    """[rows] exp(-NLL): ranks as -NLL does, and ties where that ties"""
    correct: np.ndarray
    """[rows] bool"""
    called: np.ndarray
    """[rows] bool: NLL at most the threshold"""


@dataclass(frozen=True)
class Watched:
    """One kind of questions of one seed, followed over one method's training."""

    known: np.ndarray | None
    """[rows] bool by exposure; None for rows that do not say"""
    exposure: np.ndarray | None
    """[rows] int"""
    slick: np.ndarray
    """[rows] of `CATEGORIES`"""
    moments: tuple[Moment, ...]

    def target(self, name: str, moment: Moment) -> tuple[np.ndarray, np.ndarray] | None:
        """Score and truth `[rows]` of a detector's task; None where these rows do not tell it."""
        if name == EXPOSURES:
            return None if self.known is None else (moment.score, self.known)
        if name == START:
            return moment.score, self.moments[0].correct
        if name == NOW:
            return moment.score, moment.correct
        if name == SLICK:
            return moment.score, self.slick != UNKNOWN
        rows = np.isin(self.slick, (name, UNKNOWN))
        return moment.score[rows], self.slick[rows] == name

    @property
    def truth(self) -> np.ndarray:
        """[rows] bool: what the rates of the threshold are measured against."""
        return self.moments[0].correct if self.known is None else self.known

    @property
    def rates(self) -> np.ndarray:
        """[moments, 3]: share called known of the known, of the unknown, of all (`truth`)."""
        groups = (self.truth, ~self.truth, np.ones(len(self.truth), bool))
        return np.array(
            [
                [moment.called[rows].mean() if rows.any() else np.nan for rows in groups]
                for moment in self.moments
            ]
        )


Seeds = Mapping[int, Mapping[str, Watched]]
"""seed -> kind of questions -> what was watched, of one method"""


def read_watched(folder: Path, method: str) -> dict[str, Watched]:
    """A seed's questions by kind, from the files in its folder."""
    labels = _lines(folder / LABELS)
    lines = _lines(folder / method / SCORES)
    found = {}
    for data in dict.fromkeys(line["data"] for line in labels):
        rows = [line for line in labels if line["data"] == data]
        stated = all(row["known"] is not None for row in rows)
        found[data] = Watched(
            known=np.array([row["known"] for row in rows], bool) if stated else None,
            exposure=np.array([row["exposure"] for row in rows]) if stated else None,
            slick=np.array([row["slick"] for row in rows]),
            moments=tuple(
                Moment(
                    line["step"],
                    line["threshold"],
                    np.exp(-np.array(line["nll"])),
                    np.array(line["correct"], bool),
                    np.array(line["called_known"], bool),
                )
                for line in lines
                if line["data"] == data
            ),
        )
    return found


def tidy_rows(seed: int, folder: Path, methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row a method, kind of questions, step and target; undefined numbers are None."""
    rows = []
    for method in methods:
        for data, watched in read_watched(folder, method).items():
            for moment, (tpr, fpr, share) in zip(watched.moments, watched.rates, strict=True):
                for target in TARGET_WORDS:
                    pair = watched.target(target, moment)
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
                                "threshold": moment.threshold,
                                "called_known": float(share),
                                "called_known_of_known": _number(tpr),
                                "called_known_of_unknown": _number(fpr),
                            }
                        )
    return rows


def start_tables(seeds: Seeds) -> dict[str, Table]:
    """Exposures and SliCK categories against each other, right answers and the first threshold.

    Questions of both kinds and of all seeds together: nothing was trained on yet.
    """
    every = [one for kinds in seeds.values() for one in kinds.values()]
    slick = np.concatenate([one.slick for one in every])
    right = np.concatenate([one.moments[0].correct for one in every])
    called = np.concatenate([one.moments[0].called for one in every])

    def last(rows: np.ndarray) -> tuple[str, str]:
        return percent(right[rows].mean()), percent(called[rows].mean())

    tables = {}
    stated = exposures_stated(seeds)
    if stated:
        exposure = np.concatenate([one.exposure for one in every])
        known = np.concatenate([one.known for one in every])
        rows = []
        for times in np.unique(exposure):
            chosen = exposure == times
            label = f"{times}{' (known)' if known[chosen].all() else ''}"
            shares = (percent((slick[chosen] == name).mean()) for name in CATEGORIES)
            rows.append((label, f"{chosen.sum():,}", *shares, *last(chosen)))
        head = ("stated, times", "questions", *CATEGORIES, "right", "called known")
        note = "Questions of both kinds and of all seeds."
        tables["By how often the corpus states the fact"] = Table(head, tuple(rows), note)
    rows = []
    for name in CATEGORIES:
        chosen = slick == name
        if chosen.any():
            by_exposure = (percent(known[chosen].mean()),) if stated else ()
            rows.append((name, f"{chosen.sum():,}", *by_exposure, *last(chosen)))
    head = ("SliCK", "questions", *(("known by exposure",) if stated else ()))
    note = (
        "SliCK: what the base says under several prompts, before any training. Right and called"
        " known (NLL at most the first threshold): the style-adapted model."
    )
    tables["By SliCK category"] = Table((*head, "right", "called known"), tuple(rows), note)
    return tables


def auroc_table(seeds: Seeds) -> Table:
    """AUROC of -NLL at the start and at the end, with 95 % intervals, and the change."""
    lines, changes = [], []
    for target, words in TARGET_WORDS.items():
        for data in (TRAINED, HELD_OUT):
            start, end = (pairs_of(seeds, data, target, at) for at in (0, -1))
            if start is None or end is None:
                continue
            counts = [truth for _, truth in start]
            size = f"{np.mean([t.sum() for t in counts]):.0f} of {np.mean([*map(len, counts)]):.0f}"
            # Which rows are right changes with time: no paired change of one quantity.
            change = None if target == NOW else paired_difference(end, start, statistic="auroc")
            changes.append(change)
            lines.append((words, DATA_WORDS[data], size, _auroc(start), _auroc(end)))
    tested = [change for change in changes if change is not None]
    adjusted = iter(holm([change.p_value for change in tested]))
    rows = []
    for line, change in zip(lines, changes, strict=True):
        rows.append((*line, "" if change is None else _change(change, next(adjusted))))
    head = ("detected", "questions", "positive", "AUROC at the start", "at the end", "change")
    seeds_words = f"{len(seeds)} seed" + ("s" if len(seeds) > 1 else "")
    note = (
        f"AUROC of -NLL, mean of {seeds_words} [95 % interval over seeds and questions]. Positive:"
        " questions of a seed with that property, of those compared."
    )
    if len(seeds) >= FEWEST_SEEDS:
        note += f" *: p at most {LEVEL} after Holm's correction over {len(tested)} changes."
    else:
        note += " Changes are those of the seeds one by one: too few to call any beyond noise."
    return Table(head, tuple(rows), note)


def threshold_table(seeds: Seeds) -> Table:
    """What the threshold fitted at each moment calls known."""
    first = next(iter(seeds.values()))
    rates = {
        data: np.array([kinds[data].rates for kinds in seeds.values()])
        for data in (TRAINED, HELD_OUT)
    }  # [seeds, moments, 3]
    rows = []
    for i, moment in enumerate(first[TRAINED].moments):
        fitted = [kinds[TRAINED].moments[i].threshold for kinds in seeds.values()]
        shares = (
            cell([_number(value) for value in rates[data][:, i, k]], percent=True)
            for data in (TRAINED, HELD_OUT)
            for k in range(3)
        )
        rows.append((str(moment.step), cell(fitted), *shares))
    kinds = [
        f"{DATA_WORDS[data]}: {share}"
        for data in (TRAINED, HELD_OUT)
        for share in ("of the known", "of the unknown", "of all")
    ]
    against = "by exposure" if exposures_stated(seeds) else "right at the start"
    note = (
        "Share of the questions called known by the threshold fitted at that update on calibration"
        f" questions; known and unknown: {against}. Mean ± standard deviation over seeds."
    )
    return Table(("update", "threshold (nats)", *kinds), tuple(rows), note)


def auroc_of(pair: tuple[np.ndarray, np.ndarray]) -> float | None:
    """None where one class is absent."""
    return metrics.auroc(*pair) if len(pair[0]) else None


def pairs_of(
    seeds: Seeds, data: str, target: str, at: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Score and truth of every seed at a moment; None where it is undefined in one of them."""
    found = [kinds[data].target(target, kinds[data].moments[at]) for kinds in seeds.values()]
    pairs = [pair for pair in found if pair is not None and auroc_of(pair) is not None]
    return pairs if pairs and len(pairs) == len(found) else None


def _auroc(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Mean over seeds with its interval: the difference from a score that is the same for all."""
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


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def exposures_stated(seeds: Seeds) -> bool:
    return all(one.known is not None for kinds in seeds.values() for one in kinds.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
