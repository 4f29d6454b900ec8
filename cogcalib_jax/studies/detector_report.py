"""Files of the detector study: results.jsonl, results.md with its table, and plots/.

They are made from the files of its seeds: labels of the questions, and the gate's NLL of them at
every validation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.files import write_whole
from cogcalib_jax.metrics.significance import (
    FEWEST_SEEDS,
    PairedDifference,
    holm,
    paired_difference,
)
from cogcalib_jax.report.canvas import project_style, save
from cogcalib_jax.report.names import short_name
from cogcalib_jax.report.tables import Table, as_markdown
from cogcalib_jax.report.text import count
from cogcalib_jax.studies.plots import Course, Curves, auroc_figure, roc_figure
from cogcalib_jax.studies.slick import KNOWN, UNKNOWN

LABELS = "labels.jsonl"
"""what the base knows of the questions, one file a seed"""
SCORES = "knownness.jsonl"
"""the gate's NLL, one file for each method of a seed"""
NUMBERS = "detector.jsonl"
"""a seed's numbers, written last"""
PROVENANCE = "provenance.json"
RESULTS = "results.jsonl"
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
GRID = np.linspace(0, 1, 201)
"""false positive rates at which the seeds' curves are averaged"""
TITLE = "NLL as a detector of knowledge"
NOT_STATED = (
    " The rows do not record how often the base read a fact, as only the world's do: nothing is"
    " compared with exposures, and the threshold's rates are against right answers at the start."
)

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


@dataclass(frozen=True)
class Watched:
    """One kind of questions of one seed, followed over one method's training."""

    known: np.ndarray | None
    """[rows] bool by exposure; None if the rows do not record it"""
    slick: np.ndarray
    """[rows] of `slick.CATEGORIES`"""
    moments: tuple[Moment, ...]

    def target(self, name: str, moment: Moment) -> Pair | None:
        """Return score and truth of a detection task; None if these rows do not record it."""
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
    def rates(self) -> np.ndarray:
        """[moments, 3]: share called known of the known, of the unknown, of all.

        Known: by exposure, or right at the start if the rows do not record exposure.
        """
        truth = self.moments[0].correct if self.known is None else self.known
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
    labels = _lines(folder / LABELS)
    lines = _lines(folder / method / SCORES)
    found = {}
    for data in dict.fromkeys(line["data"] for line in labels):
        rows = [line for line in labels if line["data"] == data]
        stated = all(row["known"] is not None for row in rows)
        found[data] = Watched(
            known=np.array([row["known"] for row in rows], bool) if stated else None,
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
    """Return one row a method, kind of questions, step and target; undefined numbers are None."""
    rows = []
    for method in methods:
        for data, watched in read_watched(folder, method).items():
            for moment, rates in zip(watched.moments, watched.rates, strict=True):
                tpr, fpr, share = (None if np.isnan(rate) else float(rate) for rate in rates)
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
                                "called_known": share,
                                "called_known_of_known": tpr,
                                "called_known_of_unknown": fpr,
                            }
                        )
    return rows


def write_results(
    folder: Path,
    command: str,
    done: Mapping[int, Path],
    methods: Sequence[str],
    out: Path | None,
) -> str:
    """Write results.jsonl, results.md and plots/ of the finished seeds. Return the text.

    Args:
        folder: the place of these files.
        command: the command that made the results.
        done: seed -> its folder.
        methods: keys of the losses that were watched.
        out: a file for a copy of the text without its pictures.
    """
    numbers = "".join((place / NUMBERS).read_text(encoding="utf-8") for place in done.values())
    write_whole(folder / RESULTS, numbers)
    text = pictured = ""
    for method in methods:
        seeds = {seed: read_watched(place, method) for seed, place in done.items()}
        if not text:
            stated = exposures_stated(seeds)
            lead = f"Seeds {', '.join(map(str, done))}.{'' if stated else NOT_STATED}"
            text = pictured = f"# {TITLE}\n\n    {command}\n\n{lead}\n"
        section = f"\n## {short_name(method)}\n\n{as_markdown(auroc_table(seeds))}\n"
        text += section
        pictured += section + _pictures(folder, method, seeds)
    write_whole(folder / "results.md", pictured)
    if out is not None:
        write_whole(out, text)
    return text


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


def auroc_of(pair: Pair) -> float | None:
    """Return the AUROC; None if one class is absent."""
    return metrics.auroc(*pair) if len(pair[0]) else None


def pairs_of(seeds: Seeds, data: str, target: str, at: int) -> list[Pair] | None:
    """Return every seed's score and truth at a moment; None if one seed's AUROC is undefined."""
    found = [kinds[data].target(target, kinds[data].moments[at]) for kinds in seeds.values()]
    pairs = [pair for pair in found if pair is not None and auroc_of(pair) is not None]
    return pairs if pairs and len(pairs) == len(found) else None


def exposures_stated(seeds: Seeds) -> bool:
    """Tell if all rows record how often the corpus states their fact."""
    return all(one.known is not None for kinds in seeds.values() for one in kinds.values())


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


def _pictures(folder: Path, method: str, seeds: Seeds) -> str:
    """Draw and save the method's plots. Return the Markdown that shows them."""
    name = short_name(method)
    stated = exposures_stated(seeds)
    targets = (EXPOSURES if stated else START, SLICK)
    known = "stated often" if stated else "right at the start"
    panels = [c for t in targets for d in DATA_WORDS if (c := _curves(seeds, d, t)) is not None]
    courses = [_course(seeds, data, (*targets, NOW)) for data in DATA_WORDS]
    shown = ""
    with project_style():
        if panels:
            save(roc_figure(panels, name), folder / "plots" / f"roc_{method}.png")
            shown += f"\n![ROC curves of -NLL, {name}](plots/roc_{method}.png)\n"
        save(auroc_figure(courses, name, known), folder / "plots" / f"auroc_{method}.png")
    alt = f"AUROC of -NLL and share called known over updates, {name}"
    return f"{shown}\n![{alt}](plots/auroc_{method}.png)\n"


def _curves(seeds: Seeds, data: str, target: str) -> Curves | None:
    """The curves at the start and at the end; None if one of them is undefined in a seed."""
    curves, points, areas = [], [], []
    for at in (0, -1):
        pairs = pairs_of(seeds, data, target, at)
        if pairs is None:
            return None
        rocs = [metrics.roc(*pair) for pair in pairs]
        curves.append(np.array([np.interp(GRID, roc.fpr, roc.tpr) for roc in rocs]))
        areas.append(float(np.mean([auroc_of(pair) for pair in pairs])))
        rates = []
        for kinds, (_, truth) in zip(seeds.values(), pairs, strict=True):
            called = kinds[data].moments[at].called
            rates.append((called[~truth].mean(), called[truth].mean()))
        points.append(np.mean(rates, 0))
    return Curves(
        title=f"{TARGET_WORDS[target]}, {DATA_WORDS[data]}",
        fpr=GRID,
        tpr=np.array(curves),
        threshold=np.array(points),
        auroc=tuple(areas),
    )


def _course(seeds: Seeds, data: str, targets: Sequence[str]) -> Course:
    watched = [kinds[data] for kinds in seeds.values()]

    def area(pair: Pair | None) -> float:
        value = None if pair is None else auroc_of(pair)
        return np.nan if value is None else value

    return Course(
        name=DATA_WORDS[data],
        steps=np.array([moment.step for moment in watched[0].moments]),
        auroc={
            TARGET_WORDS[target]: np.array(
                [[area(one.target(target, moment)) for moment in one.moments] for one in watched]
            )
            for target in targets
        },
        called=np.array([one.rates for one in watched]),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
