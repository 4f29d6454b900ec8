"""Figures of studies, each drawn from plain numbers; alternative texts of those on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cogcalib_jax.report.canvas import (
    BAND,
    INK,
    MUTED,
    headline,
    light_grid,
    new_figure,
    percent_axis,
    place_axes,
)
from cogcalib_jax.report.names import Look
from cogcalib_jax.report.tables import Metrics
from cogcalib_jax.report.text import count, percent
from cogcalib_jax.report.training_plots import KNOWN, UNKNOWN, steps_axis, style_patch

COLUMNS = 3
FLOOR = "floor: a calibrated model's ECE, up to its 95th percentile"
TIMES = (("at the start", "#56B4E9"), ("at the end", "#7A1E5C"))
DASHED = (0, (4, 2))
DOTTED = (0, (1, 1.5))
KINDS = (("#7A1E5C", "-"), ("#009E73", DASHED))
"""colour and line of the questions trained on, and of the others"""


@dataclass(frozen=True)
class SeedDots:
    """One method under one condition: a dot for each seed."""

    method: str
    condition: str
    look: Look
    runs: Sequence[Metrics]
    """[seeds]"""


@dataclass(frozen=True)
class RatioCurve:
    """One method over the share of known rows among its fine-tuning rows: a dot for each run."""

    name: str
    look: Look
    share: np.ndarray
    """[runs] share of known rows"""
    runs: Sequence[Metrics]


def numbers(runs: Sequence[Metrics], name: str) -> np.ndarray:
    """Return one number of eval.json, or `mean` or `p95` of its ECE's noise floor, `[runs]`."""
    floor = name in ("mean", "p95")
    return np.array([(run["ece_noise_floor"] if floor else run)[name] for run in runs])


def dots_figure(rows: Sequence[SeedDots], task: str) -> Figure:
    """Draw a line for each method and condition: a dot for each seed, a bar at their mean."""
    names = list(dict.fromkeys(row.method for row in rows))
    several = len({row.condition for row in rows}) > 1
    line, gap, height = 0.27, (0.38 if several else 0.0), 0.0
    places = []
    for i, row in enumerate(rows):
        height += line + (gap if i == 0 or row.method != rows[i - 1].method else 0)
        places.append(height)
    labels = [row.condition if several else row.method for row in rows]
    left = min(0.4 + 0.085 * max(len(label) for label in (*labels, *names)), 4.2)
    across = (10.85 - left - 0.2) / 3
    top, first = 0.95, line * (0.8 if several else 0.5)
    tall = height + line / 2 - first
    figure = new_figure(10.85, top + tall + 1.05)
    headline(
        figure,
        "Every seed: ECE, NLL and accuracy",
        f"Answers to {task}. Dots: seeds; bars: their mean. Lower ECE and NLL are better.",
    )
    panels = {"ece": "ECE", "nll": "NLL (nats)", "accuracy": "accuracy (%)"}
    for column, (name, title) in enumerate(panels.items()):
        axes = place_axes(figure, left + across * column, top, across - 0.25, tall)
        for row, place in zip(rows, places, strict=True):
            dots = numbers(row.runs, name)
            if column == 0:
                floor = numbers(row.runs, "p95").mean()
                axes.barh(place, floor, line * 0.95, color=BAND, zorder=1)
            axes.plot(dots, np.full(len(dots), place), "o", color=row.look.color, markersize=5,
                      alpha=0.65, markeredgewidth=0, zorder=3)  # fmt: skip
            axes.plot(dots.mean(), place, "|", color=INK, markersize=12, markeredgewidth=1.8,
                      zorder=4)  # fmt: skip
        axes.set_ylim(first + tall, first)  # inches downwards
        axes.set_yticks(places, labels if column == 0 else [""] * len(labels))
        if column == 0:
            axes.set_xlim(left=0)
        if name == "accuracy":
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(title)
        light_grid(axes)
    if several:
        for name in names:
            place = next(p for p, row in zip(places, rows, strict=True) if row.method == name)
            above = top + place - first - line - 0.03
            figure.text(0.12 / 10.85, 1 - above / figure.get_figheight(), name,
                        fontweight="bold", va="center")  # fmt: skip
    figure.legend(handles=[Patch(facecolor=BAND, label=FLOOR)], loc="lower center")
    return figure


def dots_text(rows: Sequence[SeedDots], task: str) -> str:
    """Return the picture's numbers in words: a sentence for each line."""
    parts = []
    for row in rows:
        ece, floor, nll, accuracy = (
            numbers(row.runs, name).mean() for name in ("ece", "p95", "nll", "accuracy")
        )
        parts.append(
            f"{row.method}, {row.condition}: ECE {ece:.3f} (95th percentile of the floor"
            f" {floor:.3f}), NLL {nll:.3f} nats, accuracy {percent(accuracy)},"
            f" {count(len(row.runs), 'seed')}."
        )
    opening = f"ECE, NLL and accuracy on {task} of every seed; in numbers, the means."
    return " ".join([opening, *parts])


