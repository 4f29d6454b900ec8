"""Figures of answers: reliability, confidence of right and of wrong ones, and coverage."""

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
from cogcalib_jax.metrics.calibration import bin_index
from cogcalib_jax.metrics.checks import check_confidence
from cogcalib_jax.report import canvas
from cogcalib_jax.report.html import Picture
from cogcalib_jax.report.load_run import Method, RunResults
from cogcalib_jax.report.text import (
    REFERENCES,
    Look,
    coverage_text,
    histogram_text,
    is_tempered,
    looks,
    percent,
    reliability_text,
    short_name,
)
from cogcalib_jax.report.verdict import TEMPERED_SFT

RIGHT = "#009E73"
WRONG = "#B35C94"
TARGET = 0.9
"""Accuracy of the coverage plot's line; eval.json has the share answered at 90 %."""
COLUMNS = {1: 1, 2: 2, 4: 2}
"""panels beside each other by their number, if not 3"""
FEWEST = 20
"""answers below which an accuracy is not drawn: it only jumps"""
SMALL_BIN = 10
"""questions below which a bin is faded"""


@dataclass(frozen=True)
class Answers:
    """The answers of one method: a panel of a figure."""

    name: str
    look: Look
    bins: ReliabilityBins
    questions: np.ndarray
    """[bins] different questions"""
    band: np.ndarray
    """[bins, 2] accuracies between which a calibrated model's would lie in 90 % of cases"""
    metrics: Mapping[str, Any]
    """its numbers in eval.json"""
    sure_right: float | None
    """mean confidence of the right answers, None without any"""
    sure_wrong: float | None
    """mean confidence of the wrong answers, None without any"""

    @property
    def right(self) -> np.ndarray:
        """[bins] right answers."""
        return np.rint(np.nan_to_num(self.bins.accuracy) * self.bins.count)


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

    A point is a bin of confidence, with the 95 % Wilson interval of its accuracy. The grey band
    holds the accuracies that a calibrated model would show in 90 % of cases.

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
        panels.append(_answers(name, chosen[name], confidence, correct, numbers, bins))
    figure = reliability_figure(
        panels, f"Accuracy at each level of confidence on {len(confidence):,} questions of {task}."
    )
    figure.set_facecolor("white")
    return figure


def reliability_figure(panels: Sequence[Answers], subtitle: str = "") -> Figure:
    """Draw accuracy per confidence bin against the diagonal, a panel for each method; with a
    `subtitle` the figure has it below a headline."""
    head = 0.75 if subtitle else 0.0
    grid = _Grid(len(panels), height=2.9, below=1.9, head=head, foot=0.85)
    if subtitle:
        canvas.headline(grid.figure, "Does confidence mean what it says?", subtitle)
    most = max(int(p.bins.count.max()) for p in panels)
    for i, panel in enumerate(panels):
        axes = grid.axes(i)
        counts = grid.axes(i, offset=grid.height + 0.1, height=0.55)
        _reliability_panel(axes, panel)
        _counts_panel(counts, panel, most)
        if i % grid.columns == 0:
            axes.set_ylabel("accuracy (%)")
            counts.set_ylabel("n")
    dot: dict[str, Any] = {"color": canvas.MUTED, "marker": "o", "linestyle": ""}
    grid.legend(
        [
            Line2D([], [], label="accuracy of a bin, 95 % interval", **dot),
            Line2D([], [], alpha=0.35, label=f"fewer than {SMALL_BIN} questions", **dot),
            Patch(facecolor=canvas.BAND, label="a calibrated model, 90 % range"),
        ]
    )
    return grid.figure


class _Grid:
    """Equal panels in rows; an even number of rows and columns if that leaves no hole."""

    def __init__(self, panels: int, *, height: float, below: float, head: float, foot: float):
        self.panels, self.height, self._head = panels, height, head
        self.columns = COLUMNS.get(panels, 3)
        self._rows = math.ceil(panels / self.columns)
        self._across = {1: 6.3, 2: 5.0, 3: 3.45}[self.columns]
        self._down = height + below
        width = self._across * self.columns + 0.5
        foot = 0.35 if panels % self.columns else foot
        self.figure = canvas.new_figure(width, head + self._down * self._rows + foot)

    def axes(self, i: int, *, offset: float = 0.0, height: float | None = None) -> Axes:
        """Place the axes of panel `i`, `offset` inches below its top."""
        row, column = divmod(i, self.columns)
        left, top = 0.62 + self._across * column, self._head + 0.85 + self._down * row + offset
        return canvas.place_axes(self.figure, left, top, self._across - 0.45, height or self.height)

    def legend(self, handles: Sequence[Any]) -> None:
        """Place the legend in the hole of the last row, or else below all panels."""
        if used := self.panels % self.columns:
            top = self._head + 0.85 + self._down * (self._rows - 1)
            canvas.legend_beside(self.figure, handles, 0.62 + self._across * used, top)
        else:
            wide = 1 if self.columns == 1 else len(handles)
            self.figure.legend(handles=handles, loc="lower center", ncols=wide, columnspacing=1.6)


