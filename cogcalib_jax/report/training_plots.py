"""Figures of training: losses, accuracy and confidence over steps, thresholds of the gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cogcalib_jax.report import canvas
from cogcalib_jax.report.html import Picture
from cogcalib_jax.report.load_run import Method, RunResults
from cogcalib_jax.report.plots import save_picture, wilson
from cogcalib_jax.report.recommendation import read_base
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import (
    Look,
    dynamics_text,
    is_sampled,
    looks,
    percent,
    short_name,
    split_key,
)

KNOWN = "#0072B2"
UNKNOWN = "#D55E00"
GROUPS = (("known", KNOWN), ("unknown", UNKNOWN))
DATA_WORDS = {
    "train": "questions trained on",
    "validation": "questions not trained on",
    "test": "questions not trained on",
}
BLOCKS = 12
"""points of a curve over updates: a single batch of 8 or 32 says little"""
COLUMNS = 3
"""methods beside each other: with more, the text would be too small on a page"""


@dataclass(frozen=True)
class Curves:
    """Two curves of one method over training, `[n, 2]` each: step and value."""

    name: str
    look: Look
    left: np.ndarray
    """cross-entropy (nats) of the updates around a step; or the threshold of the gate (nats) from
    that step on, NaN if it could not be fitted"""
    right: np.ndarray
    """validation NLL (nats); or the share of the examples of the updates around a step with an NLL
    at or below the threshold"""


def dynamics_figure(
    runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], style_end: int | None
) -> Figure:
    """Draw accuracy and confidence over steps for known and unknown questions.

    `runs` holds (name of the method, lines of its dynamics.jsonl), not all of them empty. Methods
    stand beside each other, a row for each kind of questions; a single method has them in one row.
    Lines that are means over seeds get bands from the lowest seed to the highest; others the 95 %
    Wilson interval of the accuracy.
    """
    followed = {line["data"] for _, lines in runs for line in lines}
    kinds = [data for data in DATA_WORDS if data in followed]
    alone = len(runs) == 1
    columns = len(kinds) if alone else min(len(runs), COLUMNS)
    kinds_down = 1 if alone else len(kinds)
    blocks = math.ceil(len(runs) / columns)
    across, down, between = 3.45, 3.0 if len(runs) <= COLUMNS else 2.3, 0.75
    block_height = kinds_down * down + between
    figure = canvas.new_figure(max(across * columns + 0.7, 7.0), blocks * block_height + 0.1)
    last_step = max(line["step"] for _, lines in runs for line in lines)
    for i, (name, lines) in enumerate(runs):
        for k, data in enumerate(kinds):
            block, column = (0, k) if alone else divmod(i, columns)
            row = 0 if alone else k
            top = 0.35 + block * block_height + row * down
            axes = canvas.place_axes(figure, 0.85 + across * column, top, across - 0.4, down - 0.35)
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
    drawn = {line["group"] for _, lines in runs for line in lines}
    handles: list[Any] = [
        *(
            Line2D([], [], color=color, linewidth=2.4, label=f"{group} before training")
            for group, color in GROUPS
            if group in drawn
        ),
        Line2D([], [], color=canvas.INK, label="accuracy"),
        Line2D([], [], color=canvas.INK, linestyle=(0, (4, 2)), label="mean confidence"),
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
    for group, color in GROUPS:
        chosen = [line for line in lines if line["data"] == data and line["group"] == group]
        steps, accuracy, confidence = (
            np.array([line[field] for line in chosen], float)
            for field in ("step", "accuracy", "confidence")
        )
        if chosen and "accuracy_low" in chosen[0]:
            for name in ("accuracy", "confidence"):
                low, high = ([line[f"{name}_{end}"] for line in chosen] for end in ("low", "high"))
                axes.fill_between(steps, low, high, color=color, alpha=0.22, linewidth=0)
        elif chosen and "n" in chosen[0]:
            n = np.array([line["n"] for line in chosen], float)
            axes.fill_between(steps, *wilson(accuracy * n, n), color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, accuracy, color=color, linewidth=2)
        axes.plot(steps, confidence, color=color, linewidth=1.8, linestyle=(0, (4, 2)))
    axes.set(ylim=(0, 1))
    canvas.percent_axis(axes.yaxis)
    steps_axis(axes, last_step, style_end)


def gate_figure(gates: Sequence[Curves], last_step: int, style_end: int | None) -> Figure:
    """Draw the threshold, and the share of the training examples at or below it, over steps."""
    figure, left, right = _two_panels(len(gates))
    for gate in gates:
        # A threshold holds from its fit to the next one, and the last one to the end.
        threshold = np.vstack([gate.left, [last_step, gate.left[-1, 1]]])
        left.plot(*threshold.T, drawstyle="steps-post", **gate.look.style)
        right.plot(*gate.right.T, marker="o", markersize=3, **gate.look.style)
    fitted = np.concatenate([gate.left[:, 1] for gate in gates])
    left.set_ylim(0, 1.08 * max(fitted[np.isfinite(fitted)], default=1.0))
    left.set_ylabel("threshold (nats)")
    left.set_title("Threshold", fontweight="bold")
    right.set_ylim(0, 1)
    canvas.percent_axis(right.yaxis)
    right.set_ylabel("known (% of examples)")
    right.set_title("Known share of the batches", fontweight="bold")
    _finish(figure, (left, right), gates, last_step, style_end)
    return figure


def loss_figure(losses: Sequence[Curves], last_step: int, style_end: int | None) -> Figure:
    """Draw training and validation losses over steps; a ring marks the best validation."""
    figure, left, right = _two_panels(len(losses))
    for one in losses:
        left.plot(*one.left.T, linewidth=2, **one.look.style)
        if len(one.right):
            right.plot(*one.right.T, marker="o", markersize=3, clip_on=False, **one.look.style)
            best = one.right[one.right[:, 1].argmin()]
            right.plot(*best, marker="o", markersize=11, markerfacecolor="none",
                       markeredgewidth=1.6, color=one.look.color, clip_on=False)  # fmt: skip
    left.set_ylabel("cross-entropy (nats)")
    left.set_title("Training", fontweight="bold")
    right.set_ylabel("NLL (nats)")
    right.set_title("Validation (ring: lowest)", fontweight="bold")
    _finish(figure, (left, right), losses, last_step, style_end)
    return figure


def _two_panels(entries: int) -> tuple[Figure, Axes, Axes]:
    """A figure with two panels, and room at the right for a legend."""
    figure = canvas.new_figure(10.85, max(4.1, 0.7 + 0.27 * (entries + 1)))
    left, right = (canvas.place_axes(figure, x, 0.4, 3.35, 3.05) for x in (0.75, 4.95))
    return figure, left, right


def _finish(
    figure: Figure,
    panels: Sequence[Axes],
    entries: Sequence[Curves],
    last_step: int,
    style_end: int | None,
) -> None:
    """Label the steps and place the legend."""
    for axes in panels:
        axes.set_xlabel("step (updates)")
        steps_axis(axes, last_step, style_end)
    handles: list[Any] = [
        Line2D([], [], linewidth=2.2, label=entry.name, **entry.look.style) for entry in entries
    ]
    canvas.legend_beside(figure, [*handles, *([style_patch()] if style_end else [])], 8.6, 0.4)


def steps_axis(axes: Axes, last_step: int, style_end: int | None) -> None:
    """Show updates from 0 on, with a grid, and the style phase in grey."""
    axes.set_xlim(0, last_step)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    canvas.light_grid(axes)
    if style_end:
        axes.axvspan(0, style_end, color=canvas.GRID, zorder=0, linewidth=0)
        axes.axvline(style_end, color=canvas.MUTED, linewidth=1)


def style_patch() -> Patch:
    """Return the legend's entry of the style phase."""
    return Patch(facecolor=canvas.GRID, edgecolor=canvas.MUTED, label="style phase")


