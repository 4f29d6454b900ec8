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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cogcalib_jax import metrics
from cogcalib_jax.files import write_whole
from cogcalib_jax.metrics.significance import (
    FEWEST_SEEDS,
    PairedDifference,
    holm,
    paired_difference,
)
from cogcalib_jax.report import canvas
from cogcalib_jax.report.tables import Table, as_markdown
from cogcalib_jax.report.text import count, short_name
from cogcalib_jax.report.training_plots import KNOWN as KNOWN_COLOR
from cogcalib_jax.report.training_plots import UNKNOWN as UNKNOWN_COLOR
from cogcalib_jax.report.training_plots import steps_axis, style_patch

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

UNKNOWN = "Unknown"
KNOWN = ("HighlyKnown", "MaybeKnown", "WeaklyKnown")
CATEGORIES = (*KNOWN, UNKNOWN)
"""of SliCK"""
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
TIMES = (("at the start", "#56B4E9"), ("at the end", "#7A1E5C"))
DASHED = (0, (4, 2))
DOTTED = (0, (1, 1.5))
KINDS = (("#7A1E5C", "-"), ("#009E73", DASHED))
"""colour and line of the questions trained on, and of the others"""
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
    """[rows] of `CATEGORIES`"""
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
    shown = ""
    with canvas.project_style():
        curves = roc_figure(seeds, targets, name)
        if curves is not None:
            canvas.save(curves, folder / "plots" / f"roc_{method}.png")
            shown += f"\n![ROC curves of -NLL, {name}](plots/roc_{method}.png)\n"
        course = auroc_figure(seeds, (*targets, NOW), name, known)
        canvas.save(course, folder / "plots" / f"auroc_{method}.png")
    alt = f"AUROC of -NLL and share called known over updates, {name}"
    return f"{shown}\n![{alt}](plots/auroc_{method}.png)\n"


def roc_figure(seeds: Seeds, targets: Sequence[str], method: str) -> Figure | None:
    """Draw ROC curves in two columns: the questions trained on, and the others.

    Pairs of target and questions are left out if their AUROC is undefined in a seed; None if all
    are.
    """
    panels = [
        (f"{TARGET_WORDS[target]}, {words}", data, both)
        for target in targets
        for data, words in DATA_WORDS.items()
        if all(both := [pairs_of(seeds, data, target, at) for at in (0, -1)])
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    side, gap = 3.25, 0.95
    figure = canvas.new_figure(2 * (side + gap) + 0.3, rows * (side + gap) + 0.85)
    canvas.headline(
        figure,
        f"{method}: NLL as a detector of knowledge, before and after fine-tuning",
        "Lines: mean of seeds; bands: all of them. Dots: the threshold fitted at that moment.",
    )
    for i, (title, data, both) in enumerate(panels):
        row, column = divmod(i, 2)
        axes = canvas.place_axes(
            figure, 0.75 + column * (side + gap), 1.15 + row * (side + gap), side, side
        )
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linewidth=0.8, linestyle=":")
        for at, pairs, (when, color) in zip((0, -1), both, TIMES, strict=True):
            rocs = [metrics.roc(*pair) for pair in pairs]
            tpr = np.array([np.interp(GRID, roc.fpr, roc.tpr) for roc in rocs])
            axes.fill_between(GRID, tpr.min(0), tpr.max(0), color=color, alpha=0.22, linewidth=0)
            label = f"{when}: AUROC {np.mean([auroc_of(pair) for pair in pairs]):.3f}"
            axes.plot(GRID, tpr.mean(0), color=color, linewidth=2, label=label)
            rates = []
            for kinds, (_, truth) in zip(seeds.values(), pairs, strict=True):
                called = kinds[data].moments[at].called
                rates.append((called[~truth].mean(), called[truth].mean()))
            point = np.mean(rates, 0)
            axes.plot(*point, "o", color=color, markersize=8, markeredgecolor="white", zorder=4)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_title(title, fontweight="bold")
        axes.set_xlabel("unknown called known (%)")
        axes.set_ylabel("known called known (%)")
        axes.legend(loc="lower right")
        for axis in (axes.xaxis, axes.yaxis):
            canvas.percent_axis(axis)
        canvas.light_grid(axes)
    return figure