def wilson(successes: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % Wilson interval of `successes` out of `n`, elementwise."""
    z, share = 1.96, successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def _reliability_panel(axes: Axes, panel: Answers) -> None:
    bins, color = panel.bins, panel.look.color
    for chosen, alpha in ((panel.questions >= SMALL_BIN, 1.0), (panel.questions < SMALL_BIN, 0.35)):
        filled = np.flatnonzero(chosen & (bins.count > 0))
        x, y = bins.confidence[filled], bins.accuracy[filled]
        if alpha == 1:
            left, width = bins.edges[filled], np.diff(bins.edges)[filled]
            low, high = panel.band[filled].T
            axes.bar(left, high - low, width, bottom=low, align="edge", color=canvas.BAND, zorder=2)
            n = panel.questions[filled]
            axes.vlines(x, *wilson(y * n, n), color=color, linewidth=1.6, zorder=4)
        size = 14 + 110 * bins.count[filled] / bins.count.max()
        axes.scatter(x, y, size, color=color, alpha=alpha, zorder=5, linewidths=0, clip_on=False)
    axes.plot([0, 1], [0, 1], color=canvas.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    canvas.percent_axis(axes.yaxis)
    axes.tick_params(labelbottom=False)
    canvas.light_grid(axes)
    m = panel.metrics
    floor = m["ece_noise_floor"]
    _panel_title(
        axes,
        panel.name,
        f"{percent(m['confidence'])} sure, {percent(m['accuracy'])} right\n"
        f"ECE {m['ece']:.3f} (noise floor {floor['mean']:.3f}, 95 %: {floor['p95']:.3f})",
    )


def _counts_panel(axes: Axes, panel: Answers, most: int) -> None:
    width = np.diff(panel.bins.edges)
    axes.bar(panel.bins.edges[:-1], panel.bins.count, width, align="edge", color="#8A9099")
    axes.set(xlim=(0, 1), ylim=(0, most * 1.08))
    canvas.percent_axis(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    canvas.light_grid(axes)
    axes.set_xlabel("confidence (%)")


def histogram_figure(panels: Sequence[Answers]) -> Figure:
    """Draw the number of right answers upwards and of wrong ones downwards, by confidence."""
    grid = _Grid(len(panels), height=1.85, below=1.35, head=0.0, foot=0.5)
    up = max(float(p.right.max()) for p in panels) * 1.08 + 0.5
    down_to = max(float((p.bins.count - p.right).max()) for p in panels) * 1.08 + 0.5
    for i, panel in enumerate(panels):
        axes = grid.axes(i)
        left, width = panel.bins.edges[:-1], np.diff(panel.bins.edges)
        axes.bar(left, panel.right, width, align="edge", color=RIGHT, zorder=3)
        wrong = panel.right - panel.bins.count
        axes.bar(left, wrong, width, align="edge", color=WRONG, zorder=3)
        axes.axhline(0, color=canvas.INK, linewidth=1, zorder=4)
        axes.set(xlim=(0, 1), ylim=(-down_to, up), xlabel="confidence (%)")
        canvas.percent_axis(axes.xaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
        canvas.light_grid(axes)
        auroc = panel.metrics["auroc"]
        _panel_title(
            axes,
            panel.name,
            f"right: {_share(panel.sure_right)} sure; wrong: {_share(panel.sure_wrong)} sure\n"
            f"AUROC {'n/a' if auroc is None else f'{auroc:.3f}'}",
        )
        if i % grid.columns == 0:
            axes.set_ylabel("questions")
    grid.legend(
        [
            Patch(facecolor=RIGHT, label="right answers (upwards)"),
            Patch(facecolor=WRONG, label="wrong answers (downwards)"),
        ]
    )
    return grid.figure


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)


def _panel_title(axes: Axes, name: str, below: str) -> None:
    """Write the name, and two lines of numbers between it and the axes."""
    axes.set_title(name, fontweight="bold", pad=34)
    height = axes.get_position().height * axes.figure.get_figheight()
    axes.text(0, 1 + 0.09 / height, below, transform=axes.transAxes, fontsize=9, color=canvas.MUTED,
              va="bottom", linespacing=1.35)  # fmt: skip


def coverage_figure(methods: Sequence[Method], task: str, target: float) -> Figure:
    """Draw the accuracy of the answers given if the least confident questions stay unanswered."""
    figure = canvas.new_figure(10.85, 4.7)
    axes = canvas.place_axes(figure, 0.75, 0.2, 6.7, 3.9)
    handles: list[Any] = []
    lowest = target - 0.1
    for method, look in zip(methods, looks(m.key for m in methods).values(), strict=True):
        p, at_target = method.predictions[task], method.metrics[task]["coverage_at_90"]
        curve, n = risk_coverage(p.confidence, p.correct), len(p.ids)
        shown = curve.coverage * n >= FEWEST
        share, accuracy = curve.coverage[shown], 1 - curve.risk[shown]
        lowest = min([lowest, *accuracy])
        axes.plot(share, accuracy, linewidth=2, **look.style)
        # Repeats of a question count as one.
        answered = np.maximum(share * p.questions, 1)
        ends = wilson(accuracy * answered, answered)
        axes.fill_between(share, *ends, color=look.color, linewidth=0,
                          alpha=min(0.1, 0.3 / len(methods)))  # fmt: skip
        few = 0 < at_target * n < FEWEST
        at = f"fewer than {FEWEST} questions" if few else percent(at_target)
        label = f"{short_name(method.key)}: {at}"
        handles.append(Line2D([], [], linewidth=2.2, label=label, **look.style))
    axes.axhline(target, color=canvas.INK, linewidth=1)
    axes.text(0.99, target + 0.006, f"{target * 100:.0f} % accuracy", va="bottom", ha="right",
              color=canvas.INK, fontsize=9)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(math.floor(lowest * 10) / 10, 1.005))
    canvas.percent_axis(axes.xaxis)
    canvas.percent_axis(axes.yaxis)
    axes.set_xlabel("share of questions answered (%)")
    axes.set_ylabel("accuracy of the answers given (%)")
    canvas.light_grid(axes)
    title = f"Share answered at {target * 100:.0f} % accuracy"
    top = 1 - 0.2 / figure.get_figheight()
    figure.text(7.75 / figure.get_figwidth(), top, title, fontsize=9.5, fontweight="bold", va="top")
    canvas.legend_beside(figure, handles, 7.75, 0.48)
    return figure


def task_pictures(run: RunResults, task: str) -> list[Picture]:
    """Draw and save the figures of a task; those of the first task have the plain names."""
    suffix = "" if task == run.tasks[0] else "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", task)
    methods = _shown(run)
    style = looks(m.key for m in methods)
    results = {m.key: m.metrics[task] for m in methods}
    asked = {m.key: m.predictions[task] for m in methods}
    panels = [
        _answers(key, style[key], p.confidence, p.correct, results[key], run.bins, p.clusters)
        for key, p in asked.items()
    ]
    means = {m.key: (p.sure_right, p.sure_wrong) for m, p in zip(methods, panels, strict=True)}
    with canvas.project_style():
        return [
            save_picture(
                run.folder,
                f"reliability{suffix}",
                reliability_figure(panels),
                "Reliability: does confidence mean what it says?",
                reliability_text(results, task),
                "A calibrated model's points lie on the dashed line, up to chance: within the grey"
                " band in 90 % of cases. Points below the line are too sure. The size of a point"
                " and the bars at the bottom show how many questions a bin holds.",
                f"predictions/{task}.jsonl",
            ),
            save_picture(
                run.folder,
                f"confidence{suffix}",
                histogram_figure(panels),
                "Confidence of right and of wrong answers",
                histogram_text(means, results, task),
                "A confidence that tells right from wrong has the right answers far to the right"
                " and the wrong ones far to the left (an AUROC near 1).",
                f"predictions/{task}.jsonl",
            ),
            save_picture(
                run.folder,
                f"coverage{suffix}",
                coverage_figure(methods, task, TARGET),
                "Accuracy if the least confident questions stay unanswered",
                coverage_text(results, task),
                f"Curves begin at {FEWEST} answers; bands: 95 % Wilson intervals. The share at"
                " 90 % accuracy is read off the same questions, so it flatters every method.",
                f"predictions/{task}.jsonl",
            ),
        ]


def save_picture(
    folder: Path, name: str, figure: Figure, title: str, alt: str, caption: str, numbers: str
) -> Picture:
    """Save a figure in plots/ of a run's folder, and return it with its words."""
    path = folder / "plots" / f"{name}.png"
    canvas.save(figure, path)
    return Picture(path, alt, caption, numbers, title)


def _shown(run: RunResults) -> list[Method]:
    """Return the rows with panels and lines of their own; every temperature would be too many.

    That of SFT stays, with which all others are compared. A run of one method shows both its rows.
    """
    few = len(run.methods) <= 2
    return [
        m
        for m in run.methods
        if few or m.key == TEMPERED_SFT or not (m.key in REFERENCES or is_tempered(m.key))
    ]


def _answers(
    key: str,
    look: Look,
    confidence: np.ndarray,
    correct: np.ndarray,
    numbers: Mapping[str, Any],
    bins: int,
    clusters: np.ndarray | None = None,
) -> Answers:
    """Return the panel of one model: confidence `[n]`, correct `[n]`, clusters `[n]`."""
    correct = np.asarray(correct, bool)
    binned = reliability_bins(confidence, correct, bins=bins)
    questions = binned.count
    if clusters is not None:
        place = bin_index(confidence, bins)
        questions = np.array([len(np.unique(clusters[place == i])) for i in range(bins)])

    def mean(rows: np.ndarray) -> float | None:
        return float(confidence[rows].mean()) if rows.any() else None

    return Answers(
        name=short_name(key),
        look=look,
        bins=binned,
        questions=questions,
        band=ece_noise_floor(confidence, bins=bins, clusters=clusters).band,
        metrics=numbers,
        sure_right=mean(correct),
        sure_wrong=mean(~correct),
    )
