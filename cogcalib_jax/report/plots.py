"""Pictures of answers: is confidence right, whom does it go to, and what is it good for.

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
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cogcalib_jax.metrics import ReliabilityBins
from cogcalib_jax.report.canvas import (
    BAND,
    INK,
    MUTED,
    headline,
    legend_beside,
    light_grid,
    new_figure,
    percent_axis,
    place_axes,
)
from cogcalib_jax.report.names import Look
from cogcalib_jax.report.text import percent

OVER = "#B3261E"
UNDER = "#1A237E"
RIGHT = "#009E73"
WRONG = "#B35C94"
COLUMNS = 3
"""panels beside each other: with more, the text would be too small on a page"""


@dataclass(frozen=True)
class Answers:
    """What one method's answers look like: a panel of a diagram."""

    name: str
    look: Look
    bins: ReliabilityBins
    band: np.ndarray
    """[bins, 2] accuracies between which a calibrated model's would lie in 90 % of cases"""
    metrics: Mapping[str, Any]
    """its numbers in eval.json"""
    sure_right: float | None
    """mean confidence of the right answers, None where there is none"""
    sure_wrong: float | None
    """mean confidence of the wrong answers, None where there is none"""

    @property
    def right(self) -> np.ndarray:
        """[bins] right answers."""
        return np.rint(np.nan_to_num(self.bins.accuracy) * self.bins.count)


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


def reliability_figure(panels: Sequence[Answers], task: str, n: int) -> Figure:
    """Accuracy per confidence bin against the diagonal, one panel a method."""
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    across, height = (3.45 if len(panels) > 1 else 6.3), (3.0 if rows < 3 else 2.3)
    down = height + 1.85
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
        axes = place_axes(figure, left, top, across - 0.45, height)
        counts = place_axes(figure, left, top + height + 0.08, across - 0.45, 0.62)
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


def _reliability_panel(axes: Axes, counts: Axes, panel: Answers, most: int) -> None:
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
    _panel_title(
        axes,
        panel.name,
        f"{percent(metrics['confidence'])} sure, {percent(metrics['accuracy'])} right\n"
        f"ECE {metrics['ece']:.3f} (noise floor {floor['mean']:.3f}, 95 %: {floor['p95']:.3f})",
    )

    counts.bar(left, bins.count[filled], width, align="edge", color="#8A9099", edgecolor="white",
               linewidth=0.6)  # fmt: skip
    counts.set(xlim=(0, 1), ylim=(0, most * 1.08))
    percent_axis(counts.xaxis)
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    light_grid(counts)
    counts.set_xlabel("confidence (%)")


def histogram_figure(panels: Sequence[Answers], task: str, n: int) -> Figure:
    """How many right answers (upwards) and wrong ones (downwards) at each level of confidence."""
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    across, down, height = (3.45 if len(panels) > 1 else 6.3), 2.85, 1.85
    figure = new_figure(across * columns + 0.6, down * rows + 1.1)
    headline(
        figure,
        "How sure is it of its right answers, and how sure of its wrong ones?",
        f"{n:,} questions of {task}.",
    )
    up = max(float(p.right.max()) for p in panels) * 1.08 + 0.5
    down_to = max(float((p.bins.count - p.right).max()) for p in panels) * 1.08 + 0.5
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        axes = place_axes(figure, 0.72 + across * column, 1.3 + down * row, across - 0.45, height)
        left, width = panel.bins.edges[:-1], np.diff(panel.bins.edges)
        how = {"align": "edge", "edgecolor": "white", "linewidth": 0.6, "zorder": 3}
        axes.bar(left, panel.right, width, color=RIGHT, **how)
        axes.bar(left, panel.right - panel.bins.count, width, color=WRONG, hatch="////", **how)
        axes.axhline(0, color=INK, linewidth=1, zorder=4)
        axes.set(xlim=(0, 1), ylim=(-down_to, up))
        percent_axis(axes.xaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
        light_grid(axes)
        auroc = panel.metrics["auroc"]
        _panel_title(
            axes,
            panel.name,
            f"right: {_share(panel.sure_right)} sure; wrong: {_share(panel.sure_wrong)} sure\n"
            f"AUROC {'n/a' if auroc is None else f'{auroc:.3f}'}",
        )
        if row == rows - 1 or i + columns >= len(panels):
            axes.set_xlabel("confidence (%)")
        if column == 0:
            axes.set_ylabel("questions")
    handles = [
        Patch(facecolor=RIGHT, label="right answers (upwards)"),
        Patch(facecolor=WRONG, edgecolor="white", hatch="////", label="wrong answers (downwards)"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, handlelength=1.8)
    return figure


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)


def _panel_title(axes: Axes, name: str, below: str) -> None:
    """The name, and two lines of numbers between it and the axes."""
    axes.set_title(name, fontweight="bold", pad=34)
    axes.text(0, 1 + 0.09 / _height(axes), below, transform=axes.transAxes, fontsize=9, color=MUTED,
              va="bottom", linespacing=1.35)  # fmt: skip


def _height(axes: Axes) -> float:
    """Of the axes, in inches."""
    return axes.get_position().height * axes.figure.get_figheight()


def coverage_figure(lines: Sequence[Coverage], task: str, n: int, target: float) -> Figure:
    """Accuracy of the answers given when the least confident questions are left unanswered."""
    figure = new_figure(10.85, 5.4)
    headline(
        figure,
        "How many questions can be answered before mistakes creep in?",
        f"The most confident answers come first; {n:,} questions of {task}.",
    )
    axes = place_axes(figure, 0.75, 0.9, 6.7, 3.9)
    # Lines that lie on each other stay visible: each is thinner than the one below.
    handles: list[Any] = []
    for line, width in zip(lines, np.linspace(3.2, 1.4, len(lines)), strict=True):
        how = {"color": line.look.color, "linestyle": line.look.line}
        axes.plot(line.share, line.accuracy, linewidth=width, **how)
        label = f"{line.name}: {percent(line.at_target)}"
        handles.append(Line2D([], [], linewidth=2.2, label=label, **how))
    axes.axhline(target, color=INK, linewidth=1)
    # On the left: the most confident answers are mostly right, so curves cross it further on.
    axes.text(0.01, target + 0.006, f"{target * 100:.0f} % accuracy", va="bottom",
              color=INK, fontsize=9)  # fmt: skip
    lowest = min([float(line.accuracy.min()) for line in lines] + [target - 0.1])
    axes.set(xlim=(0, 1), ylim=(math.floor(lowest * 10) / 10, 1.005))
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.set_xlabel("share of questions answered (%)")
    axes.set_ylabel("accuracy of the answers given (%)")
    light_grid(axes)
    left = 7.75 / figure.get_figwidth()
    top = 1 - 0.9 / figure.get_figheight()
    title = f"Share answered at {target * 100:.0f} % accuracy"
    figure.text(left, top, title, fontsize=9.5, fontweight="bold", va="top")
    legend_beside(figure, handles, 7.75, 1.18)
    return figure
