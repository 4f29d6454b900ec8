"""Pictures of answers: is confidence right, whom does it go to, and what is it good for.

Each function draws one figure from plain numbers and knows nothing of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cogcalib_jax.metrics import (
    ReliabilityBins,
    ece_noise_floor,
    reliability_bins,
    risk_coverage,
    summarize_confidence,
)
from cogcalib_jax.metrics.checks import check_confidence
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
    project_style,
    save,
)
from cogcalib_jax.report.comparison import results_of
from cogcalib_jax.report.html import Picture
from cogcalib_jax.report.load_run import Method, Run
from cogcalib_jax.report.names import (
    REFERENCES,
    SAMPLED,
    Look,
    is_tempered,
    looks,
    short_name,
)
from cogcalib_jax.report.text import (
    coverage_text,
    dynamics_text,
    gate_text,
    histogram_text,
    percent,
    reliability_text,
)
from cogcalib_jax.report.training_plots import Gate, dynamics_figure, gate_figure
from cogcalib_jax.report.verdict import TEMPERED_SFT

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


class Answered(Protocol):
    """Answers with a confidence each, such as `Predictions`."""

    @property
    def confidence(self) -> np.ndarray:
        """[n] in [0, 1]"""

    @property
    def correct(self) -> np.ndarray:
        """[n] 0 or 1"""


def reliability_diagram(
    answers: Mapping[str, Answered], *, task: str = "the task", bins: int = 15
) -> Figure:
    """Draw accuracy against confidence, a panel for each model.

    The band of a bin holds the accuracies that a calibrated model would show in 90 % of cases.

    Args:
        answers: name of a model -> its `Predictions`, or anything with `confidence` and `correct`,
            `[n]` each, over the same questions.
        task: what the subtitle calls the questions.
        bins: equal-width bins of confidence.

    Returns:
        A Matplotlib figure; a notebook shows it, and `figure.savefig(...)` keeps it.

    Raises:
        ValueError: no answers, or confidences outside of [0, 1].
    """
    if not answers:
        raise ValueError("answers are empty; expected at least one model")
    chosen = looks(answers)
    panels = []
    for name, found in answers.items():
        confidence, correct = check_confidence(found.confidence, found.correct)
        numbers = summarize_confidence(confidence, correct, bins=bins, resamples=200)
        panels.append(reliability_panel(name, chosen[name], confidence, correct, numbers, bins))
    return reliability_figure(panels, task, len(confidence))


def reliability_panel(
    key: str,
    look: Look,
    confidence: np.ndarray,
    correct: np.ndarray,
    numbers: Mapping[str, Any],
    bins: int,
    clusters: np.ndarray | None = None,
) -> Answers:
    """Return the panel of one model: confidence `[n]`, correct `[n]`, and its `numbers`."""
    correct = np.asarray(correct, bool)

    def mean(rows: np.ndarray) -> float | None:
        return float(confidence[rows].mean()) if rows.any() else None

    return Answers(
        name=short_name(key),
        look=look,
        bins=reliability_bins(confidence, correct, bins=bins),
        band=ece_noise_floor(confidence, bins=bins, clusters=clusters).band,
        metrics=numbers,
        sure_right=mean(correct),
        sure_wrong=mean(~correct),
    )


TARGET = 0.9
"""Accuracy of the coverage plot's line; eval.json has the share answered at 90 %."""
BLOCKS = 12
"""Points of the known share: a single batch of 8 or 32 says little."""


def task_pictures(run: Run, task: str) -> list[Picture]:
    """Draw and save the pictures of a task; those of the first task have the plain names."""
    suffix = "" if task == run.tasks[0] else "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", task)
    results = results_of(run, task)
    n = results[run.methods[0].key]["n"]
    shown = _shown(run)
    style = looks(m.key for m in shown)
    results = {m.key: results[m.key] for m in shown}
    with project_style():
        panels = [_answers(m, task, style[m.key], run.bins) for m in shown]
        path = _place(run, f"reliability{suffix}")
        save(reliability_figure(panels, task, n), path)
        pictures = [
            Picture(
                path,
                reliability_text(results, task),
                "Bars: accuracy of the answers given with that confidence. A calibrated model's"
                " bars end on the dashed line, up to chance: within the grey band in 90 % of"
                " cases. Hatched: how far off they are. Below: how many questions.",
                f"predictions/{task}.jsonl",
            )
        ]
        path = _place(run, f"confidence{suffix}")
        save(histogram_figure(panels, task, n), path)
        means = {
            m.key: (panel.sure_right, panel.sure_wrong)
            for m, panel in zip(shown, panels, strict=True)
        }
        pictures.append(
            Picture(
                path,
                histogram_text(means, results, task),
                "Confidence that knows right from wrong puts the two apart: the right answers far"
                " to the right, the wrong ones far to the left (an AUROC near 1).",
                f"predictions/{task}.jsonl",
            )
        )
        path = _place(run, f"coverage{suffix}")
        save(
            coverage_figure([_coverage(m, task, style[m.key]) for m in shown], task, n, TARGET),
            path,
        )
        pictures.append(
            Picture(
                path,
                coverage_text(results, task),
                "What confidence is good for: answer only the questions above a cut-off. The share"
                " at 90 % accuracy is read off the same questions, so it flatters every method.",
                f"predictions/{task}.jsonl",
            )
        )
    return pictures