def training_pictures(run: RunResults) -> list[Picture]:
    """Draw and save the figures of training, as far as it was logged."""
    # The training of averages over several models was followed without averaging.
    trained = [m for m in run.methods if not is_sampled(m.key)]
    style = looks(m.key for m in run.methods)
    last = max((line["step"] for m in trained for line in m.steps), default=0)
    losses = [found for m in trained if (found := _losses(m, style[m.key])) is not None]
    logged = [(short_name(m.key), m.dynamics) for m in trained if m.dynamics]
    gates = {m.key: gate for m in trained if (gate := _gate(m, style[m.key])) is not None}
    ungated = any(split_key(key)[1] == "all" for key in gates)
    pictures = []
    with canvas.project_style():
        if losses:
            pictures.append(
                save_picture(
                    run.folder,
                    "loss",
                    loss_figure(losses, last, run.style_end),
                    "Training and validation loss",
                    loss_text(losses),
                    "Training: cross-entropy without the calibration term, so that methods can be"
                    " compared. The best epoch is the one with the lowest validation NLL.",
                    "metrics.jsonl",
                )
            )
        if logged:
            pictures.append(
                save_picture(
                    run.folder,
                    "dynamics",
                    dynamics_figure(logged, run.style_end),
                    "Accuracy and confidence over training",
                    dynamics_text(logged),
                    _dynamics_caption(run),
                    "dynamics.jsonl",
                )
            )
        if gates:
            pictures.append(
                save_picture(
                    run.folder,
                    "threshold",
                    gate_figure(list(gates.values()), last, run.style_end),
                    "Threshold of the gate, and share of known examples",
                    gate_text(list(gates.values())),
                    "Known: an NLL at or below the threshold. The threshold is fitted on questions"
                    " that are not trained on; the share is of those that are, and grows as they"
                    " are memorised. `cogcalib study detector` keeps the NLL of single questions"
                    " (docs/architecture.md)."
                    + (" Methods without a gate log both and use neither." if ungated else ""),
                    "metrics.jsonl",
                )
            )
    return pictures


