"""Pictures of NLL as a detector: curves at the start and the end, and how they got there; in words.

Each function draws one figure from plain numbers and knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cogcalib_jax.report.canvas import (
    INK,
    MUTED,
    headline,
    light_grid,
    new_figure,
    percent_axis,
    place_axes,
)
from cogcalib_jax.report.text import percent
from cogcalib_jax.report.training_plots import KNOWN, UNKNOWN, steps_axis, style_patch

TIMES = (("at the start", "#56B4E9"), ("at the end", "#7A1E5C"))
KINDS = (("#7A1E5C", "-"), ("#009E73", (0, (4, 2))))
"""colour and line of the questions trained on, and of the others"""


@dataclass(frozen=True)
class Curves:
    """A detector's ROC on one kind of questions, before and after fine-tuning."""

    title: str
    fpr: np.ndarray
    """[points]"""
    tpr: np.ndarray
    """[2, seeds, points] at the start and at the end"""
    threshold: np.ndarray
    """[2, 2] false and true positive rate of the threshold fitted then, mean of seeds"""
    auroc: tuple[float, float]
    """mean of seeds"""


@dataclass(frozen=True)
class Course:
    """One kind of questions over training."""

    name: str
    steps: np.ndarray
    """[moments]"""
    auroc: Mapping[str, np.ndarray]
    """what is detected -> [seeds, moments], NaN where it is undefined"""
    called: np.ndarray
    """[seeds, moments, 3] share called known: of the known, of the unknown, of all"""


def roc_figure(panels: Sequence[Curves], method: str) -> Figure:
    """Two columns: the questions trained on, and the others."""
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
    """Above: AUROC over updates, a panel for each thing detected. Below: what is called known."""
    targets = list(courses[0].auroc)
    across, height = 3.55, 2.6
    figure = new_figure(across * len(targets) + 0.75, 2 * height + 2.3)
    headline(
        figure,
        f"{method}: what the gate's NLL still tells while training goes on",
        "Lines: mean of seeds; bands: all of them. Higher AUROC tells the two apart better.",
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
        _updates(axes, courses[0].steps)
    for i, course in enumerate(courses):
        axes = place_axes(figure, 0.75 + across * i, 1.85 + height, across - 0.55, height - 0.2)
        for k, (color, line) in enumerate(((KNOWN, "-"), (UNKNOWN, "-"), (INK, (0, (1, 1.5))))):
            _with_band(axes, course.steps, course.called[:, :, k], color, line)
        axes.set_ylim(0, 1.01)
        percent_axis(axes.yaxis)
        axes.set_title(f"Called known, {course.name}", fontweight="bold")
        if i == 0:
            axes.set_ylabel("called known (%)")
        axes.set_xlabel("update")
        _updates(axes, course.steps)
    handles = [
        Line2D([], [], color=color, linestyle=line, linewidth=2, label=f"questions {course.name}")
        for course, (color, line) in zip(courses, KINDS, strict=True)
    ]
    handles += [
        Line2D([], [], color=KNOWN, linewidth=2, label=f"of the known ({known})"),
        Line2D([], [], color=UNKNOWN, linewidth=2, label="of the unknown"),
        Line2D([], [], color=INK, linewidth=2, linestyle=(0, (1, 1.5)), label="of all"),
        style_patch(),
    ]
    width, tall = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=((0.75 + across * len(courses)) / width, 1 - (1.95 + height) / tall),
        borderaxespad=0,
        labelspacing=0.8,
    )
    return figure


def _with_band(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, line: object) -> None:
    """values `[seeds, moments]`; a moment that is undefined in some seed is left out."""
    defined = ~np.isnan(values).any(0)
    steps, values = steps[defined], values[:, defined]
    if values.size:
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
        axes.plot(steps, values.mean(0), color=color, linewidth=2, linestyle=line)


def _updates(axes: Axes, steps: np.ndarray) -> None:
    steps_axis(axes, int(steps[-1]), int(steps[0]))


def roc_text(panels: Sequence[Curves], method: str) -> str:
    """A sentence a panel."""
    parts = []
    for panel in panels:
        (fpr, tpr), (later_fpr, later_tpr) = panel.threshold
        first, last = panel.auroc
        parts.append(
            f"{panel.title}: AUROC {first:.3f} at the start, {last:.3f} at the end; the threshold"
            f" calls {percent(tpr)} of the known and {percent(fpr)} of the unknown known at the"
            f" start, {percent(later_tpr)} and {percent(later_fpr)} at the end."
        )
    return " ".join([f"ROC curves of -NLL, {method}.", *parts])


def _area(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"


def auroc_text(courses: Sequence[Course], method: str, known: str) -> str:
    """A sentence a kind of questions and thing detected."""
    parts = []
    for course in courses:
        for target, areas in course.auroc.items():
            first, last = (_area(value) for value in areas.mean(0)[[0, -1]])
            parts.append(f"{target}, questions {course.name}: AUROC from {first} to {last}.")
        ends = course.called.mean(0)[[0, -1]]
        for k, group in enumerate((f"the known ({known})", "the unknown")):
            parts.append(
                f"Of {group}, {course.name}: from {percent(ends[0, k])} to"
                f" {percent(ends[1, k])} called known."
            )
    return " ".join([f"AUROC of -NLL and share called known over updates, {method}.", *parts])
