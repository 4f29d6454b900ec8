"""Pictures of a study: every seed of every condition, and the curve over the known share.

Each function draws one figure from plain numbers and knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

COLUMNS = 3
FLOOR = "floor: a calibrated model's ECE, up to its 95th percentile"


@dataclass(frozen=True)
class SeedDots:
    """One method under one condition, a number a seed."""

    method: str
    condition: str
    look: Look
    ece: np.ndarray
    """[seeds]"""
    floor_p95: float
    """95th percentile of the ECE's noise floor, mean over seeds"""
    nll: np.ndarray
    """[seeds] nats"""
    accuracy: np.ndarray
    """[seeds]"""


@dataclass(frozen=True)
class RatioCurve:
    """One method over the share of known rows among those it was fine-tuned on."""

    name: str
    look: Look
    share: np.ndarray
    """[dots] known share, as the other arrays a dot for each seed of each condition"""
    ece: np.ndarray
    confidence: np.ndarray
    """[dots] mean confidence"""
    accuracy: np.ndarray
    floor: np.ndarray
    """[dots, 2] mean and 95th percentile of the ECE's noise floor"""


def dots_figure(rows: Sequence[SeedDots], task: str) -> Figure:
    """A line a method and condition: a dot for each seed, a bar at their mean."""
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
        "Every seed: how far off, how good, how often right",
        f"Answers to {task}. Dots: seeds; bars: their mean. Lower ECE and NLL are better.",
    )
    panels = [
        ("ECE", lambda row: row.ece, False),
        ("NLL (nats)", lambda row: row.nll, False),
        ("accuracy (%)", lambda row: row.accuracy, True),
    ]
    for column, (title, values, percent) in enumerate(panels):
        axes = place_axes(figure, left + across * column, top, across - 0.25, tall)
        for row, place in zip(rows, places, strict=True):
            dots = values(row)
            if column == 0:
                axes.barh(place, row.floor_p95, line * 0.95, color=BAND, zorder=1)
            axes.plot(dots, np.full(len(dots), place), "o", color=row.look.color, markersize=5,
                      alpha=0.65, markeredgewidth=0, zorder=3)  # fmt: skip
            axes.plot(dots.mean(), place, "|", color=INK, markersize=12, markeredgewidth=1.8,
                      zorder=4)  # fmt: skip
        axes.set_ylim(first + tall, first)  # inches downwards
        axes.set_yticks(places, labels if column == 0 else [""] * len(labels))
        if column == 0:
            axes.set_xlim(left=0)
        if percent:
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


def ratio_figure(curves: Sequence[RatioCurve], task: str) -> Figure:
    """ECE, and accuracy beside mean confidence, over the known share; a column a method."""
    columns = min(len(curves), COLUMNS)
    rows = math.ceil(len(curves) / columns)
    across, height = (3.45 if len(curves) > 1 else 6.3), 2.05
    down = 2 * height + 1.5
    figure = new_figure(max(across * columns + 0.6, 7.2), down * rows + 0.95)
    headline(
        figure,
        "Does known data make it overconfident?",
        f"Fine-tuned on equally many questions; answers to {task}. Dots: seeds; lines: means.",
    )
    highest = 1.1 * max(max(curve.ece.max(), curve.floor.max()) for curve in curves)
    for i, curve in enumerate(curves):
        row, column = divmod(i, columns)
        left, top = 0.8 + across * column, 1.1 + down * row
        upper = place_axes(figure, left, top, across - 0.5, height)
        lower = place_axes(figure, left, top + height + 0.25, across - 0.5, height)
        _ratio_panels(upper, lower, curve, highest)
        if column == 0:
            upper.set_ylabel("ECE")
            lower.set_ylabel("accuracy, confidence (%)")
    handles: list[Any] = [
        Line2D([], [], color=INK, marker="o", markersize=4, label="ECE, accuracy"),
        Line2D(
            [],
            [],
            color=INK,
            marker="o",
            markersize=4,
            markerfacecolor="white",
            linestyle=(0, (4, 2)),
            label="mean confidence",
        ),  # fmt: skip
        Patch(facecolor=BAND, label=FLOOR),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3 if columns > 1 else 2)
    return figure


def _ratio_panels(upper: Axes, lower: Axes, curve: RatioCurve, highest: float) -> None:
    shares = np.unique(curve.share)

    def means(values: np.ndarray) -> np.ndarray:
        return np.array([values[curve.share == share].mean(0) for share in shares])

    floor = means(curve.floor)
    upper.fill_between(shares, floor[:, 1], color=BAND, linewidth=0, zorder=1)
    upper.plot(shares, floor[:, 0], color=MUTED, linewidth=1, zorder=2)
    lines = (
        (upper, curve.ece, "-", curve.look.color),
        (lower, curve.accuracy, "-", curve.look.color),
        (lower, curve.confidence, (0, (4, 2)), "white"),
    )
    for axes, values, style, inside in lines:
        axes.plot(shares, means(values), color=curve.look.color, linewidth=2, linestyle=style,
                  zorder=3)  # fmt: skip
        axes.plot(curve.share, values, "o", markersize=4.5, markerfacecolor=inside,
                  markeredgecolor=curve.look.color, alpha=0.8, zorder=4)  # fmt: skip
    lower.fill_between(shares, means(curve.accuracy), means(curve.confidence),
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