def _dynamics_caption(run: RunResults) -> str:
    groups = {}
    for line in chain(*(m.dynamics for m in run.methods)):
        groups.setdefault((DATA_WORDS.get(line["data"]), line["group"]), line.get("n"))
    sizes = "; ".join(f"{n:,} {group} {data}" for (data, group), n in groups.items() if n and data)
    caption = (
        "Where confidence (dashed) runs above accuracy (solid), the model is too confident. Known"
        " and unknown refer to the model before fine-tuning. Bands: 95 % Wilson intervals."
    )
    caption += f" Sizes: {sizes}." if sizes else ""
    base = read_base(run.folder)
    if base is not None and base["low"] <= base["chance"]:
        caption += (
            " Caution: before fine-tuning the model was no better than guessing. It answered the"
            " known questions right by luck, so the two groups approach each other by chance."
        )
    return caption


def _blocks(lines: Sequence[Mapping[str, Any]], field: str) -> np.ndarray:
    """[blocks, 2]: mean step and mean of a field over neighbouring lines."""
    logged = np.array([(line["step"], line[field]) for line in lines], float).reshape(-1, 2)
    blocks = np.array_split(logged, min(BLOCKS, len(logged))) if len(logged) else []
    return np.array([block.mean(0) for block in blocks]).reshape(-1, 2)


def _losses(method: Method, look: Look) -> Curves | None:
    """The losses of a method, if any was logged."""
    updates = [line for line in method.logged("finetune") if line.get("ce") is not None]
    asked = [(line["step"], line["nll"]) for line in method.logged("validation")]
    if not updates and not asked:
        return None
    validation = np.array(asked, float).reshape(-1, 2)
    return Curves(short_name(method.key), look, _blocks(updates, "ce"), validation)


def _gate(method: Method, look: Look) -> Curves | None:
    """The gate of a method, if thresholds and updates of fine-tuning were logged."""
    fits, updates = method.logged("refit"), method.logged("finetune")
    if not fits or not updates:
        return None
    values: list[Any] = [(line["step"], line["threshold"]) for line in fits]
    threshold = np.array(values, float)  # None becomes NaN
    return Curves(short_name(method.key), look, threshold, _blocks(updates, "known_fraction"))


def gate_text(gates: Sequence[Curves]) -> str:
    """Return the alternative text of thresholds and known shares."""
    parts = []
    for gate in gates:
        first, last = (_nats(gate.left[i, 1]) for i in (0, -1))
        least, most = (percent(gate.right[i, 1]) for i in (0, -1))
        parts.append(
            f"{gate.name}: threshold from {first} to {last}, known share from {least} to {most}."
        )
    opening = "Threshold, and share of the training examples that count as known, over steps."
    return " ".join([opening, *parts])


def _nats(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f} nats"


def loss_text(losses: Sequence[Curves]) -> str:
    """Return the alternative text of the losses."""
    parts = []
    for one in losses:
        words = []
        if len(one.left):
            words.append(f"training from {one.left[0, 1]:.3f} to {one.left[-1, 1]:.3f} nats")
        if len(one.right):
            step, best = one.right[one.right[:, 1].argmin()]
            words.append(
                f"validation from {one.right[0, 1]:.3f} to {one.right[-1, 1]:.3f}, lowest"
                f" {best:.3f} at step {step:.0f}"
            )
        parts.append(f"{one.name}: {'; '.join(words)}.")
    return " ".join(["Cross-entropy in training and NLL on validation questions.", *parts])


def training_table(run: RunResults) -> Table | None:
    """Return a line on the training of each method; None if no update was logged."""
    rows = []
    for m in run.methods:
        updates = m.logged("finetune")
        if not updates:
            continue
        # The first validation stands before any update of this phase.
        best = min(m.logged("validation")[1:], key=lambda line: line["nll"], default=None)
        speed = [line["examples_per_s"] for line in updates if line.get("examples_per_s")]
        rates = [line["lr"] for line in updates if line.get("lr") is not None]
        rows.append(
            (
                short_name(m.key),
                f"{updates[-1]['step'] - (run.style_end or 0):,}",
                "n/a" if best is None else f"{best['epoch']:.1f}",
                "n/a" if best is None else f"{best['nll']:.3f}",
                f"{max(rates):.2g}" if rates else "n/a",
                f"{np.median(speed):,.0f}" if speed else "n/a",
            )
        )
    if not rows:
        return None
    header = (
        "method",
        "updates",
        "best\nepoch",
        "its validation\nNLL (nats)",
        "highest\nlearning rate",
        "examples\nper second",
    )
    return Table(header, tuple(rows), "")
