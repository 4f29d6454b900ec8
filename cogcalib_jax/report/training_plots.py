"""Pictures of training: how accuracy and confidence grew, and what the gate called known.

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
from matplotlib.ticker import MaxNLocator

from cogcalib_jax.report.canvas import (
    GRID,
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

KNOWN = "#0072B2"
UNKNOWN = "#D55E00"
DATA_WORDS = {
    "train": "questions trained on",
    "validation": "questions not trained on",
    "test": "questions not trained on",
}
COLUMNS = 3
"""methods beside each other: with more, the text would be too small on a page"""


@dataclass(frozen=True)
class Gate:
    """What one method's gate did over training."""

    name: str
    look: Look
    threshold: np.ndarray
    """[refits, 2] step and threshold (nats), NaN where it could not be fitted"""
    known: np.ndarray
    """[blocks, 2] step in the middle of some logged updates, and share of their examples with an
    NLL at or below the threshold"""


def dynamics_figure(
    runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], style_end: int | None
) -> Figure:
    """Accuracy and confidence over steps for known and unknown questions.

    `runs` holds (name of the method, lines of its dynamics.jsonl), not all of them empty. Methods
    stand beside each other, a row for each kind of questions; a single method has them in one row.
    Lines that are means over seeds (`study_dynamics.seed_means`) get bands from the lowest seed to
    the highest.
    """
    followed = {line["data"] for _, lines in runs for line in lines}
    kinds = [data for data in DATA_WORDS if data in followed]
    alone = len(runs) == 1
    columns = len(kinds) if alone else min(len(runs), COLUMNS)
    kinds_down = 1 if alone else len(kinds)
    blocks = math.ceil(len(runs) / columns)
    across, down, between = 3.45, 3.0 if len(runs) <= COLUMNS else 2.3, 0.75
    block_height = kinds_down * down + between
    figure = new_figure(max(across * columns + 0.7, 7.0), blocks * block_height + 1.25)
    headline(
        figure,
        "How accuracy and confidence grow over training",
        "Where confidence (dashed) runs above accuracy (solid), the model is too confident."
        + (" Bands: all seeds." if any("accuracy_low" in x for _, xs in runs for x in xs) else ""),
    )
    last_step = max(line["step"] for _, lines in runs for line in lines)
    for i, (name, lines) in enumerate(runs):
        for k, data in enumerate(kinds):
            block, column = (0, k) if alone else divmod(i, columns)
            row = 0 if alone else k
            top = 1.1 + block * block_height + row * down
            axes = place_axes(figure, 0.85 + across * column, top, across - 0.4, down - 0.35)
            _dynamics_panel(axes, lines, data, last_step, style_end)
            if alone:
                axes.set_title(f"{name}: {DATA_WORDS[data]}", fontweight="bold")
            elif row == 0:
                axes.set_title(name, fontweight="bold")
            if row == kinds_down - 1:
                axes.set_xlabel("step (updates)")
            if column == 0:
                unit = "accuracy, confidence (%)"
                axes.set_ylabel(unit if alone else f"{DATA_WORDS[data]}\n{unit}", fontsize=9.5)
    handles: list[Any] = [
        Line2D([], [], color=KNOWN, linewidth=2.4, label="known before training"),
        Line2D([], [], color=UNKNOWN, linewidth=2.4, label="unknown before training"),
        Line2D([], [], color=INK, label="accuracy"),
        Line2D([], [], color=INK, linestyle=(0, (4, 2)), label="mean confidence"),
    ]
    if style_end:
        handles.append(style_patch())
    figure.legend(handles=handles, loc="lower center", ncols=3 if columns < 3 else 5)
    return figure


def _dynamics_panel(
    axes: Axes,
    lines: Sequence[dict[str, Any]],
    data: str,
    last_step: int,
    style_end: int | None,
) -> None:
    for group, color in (("known", KNOWN), ("unknown", UNKNOWN)):
        chosen = [line for line in lines if line["data"] == data and line["group"] == group]
        steps, accuracy, confidence = (
            np.array([line[field] for line in chosen], float)
            for field in ("step", "accuracy", "confidence")
        )
        if chosen and "accuracy_low" in chosen[0]:
            for name in ("accuracy", "confidence"):
                low, high = ([line[f"{name}_{end}"] for line in chosen] for end in ("low", "high"))
                axes.fill_between(steps, low, high, color=color, alpha=0.22, linewidth=0)
        else:
            axes.fill_between(steps, accuracy, confidence, color=color, alpha=0.13, linewidth=0)
        axes.plot(steps, accuracy, color=color, linewidth=2)
        axes.plot(steps, confidence, color=color, linewidth=1.8, linestyle=(0, (4, 2)))
    axes.set(ylim=(0, 1))
    percent_axis(axes.yaxis)
    steps_axis(axes, last_step, style_end)


def gate_figure(gates: Sequence[Gate], last_step: int, style_end: int | None) -> Figure:
    """The threshold, and the share of the training examples at or below it, over steps."""
    figure = new_figure(10.85, max(4.9, 1.5 + 0.27 * (len(gates) + 1)))
    headline(
        figure,
        "What counts as known while training goes on",
        "Known: an NLL at or below the threshold. Memorised examples come to count as known, too.",
    )
    left = place_axes(figure, 0.75, 1.2, 3.35, 3.05)
    right = place_axes(figure, 4.75, 1.2, 3.35, 3.05)
    for gate, width in zip(gates, np.linspace(3.0, 1.5, len(gates)), strict=True):
        how = {"color": gate.look.color, "linestyle": gate.look.line, "linewidth": width}
        # A threshold holds from its fit to the next one, and the last one to the end.
        steps, values = np.vstack([gate.threshold, [last_step, gate.threshold[-1, 1]]]).T
        left.plot(steps, values, drawstyle="steps-post", **how)
        right.plot(*gate.known.T, marker="o", markersize=3, **how)
    fitted = np.concatenate([gate.threshold[:, 1] for gate in gates])
    left.set_ylim(0, 1.08 * max(fitted[np.isfinite(fitted)], default=1.0))
    left.set_ylabel("threshold (nats)")
    left.set_title("Threshold", fontweight="bold")
    right.set_ylim(0, 1)
    percent_axis(right.yaxis)
    right.set_ylabel("known (% of examples)")
    right.set_title("Known share of the batches", fontweight="bold")
    for axes in (left, right):
        axes.set_xlabel("step (updates)")
        steps_axis(axes, last_step, style_end)
    handles: list[Any] = [
        Line2D([], [], color=g.look.color, linestyle=g.look.line, linewidth=2.2, label=g.name)
        for g in gates
    ]
    if style_end:
        handles.append(style_patch())
    legend_beside(figure, handles, 8.3, 1.15)
    return figure


def steps_axis(axes: Axes, last_step: int, style_end: int | None) -> None:
    """Updates from 0 on, with a grid; the style phase in grey where there was one."""
    axes.set_xlim(0, last_step)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    light_grid(axes)
    if style_end:
        axes.axvspan(0, style_end, color=GRID, zorder=0, linewidth=0)
        axes.axvline(style_end, color=MUTED, linewidth=1)


def style_patch() -> Patch:
    return Patch(facecolor=GRID, edgecolor=MUTED, label="style phase")
