"""The frontier of a suite as tables and one picture: what was taught against all else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cogcalib_jax.files import whole_file, write_whole
from cogcalib_jax.metrics.significance import student_t
from cogcalib_jax.report import canvas
from cogcalib_jax.report.tables import Table, as_markdown, cell
from cogcalib_jax.report.text import count, looks
from cogcalib_jax.studies.frontier import (
    NUMBERS,
    OWN,
    POPULATIONS,
    RAW,
    RETAINED,
    TAUGHT,
    TEMPERED,
    UNSEEN,
    Row,
    frontier_rows,
    nondominated,
)
from cogcalib_jax.studies.suite_results import Study

TITLES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}
TITLES |= {"confidence": "mean\nconfidence"}
PERCENT = ("accuracy", "confidence")
LINES = ("-", "--", "-.", ":")
WORDS = {
    TAUGHT: "Taught facts, asked in other words",
    UNSEEN: "Unseen: the test questions",
    RETAINED: "Retained: test questions that the start knows (record of the corpus, or known_by)",
}
BLIND = (
    "This task has no second wording of what was taught, so there is no number for it; whatever was"
    " fitted or chosen used the calibration split alone and is blind to what was taught."
)
FITTED_ON = (
    "What is fitted or chosen uses calibration questions and taught facts in a third wording, each"
    " with equal weight."
)


def write_frontier(study: Study) -> str:
    """Write frontier.md, frontier.jsonl and plots/frontier.png; return the Markdown."""
    rows = frontier_rows(study)
    shown = [row for row in rows if row.path is None]
    taught = any(row.values(TAUGHT, "nll") for row in rows)
    parts = [f"# {study.name}: the frontier", *filter(None, [study.question, study.missing])]
    parts.append(FITTED_ON if taught else BLIND)
    parts += ["## One number a method", as_markdown(summary_table(shown))]
    for population in POPULATIONS:
        table = population_table(shown, population)
        if table is not None:
            parts += [f"## {WORDS[population]}", as_markdown(table)]
    paths = [row for row in rows if row.path is not None]
    if paths:
        parts += ["## Paths", as_markdown(summary_table(paths))]
    text = "\n\n".join(parts) + "\n"
    write_whole(study.folder / "frontier.md", text)
    with whole_file(study.folder / "frontier.jsonl") as file:
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in tidy(rows))
    if taught:
        with canvas.project_style():
            canvas.save(frontier_figure(rows), study.folder / "plots" / "frontier.png")
    return text


def tidy(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return one line for each row, seed and population."""
    return [
        {
            "method": row.name,
            "probabilities": row.how,
            "labels": row.labels,
            "path": row.path and row.path[0],
            "at": row.path and row.path[1],
            "seed": seed,
            "population": population,
            **numbers,
        }
        for row in rows
        for seed, found in row.seeds.items()
        for population, numbers in found.items()
    ]


def _cell(values: Sequence[float], percent: bool = False) -> str:
    return cell(values, percent) if values else "-"


def summary_table(rows: Sequence[Row]) -> Table:
    """Return a line a row: the number that was stated before looking, and what it is made of."""
    lines = [
        (
            row.name,
            row.how,
            _cell(row.score),
            _cell(row.values(TAUGHT, "accuracy"), percent=True),
            _cell(row.values(TAUGHT, "nll")),
            _cell(row.values(UNSEEN, "nll")),
            _cell(row.values(UNSEEN, "ece")),
            row.labels or "none",
        )
        for row in rows
    ]
    header = (
        "method",
        "probabilities",
        "NLL, mean of\ntaught and unseen",
        "taught:\nrecall",
        "taught:\nNLL",
        "unseen:\nNLL",
        "unseen:\nECE",
        "labels used by",
    )
    seeds = max(len(row.seeds) for row in rows)
    note = f"{count(seeds, 'seed')}; mean ± standard deviation. Over the options, in nats."
    short = [row.name for row in rows if len(row.seeds) < seeds and row.how != TEMPERED]
    if short:
        note += f" Fewer seeds: {', '.join(short)}."
    return Table(header, tuple(lines), note)


def population_table(rows: Sequence[Row], population: str) -> Table | None:
    """Return every number of one population; None if no row has it."""
    lines, sizes = [], []
    for row in rows:
        if row.values(population, "nll"):
            sizes += row.values(population, "n")
            cells = (_cell(row.values(population, n), n in PERCENT) for n in NUMBERS)
            lines.append((row.name, row.how, *cells))
    if not lines:
        return None
    header = ("method", "probabilities", *(TITLES[name] for name in NUMBERS))
    sizes = sorted({round(size) for size in sizes})
    n = f"{sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
    return Table(header, tuple(lines), f"n = {n} questions a seed.")


