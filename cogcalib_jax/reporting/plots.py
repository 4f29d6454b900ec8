"""Three pictures: is confidence right, how it got there, and what it is good for.

Each function draws one figure from plain numbers and knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cogcalib_jax.metrics import ReliabilityBins
from cogcalib_jax.reporting.canvas import (
    GRID,
    INK,
    MUTED,
    headline,
    light_grid,
    new_figure,
    percent_axis,
    place_axes,
)
from cogcalib_jax.reporting.names import Look

OVER = "#B3261E"
UNDER = "#1A237E"
KNOWN = "#0072B2"
UNKNOWN = "#D55E00"
BAND = "#D3D6DA"
DATA_WORDS = {
    "train": "questions trained on",
    "validation": "questions not trained on",
    "test": "questions not trained on",
}


@dataclass(frozen=True)
class Reliability:
    """One panel of the reliability diagram."""

    name: str
    look: Look
    bins: ReliabilityBins
    band: np.ndarray
    """[bins, 2] accuracies between which a calibrated model's would lie in 90 % of cases"""
    metrics: Mapping[str, Any]
    """its numbers in eval.json: ece and ece_noise_floor"""


@dataclass(frozen=True)
class Coverage:
    """One line of the coverage plot."""

    name: str
    look: Look
    share: np.ndarray
    """[points] share of questions answered, the most confident first"""
    accuracy: np.ndarray
    """[points] accuracy of those answered"""
    at_target: float
    """largest share that keeps the target accuracy"""


def reliability_figure(panels: Sequence[Reliability], task: str, n: int) -> Figure:
    """Accuracy per confidence bin against the diagonal, one panel a method."""
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    across, down = (3.45 if len(panels) > 1 else 6.3), 4.75
    legend_columns = 4 if columns == 3 else 2
    figure = new_figure(across * columns + 0.5, down * rows + (0.95 if columns == 3 else 1.15))
    headline(
        figure,
        "Does confidence mean what it says?",
        f"Accuracy at each level of confidence on {n:,} questions of {task}.",
    )
    most = max(int(p.bins.count.max()) for p in panels)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        left, top = 0.62 + across * column, 1.3 + down * row
        axes = place_axes(figure, left, top, across - 0.45, 3.0)
        counts = place_axes(figure, left, top + 3.08, across - 0.45, 0.62)
        _reliability_panel(axes, counts, panel, most)
        if column == 0:
            axes.set_ylabel("accuracy (%)")
            counts.set_ylabel("questions")
    handles = [
        Patch(facecolor="#8A9099", label="accuracy of the bin"),
        Patch(facecolor=OVER + "1F", edgecolor=OVER, hatch="////", label="too confident by"),
        Patch(facecolor=UNDER + "1F", edgecolor=UNDER, hatch="\\\\\\\\", label="too unsure by"),
        Patch(facecolor=BAND, label="floor band: a calibrated model, 90 % range"),
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=legend_columns,
        handlelength=1.8,
        columnspacing=1.6,
    )
    return figure


def _reliability_panel(axes: Axes, counts: Axes, panel: Reliability, most: int) -> None:
    bins, metrics = panel.bins, panel.metrics
    filled = np.flatnonzero(bins.count)
    left, width = bins.edges[filled], np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    low, high = panel.band[filled].T

    axes.bar(left, high - low, width, bottom=low, align="edge", color=BAND, zorder=2)
    axes.bar(left, accuracy, width, align="edge", color=panel.look.color, alpha=0.72, zorder=3,
             edgecolor="white", linewidth=0.6)  # fmt: skip
    for over, color, hatch in ((True, OVER, "////"), (False, UNDER, "\\\\\\\\")):
        chosen = (confidence > accuracy) == over
        axes.bar(left[chosen], np.abs(confidence - accuracy)[chosen], width[chosen], align="edge",
                 bottom=np.minimum(accuracy, confidence)[chosen], facecolor=color + "1F",
                 edgecolor=color, hatch=hatch, linewidth=0.8, zorder=4)  # fmt: skip
    # The band lies behind the bars; its ends are drawn once more so that they show on them.
    for ends in (low, high):
        axes.hlines(ends, left, left + width, color=MUTED, linewidth=0.9, zorder=5)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=6)
    axes.set(xlim=(0, 1), ylim=(0, 1.0))
    percent_axis(axes.yaxis)
    axes.tick_params(labelbottom=False)
    light_grid(axes)
    floor = metrics["ece_noise_floor"]
    axes.set_title(panel.name, fontweight="bold", pad=34)
    axes.text(0, 1.03, f"{metrics['confidence']:.1%} sure, {metrics['accuracy']:.1%} right\n"
              f"ECE {metrics['ece']:.3f} (noise floor {floor['mean']:.3f}, "
              f"95 %: {floor['p95']:.3f})".replace("%", " %").replace("  %", " %"),
              transform=axes.transAxes, fontsize=9, color=MUTED, va="bottom",
              linespacing=1.35)  # fmt: skip

    counts.bar(left, bins.count[filled], width, align="edge", color="#8A9099", edgecolor="white",
               linewidth=0.6)  # fmt: skip
    counts.set(xlim=(0, 1), ylim=(0, most * 1.08))
    percent_axis(counts.xaxis)
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    light_grid(counts)
    counts.set_xlabel("confidence (%)")