def ratio_figure(curves: Sequence[RatioCurve], task: str) -> Figure:
    """Draw ECE, and accuracy beside mean confidence, over the known share: a column a method."""
    columns = min(len(curves), COLUMNS)
    rows = math.ceil(len(curves) / columns)
    across, height = (3.45 if len(curves) > 1 else 6.3), 2.05
    down = 2 * height + 1.5
    figure = new_figure(max(across * columns + 0.6, 7.2), down * rows + 0.95)
    headline(
        figure,
        "Does known data make the model overconfident?",
        f"Fine-tuned on equally many questions; answers to {task}. Dots: seeds; lines: means.",
    )
    highest = 1.1 * max(numbers(c.runs, name).max() for c in curves for name in ("ece", "p95"))
    for i, curve in enumerate(curves):
        row, column = divmod(i, columns)
        left, top = 0.8 + across * column, 1.1 + down * row
        upper = place_axes(figure, left, top, across - 0.5, height)
        lower = place_axes(figure, left, top + height + 0.25, across - 0.5, height)
        _ratio_panels(upper, lower, curve, highest)
        if column == 0:
            upper.set_ylabel("ECE")
            lower.set_ylabel("accuracy, confidence (%)")
    dot = {"color": INK, "marker": "o", "markersize": 4}
    handles = [
        Line2D([], [], label="ECE, accuracy", **dot),
        Line2D([], [], label="mean confidence", markerfacecolor="white", linestyle=DASHED, **dot),
        Patch(facecolor=BAND, label=FLOOR),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3 if columns > 1 else 2)
    return figure


def _ratio_panels(upper: Axes, lower: Axes, curve: RatioCurve, highest: float) -> None:
    shares = np.unique(curve.share)

    def means(name: str) -> np.ndarray:
        values = numbers(curve.runs, name)
        return np.array([values[curve.share == share].mean() for share in shares])

    upper.fill_between(shares, means("p95"), color=BAND, linewidth=0, zorder=1)
    upper.plot(shares, means("mean"), color=MUTED, linewidth=1, zorder=2)
    lines = (
        (upper, "ece", "-", curve.look.color),
        (lower, "accuracy", "-", curve.look.color),
        (lower, "confidence", DASHED, "white"),
    )
    for axes, name, style, inside in lines:
        axes.plot(shares, means(name), color=curve.look.color, linewidth=2, linestyle=style,
                  zorder=3)  # fmt: skip
        dots = numbers(curve.runs, name)
        axes.plot(curve.share, dots, "o", markersize=4.5, markerfacecolor=inside,
                  markeredgecolor=curve.look.color, alpha=0.8, zorder=4)  # fmt: skip
    lower.fill_between(shares, means("accuracy"), means("confidence"),
                       color=curve.look.color, alpha=0.12, linewidth=0)  # fmt: skip
    upper.set_title(curve.name, fontweight="bold")
    upper.set_ylim(0, highest)
    upper.tick_params(labelbottom=False)
    lower.set_ylim(0, 1)
    percent_axis(lower.yaxis)
    lower.set_xlabel("known (% of the fine-tuning questions)")
    for axes in (upper, lower):
        axes.set_xlim(shares[0] - 0.04, shares[-1] + 0.04)
        axes.set_xticks(shares)
        percent_axis(axes.xaxis)
        light_grid(axes)


def ratio_text(curves: Sequence[RatioCurve], task: str) -> str:
    """Return the curves' numbers in words: a sentence for each method and known share."""
    parts = []
    for curve in curves:
        for share in np.unique(curve.share):
            ece, floor, confidence, accuracy = (
                numbers(curve.runs, name)[curve.share == share].mean()
                for name in ("ece", "mean", "confidence", "accuracy")
            )
            parts.append(
                f"{curve.name}, {100 * share:.0f} % known: ECE {ece:.3f} (floor {floor:.3f}), mean"
                f" confidence {percent(confidence)}, accuracy {percent(accuracy)}."
            )
    opening = f"ECE, mean confidence and accuracy on {task} over the known share; means of seeds."
    return " ".join([opening, *parts])


@dataclass(frozen=True)
class Curves:
    """A detector's ROC on one kind of questions, before and after fine-tuning."""

    title: str
    fpr: np.ndarray
    """[points]"""
    tpr: np.ndarray
    """[2, seeds, points] at the start and at the end"""
    threshold: np.ndarray
    """[2, 2] its false and true positive rate with the threshold of that moment, mean of seeds"""
    auroc: tuple[float, float]
    """mean of seeds"""