def _shown(run: Run) -> list[Method]:
    """The rows with panels and lines of their own: with every temperature they would be too many.

    That of SFT stays, which is the rival of all others. A run of one method shows both its rows.
    """
    few = len(run.methods) <= 2
    return [
        m
        for m in run.methods
        if few or m.key == TEMPERED_SFT or not (m.key in REFERENCES or is_tempered(m.key))
    ]


def training_pictures(run: Run) -> list[Picture]:
    """How it was trained, where that was logged."""
    # MC-dropout's training was followed without its passes: that would be another model.
    trained = [m for m in run.methods if m.key not in SAMPLED]
    style = looks(m.key for m in run.methods)
    pictures = []
    with project_style():
        logged = [(short_name(m.key), m.dynamics) for m in trained if m.dynamics]
        if logged:
            path = _place(run, "dynamics")
            save(dynamics_figure(logged, run.style_end), path)
            pictures.append(
                Picture(
                    path,
                    dynamics_text(logged),
                    "Known and unknown refer to the model before it was fine-tuned. The mechanism"
                    " to look for: accuracy (solid) levels off while confidence (dashed) goes on.",
                    "dynamics.jsonl",
                )
            )
        gates = {m.key: gate for m in trained if (gate := _gate(m, style[m.key])) is not None}
        if gates:
            last = max(line["step"] for m in trained for line in m.steps)
            path = _place(run, "threshold")
            save(gate_figure(list(gates.values()), last, run.style_end), path)
            pictures.append(
                Picture(
                    path,
                    gate_text(*_ends(gates)),
                    "The threshold is fitted on questions that are not trained on; the share is of"
                    " those that are, and grows as they are memorised."
                    + (" Plain fine-tuning logs both and uses neither." if "sft" in gates else ""),
                    "metrics.jsonl",
                )
            )
    return pictures


def _place(run: Run, name: str) -> Path:
    return run.folder / "plots" / f"{name}.png"


def _answers(method: Method, task: str, look: Look, bins: int) -> Answers:
    p = method.predictions[task]
    return reliability_panel(
        method.key, look, p.confidence, p.correct, method.metrics[task], bins, p.clusters
    )


def _coverage(method: Method, task: str, look: Look) -> Coverage:
    """The curve from 20 answers on (5 % of a small test set): with fewer it only jumps."""
    p = method.predictions[task]
    n = len(p.ids)
    curve = risk_coverage(p.confidence, p.correct)
    shown = curve.coverage * n >= min(20, n // 20)
    return Coverage(
        name=short_name(method.key),
        look=look,
        share=curve.coverage[shown],
        accuracy=1 - curve.risk[shown],
        at_target=method.metrics[task]["coverage_at_90"],
    )


def _gate(method: Method, look: Look) -> Gate | None:
    """None where no threshold or no update of fine-tuning was logged."""
    fits = [line for line in method.steps if line.get("phase") == "refit"]
    updates = [line for line in method.steps if line.get("phase") == "finetune"]
    if not fits or not updates:
        return None
    values: list[Any] = [(line["step"], line["threshold"]) for line in fits]
    logged = np.array([(line["step"], line["known_fraction"]) for line in updates], float)
    blocks = np.array_split(logged, min(BLOCKS, len(logged)))
    return Gate(
        name=short_name(method.key),
        look=look,
        threshold=np.array(values, float),  # None becomes NaN
        known=np.array([block.mean(0) for block in blocks]),
    )


def _ends(
    gates: Mapping[str, Gate],
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    def ends(values: np.ndarray) -> tuple[float, float]:
        return float(values[0, 1]), float(values[-1, 1])

    thresholds = {key: ends(gate.threshold) for key, gate in gates.items()}
    return thresholds, {key: ends(gate.known) for key, gate in gates.items()}