def frontier_figure(rows: Sequence[Row]) -> Figure:
    """Draw unseen NLL against taught NLL, and against taught recall.

    Hollow: raw. Filled: one temperature. A diamond: as fitted. Thin lines: paths, raw. Grey: what
    some other row or point is better than in both.
    """
    shown = [row for row in rows if row.path is None]
    names = list(dict.fromkeys(row.name for row in shown))
    keys = {row.name: row.key if row.name == _first(shown, row.key) else row.name for row in shown}
    style = looks([keys[name] for name in names])
    colors = {name: style[keys[name]].color for name in names}
    seeds = max(len(row.seeds) for row in rows)
    figure = canvas.new_figure(13.2, 6.0)
    canvas.headline(
        figure,
        "Learn the facts and stay honest",
        "Towards the lower left (left panel) and the upper left (right panel) is better."
        f" {'One seed.' if seeds < 2 else 'Means of seeds; bars: 95 % intervals.'}",
    )
    left = canvas.place_axes(figure, 0.75, 1.0, 4.4, 4.3)
    right = canvas.place_axes(figure, 5.95, 1.0, 4.4, 4.3)
    left.set_ylabel("taught facts: NLL (nats)")
    right.set_ylabel("taught facts: recall (%)")
    for axes, number, sign in ((left, "nll", 1.0), (right, "accuracy", -1.0)):
        _panel(axes, rows, number, sign, {n: (i + 1, colors[n]) for i, n in enumerate(names)})
        axes.set_xlabel("unseen questions: NLL (nats)")
        canvas.light_grid(axes)
    canvas.percent_axis(right.yaxis)
    dot = {"color": canvas.INK, "linestyle": "", "markersize": 6}
    handles = [
        Line2D([], [], marker="o", color=colors[n], linestyle="", label=f"{i + 1}  {n}")
        for i, n in enumerate(names)
    ]
    handles += [
        Line2D([], [], marker="o", markerfacecolor="white", label="raw", **dot),
        Line2D([], [], marker="o", label="with one temperature", **dot),
        Line2D([], [], marker="D", label="as fitted", **dot),
        *(
            Line2D([], [], color=canvas.MUTED, linewidth=1, linestyle=line, label=f"{name}, raw")
            for name, line in zip(_paths(_points(rows, "nll")), cycle(LINES), strict=False)
        ),
        Patch(facecolor=canvas.BAND, label="dominated"),
    ]
    canvas.legend_beside(figure, handles, 10.6, 1.0)
    return figure


def _first(rows: Sequence[Row], key: str) -> str:
    return next(row.name for row in rows if row.key == key)


def _panel(
    axes: Axes, rows: Sequence[Row], number: str, sign: float, looks_of: dict[str, tuple[int, str]]
) -> None:
    points = _points(rows, number)
    for row, x, y in points.values():
        if row.path is not None:
            continue
        place, color = looks_of[row.name]
        _bars(axes, x, y, color)
        marker = "D" if row.how == OWN else "o"
        face = "white" if row.how == RAW else color
        axes.plot(x.mean(), y.mean(), marker, markersize=6, markerfacecolor=face,
                  markeredgecolor=color, zorder=5)  # fmt: skip
        raw = points.get((row.name, RAW))
        if row.how == TEMPERED and raw is not None:
            axes.plot([raw[1].mean(), x.mean()], [raw[2].mean(), y.mean()], color=color,
                      linewidth=0.8, linestyle=":", zorder=3)  # fmt: skip
        if row.how != TEMPERED:
            axes.annotate(str(place), (x.mean(), y.mean()), xytext=(5, 4), color=color,
                          textcoords="offset points", fontsize=8.5, zorder=6)  # fmt: skip
    for line, style in zip(_paths(points).values(), cycle(LINES), strict=False):
        axes.plot(line[:, 0], line[:, 1], color=canvas.MUTED, linewidth=1, linestyle=style,
                  marker=".", markersize=3, zorder=2)  # fmt: skip
    _shade(axes, [(x.mean(), sign * y.mean()) for _, x, y in points.values()], sign)


Points = dict[tuple[str, str], tuple[Row, np.ndarray, np.ndarray]]
"""name and probabilities -> row, and its values `[seeds]` on both axes"""


def _points(rows: Sequence[Row], number: str) -> Points:
    return {
        (row.name, row.how): (row, np.array(row.values(UNSEEN, "nll")), np.array(y))
        for row in rows
        if (y := row.values(TAUGHT, number))
    }


def _bars(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    if len(x) > 1:
        ends = [student_t(values)[:2] for values in (x, y)]
        (low, high), (bottom, top) = ends
        axes.plot([low, high], [y.mean()] * 2, color=color, linewidth=0.9, alpha=0.5, zorder=4)
        axes.plot([x.mean()] * 2, [bottom, top], color=color, linewidth=0.9, alpha=0.5, zorder=4)


def _paths(points: Points) -> dict[str, np.ndarray]:
    """Return path -> its raw points `[n, 2]`, in the order of their places."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row, x, y in points.values():
        if row.path is not None and row.how == RAW:
            found.setdefault(row.path[0], []).append((row.path[1], x.mean(), y.mean()))
    return {name: np.array(sorted(line))[:, 1:] for name, line in found.items()}


def _shade(axes: Axes, points: Sequence[tuple[float, float]], sign: float) -> None:
    """Fill what a point dominates: more unseen NLL, and more taught NLL or less recall."""
    edge = nondominated(points)
    x_low, x_high = axes.get_xlim()
    y_low, y_high = axes.get_ylim()
    worst = y_high if sign > 0 else y_low
    xs = [edge[0][0]]
    ys = [edge[0][1] * sign]
    for (x, y), (_, before) in zip(edge[1:], edge, strict=False):
        xs += [x, x]
        ys += [before * sign, y * sign]
    xs.append(x_high)
    ys.append(ys[-1])
    axes.fill_between(xs, ys, worst, color=canvas.BAND, alpha=0.45, linewidth=0, zorder=0)
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))