@dataclass(frozen=True)
class Course:
    """One kind of questions over training."""

    name: str
    steps: np.ndarray
    """[moments]"""
    auroc: Mapping[str, np.ndarray]
    """detected property -> [seeds, moments], NaN if undefined"""
    called: np.ndarray
    """[seeds, moments, 3] share called known: of the known, of the unknown, of all"""


def roc_figure(panels: Sequence[Curves], method: str) -> Figure:
    """Draw ROC curves in two columns: the questions trained on, and the others."""
    rows = -(-len(panels) // 2)
    side, gap = 3.25, 0.95
    figure = new_figure(2 * (side + gap) + 0.3, rows * (side + gap) + 0.85)
    headline(
        figure,
        f"{method}: NLL as a detector of knowledge, before and after fine-tuning",
        "Lines: mean of seeds; bands: all of them. Dots: the threshold fitted at that moment.",
    )
    for i, panel in enumerate(panels):
        row, column = divmod(i, 2)
        axes = place_axes(
            figure, 0.75 + column * (side + gap), 1.15 + row * (side + gap), side, side
        )
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        for tpr, point, area, (when, color) in zip(
            panel.tpr, panel.threshold, panel.auroc, TIMES, strict=True
        ):
            axes.fill_between(
                panel.fpr, tpr.min(0), tpr.max(0), color=color, alpha=0.22, linewidth=0
            )
            label = f"{when}: AUROC {area:.3f}"
            axes.plot(panel.fpr, tpr.mean(0), color=color, linewidth=2, label=label)
            axes.plot(*point, "o", color=color, markersize=8, markeredgecolor="white", zorder=4)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_title(panel.title, fontweight="bold")
        axes.set_xlabel("unknown called known (%)")
        axes.set_ylabel("known called known (%)")
        axes.legend(loc="lower right")
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        light_grid(axes)
    return figure


def auroc_figure(courses: Sequence[Course], method: str, known: str) -> Figure:
    """Draw AUROC over updates, a panel for each property; below, the share called known."""
    targets = list(courses[0].auroc)
    groups = (
        (KNOWN, "-", f"of the known ({known})"),
        (UNKNOWN, "-", "of the unknown"),
        (INK, DOTTED, "of all"),
    )
    across, height = 3.55, 2.6
    figure = new_figure(across * len(targets) + 0.75, 2 * height + 2.3)
    headline(
        figure,
        f"{method}: NLL as a detector of knowledge during fine-tuning",
        "Lines: mean of seeds; bands: all of them. Higher AUROC is better; 0.5 is chance.",
    )
    areas = np.concatenate([area.ravel() for one in courses for area in one.auroc.values()])
    lowest = min(areas[~np.isnan(areas)], default=0.5)
    for i, target in enumerate(targets):
        axes = place_axes(figure, 0.75 + across * i, 1.1, across - 0.55, height)
        for course, (color, line) in zip(courses, KINDS, strict=True):
            _with_band(axes, course.steps, course.auroc[target], color, line)
        axes.set_ylim(min(0.5, np.floor(10 * lowest) / 10), 1.005)
        axes.set_title(target, fontweight="bold")
        if i == 0:
            axes.set_ylabel("AUROC of -NLL")
        steps_axis(axes, int(courses[0].steps[-1]), int(courses[0].steps[0]))
    for i, course in enumerate(courses):
        axes = place_axes(figure, 0.75 + across * i, 1.85 + height, across - 0.55, height - 0.2)
        for k, (color, line, _) in enumerate(groups):
            _with_band(axes, course.steps, course.called[:, :, k], color, line)
        axes.set_ylim(0, 1.01)
        percent_axis(axes.yaxis)
        axes.set_title(f"Called known, {course.name}", fontweight="bold")
        if i == 0:
            axes.set_ylabel("called known (%)")
        axes.set_xlabel("update")
        steps_axis(axes, int(course.steps[-1]), int(course.steps[0]))
    kinds = [(*look, f"questions {one.name}") for look, one in zip(KINDS, courses, strict=True)]
    handles = [
        Line2D([], [], color=color, linestyle=line, linewidth=2, label=label)
        for color, line, label in (*kinds, *groups)
    ]
    width, tall = figure.get_size_inches()
    figure.legend(
        handles=[*handles, style_patch()],
        loc="upper left",
        bbox_to_anchor=((0.75 + across * len(courses)) / width, 1 - (1.95 + height) / tall),
        borderaxespad=0,
        labelspacing=0.8,
    )
    return figure


def _with_band(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, line: object) -> None:
    """Draw `[seeds, moments]` without the moments that are undefined in a seed."""
    defined = ~np.isnan(values).any(0)
    steps, values = steps[defined], values[:, defined]
    if values.size:
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
        axes.plot(steps, values.mean(0), color=color, linewidth=2, linestyle=line)