def dynamics_figure(
    runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], style_end: int | None
) -> Figure:
    """Accuracy and confidence over steps for known and unknown questions, one column a method.

    `runs` holds (name of the method, lines of its dynamics.jsonl), not all of them empty.
    """
    kinds = list(dict.fromkeys(line["data"] for _, lines in runs for line in lines))
    grid = [[(name, lines, data) for name, lines in runs] for data in kinds]
    if len(runs) == 1:  # one row instead of one column
        grid = [[panel for row in grid for panel in row]]
    columns, rows = len(grid[0]), len(grid)
    across, down = 3.45, 3.1
    figure = new_figure(max(across * columns + 0.7, 7.0), down * rows + 1.7)
    headline(
        figure,
        "How accuracy and confidence grow over training",
        "Where confidence (dashed) runs above accuracy (solid), the model is too confident.",
    )
    last_step = max(line["step"] for _, lines in runs for line in lines)
    for row, column in np.ndindex(rows, columns):
        name, lines, data = grid[row][column]
        axes = place_axes(figure, 0.85 + across * column, 1.1 + down * row, across - 0.4, 2.75)
        for group, color in (("known", KNOWN), ("unknown", UNKNOWN)):
            _dynamics_lines(axes, lines, data, group, color)
        axes.set(xlim=(0, last_step), ylim=(0, 1))
        percent_axis(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        light_grid(axes)
        if style_end:
            axes.axvspan(0, style_end, color=GRID, zorder=0, linewidth=0)
            axes.axvline(style_end, color=MUTED, linewidth=1)
        if len(runs) == 1:
            axes.set_title(f"{name}: {DATA_WORDS[data]}", fontweight="bold")
        elif row == 0:
            axes.set_title(name, fontweight="bold")
        if row == rows - 1:
            axes.set_xlabel("step (updates)")
        if column == 0:
            unit = "accuracy, confidence (%)"
            axes.set_ylabel(unit if len(runs) == 1 else f"{DATA_WORDS[data]}\n{unit}")
    handles: list[Any] = [
        Line2D([], [], color=KNOWN, linewidth=2.4, label="known before training"),
        Line2D([], [], color=UNKNOWN, linewidth=2.4, label="unknown before training"),
        Line2D([], [], color=INK, label="accuracy"),
        Line2D([], [], color=INK, linestyle=(0, (4, 2)), label="mean confidence"),
    ]
    if style_end:
        handles.append(Patch(facecolor=GRID, edgecolor=MUTED, label="style phase"))
    figure.legend(handles=handles, loc="lower center", ncols=3 if columns < 3 else 5)
    return figure


def _dynamics_lines(
    axes: Axes, lines: Sequence[dict[str, Any]], data: str, group: str, color: str
) -> None:
    chosen = [line for line in lines if line["data"] == data and line["group"] == group]
    if not chosen:
        return
    steps, accuracy, confidence = (
        np.array([line[field] for line in chosen], float)
        for field in ("step", "accuracy", "confidence")
    )
    axes.fill_between(steps, accuracy, confidence, color=color, alpha=0.13, linewidth=0)
    axes.plot(steps, accuracy, color=color, linewidth=2)
    axes.plot(steps, confidence, color=color, linewidth=1.8, linestyle=(0, (4, 2)))


def coverage_figure(lines: Sequence[Coverage], task: str, n: int, target: float) -> Figure:
    """Accuracy of the answers given when the least confident questions are left unanswered."""
    figure = new_figure(8.2, 5.4)
    headline(
        figure,
        "How many questions can be answered before mistakes creep in?",
        f"The most confident answers come first; {n:,} questions of {task}.",
    )
    axes = place_axes(figure, 0.75, 0.9, 7.25, 3.9)
    # Lines that lie on each other stay visible: each is thinner than the one below.
    for line, width in zip(lines, np.linspace(3.2, 1.6, len(lines)), strict=True):
        label = f"{line.name}: {line.at_target:.1%}".replace("%", " %")
        axes.plot(line.share, line.accuracy, color=line.look.color, linestyle=line.look.line,
                  linewidth=width, label=label)  # fmt: skip
    axes.axhline(target, color=INK, linewidth=1)
    axes.text(0.997, target + 0.006, f"{target * 100:.0f} % accuracy", ha="right", va="bottom",
              color=INK, fontsize=9)  # fmt: skip
    lowest = min([float(line.accuracy.min()) for line in lines] + [target - 0.1])
    axes.set(xlim=(0, 1), ylim=(math.floor(lowest * 10) / 10, 1.005))
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.set_xlabel("share of questions answered (%)")
    axes.set_ylabel("accuracy of the answers given (%)")
    light_grid(axes)
    legend = axes.legend(
        title=f"share answered at {target * 100:.0f} % accuracy", loc="best", handlelength=2.8
    )
    legend.set_alignment("left")
    return figure