def auroc_figure(seeds: Seeds, targets: Sequence[str], method: str, known: str) -> Figure:
    """Draw AUROC over updates, a panel for each target; below, the share called known."""
    groups = (
        (KNOWN_COLOR, "-", f"of the known ({known})"),
        (UNKNOWN_COLOR, "-", "of the unknown"),
        (canvas.INK, DOTTED, "of all"),
    )
    across, height = 3.55, 2.6
    figure = canvas.new_figure(across * len(targets) + 0.75, 2 * height + 2.3)
    canvas.headline(
        figure,
        f"{method}: NLL as a detector of knowledge during fine-tuning",
        "Lines: mean of seeds; bands: all of them. Higher AUROC is better; 0.5 is chance.",
    )
    watched = {data: [kinds[data] for kinds in seeds.values()] for data in DATA_WORDS}
    steps = {
        data: np.array([moment.step for moment in one[0].moments]) for data, one in watched.items()
    }
    areas = {
        (target, data): _areas(one, target) for target in targets for data, one in watched.items()
    }
    every = np.concatenate([area.ravel() for area in areas.values()])
    lowest = min(every[~np.isnan(every)], default=0.5)
    first = steps[TRAINED]
    for i, target in enumerate(targets):
        axes = canvas.place_axes(figure, 0.75 + across * i, 1.1, across - 0.55, height)
        for data, (color, line) in zip(watched, KINDS, strict=True):
            _with_band(axes, steps[data], areas[target, data], color, line)
        axes.set_ylim(min(0.5, np.floor(10 * lowest) / 10), 1.005)
        axes.set_title(TARGET_WORDS[target], fontweight="bold")
        if i == 0:
            axes.set_ylabel("AUROC of -NLL")
        steps_axis(axes, int(first[-1]), int(first[0]))
    for i, (data, words) in enumerate(DATA_WORDS.items()):
        axes = canvas.place_axes(
            figure, 0.75 + across * i, 1.85 + height, across - 0.55, height - 0.2
        )
        called = np.array([one.rates for one in watched[data]])  # [seeds, moments, 3]
        for k, (color, line, _) in enumerate(groups):
            _with_band(axes, steps[data], called[:, :, k], color, line)
        axes.set_ylim(0, 1.01)
        canvas.percent_axis(axes.yaxis)
        axes.set_title(f"Called known, {words}", fontweight="bold")
        if i == 0:
            axes.set_ylabel("called known (%)")
        axes.set_xlabel("update")
        steps_axis(axes, int(steps[data][-1]), int(steps[data][0]))
    kinds = [
        (*look, f"questions {words}")
        for look, words in zip(KINDS, DATA_WORDS.values(), strict=True)
    ]
    handles = [
        Line2D([], [], color=color, linestyle=line, linewidth=2, label=label)
        for color, line, label in (*kinds, *groups)
    ]
    width, tall = figure.get_size_inches()
    figure.legend(
        handles=[*handles, style_patch()],
        loc="upper left",
        bbox_to_anchor=((0.75 + across * len(watched)) / width, 1 - (1.95 + height) / tall),
        borderaxespad=0,
        labelspacing=0.8,
    )
    return figure


def _areas(watched: Sequence[Watched], target: str) -> np.ndarray:
    """Return AUROCs `[seeds, moments]`, NaN if undefined."""
    pairs = [[one.target(target, moment) for moment in one.moments] for one in watched]
    # None becomes NaN.
    return np.array([[pair and auroc_of(pair) for pair in seed] for seed in pairs], float)


def _with_band(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, line: object) -> None:
    """Draw `[seeds, moments]` without the moments that are undefined in a seed."""
    defined = ~np.isnan(values).any(0)
    steps, values = steps[defined], values[:, defined]
    if values.size:
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
        axes.plot(steps, values.mean(0), color=color, linewidth=2, linestyle=line)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
