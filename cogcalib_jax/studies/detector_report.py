"""Files of the detector study: results.jsonl, results.md with its table, and plots/.

They are made from the files of its seeds: labels of the questions, and the gate's NLL of them at
every validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cogcalib_jax import metrics
from cogcalib_jax.files import write_whole
from cogcalib_jax.report import canvas
from cogcalib_jax.report.tables import as_markdown
from cogcalib_jax.report.text import short_name
from cogcalib_jax.report.training_plots import KNOWN as KNOWN_COLOR
from cogcalib_jax.report.training_plots import UNKNOWN as UNKNOWN_COLOR
from cogcalib_jax.report.training_plots import steps_axis, style_patch
from cogcalib_jax.studies.detector_results import (
    COURSE,
    DATA_WORDS,
    EXPOSURES,
    FORM,
    NOW,
    NUMBERS,
    SLICK,
    START,
    TARGET_WORDS,
    TRAINED,
    Seeds,
    Watched,
    auroc_of,
    auroc_table,
    course_table,
    exposures_stated,
    main_target,
    pairs_of,
    read_watched,
)

RESULTS = "results.jsonl"
GRID = np.linspace(0, 1, 201)
"""false positive rates at which the seeds' curves are averaged"""
TIMES = (("at the start", "#56B4E9"), ("at the end", "#7A1E5C"))
DASHED = (0, (4, 2))
DOTTED = (0, (1, 1.5))
KINDS = (("#7A1E5C", "-"), ("#009E73", DASHED))
"""colour and line of the questions trained on, and of the others"""
TITLE = "NLL as a detector of knowledge"
NOT_STATED = (
    " The rows do not record how often the base read a fact, as only the world's do: nothing is"
    " compared with exposures, and the threshold's rates are against right answers at the start{}."
)


def write_results(
    folder: Path,
    command: str,
    done: Mapping[int, Path],
    methods: Sequence[str],
    out: Path | None,
) -> str:
    """Write results.jsonl, results.md and plots/ of the finished seeds. Return the text.

    Args:
        folder: the place of these files.
        command: the command that made the results.
        done: seed -> its folder.
        methods: keys of the losses that were watched.
        out: a file for a copy of the text without its pictures.
    """
    numbers = "".join((place / NUMBERS).read_text(encoding="utf-8") for place in done.values())
    write_whole(folder / RESULTS, numbers)
    text = pictured = ""
    for method in methods:
        seeds = {seed: read_watched(place, method) for seed, place in done.items()}
        if not text:
            stated = exposures_stated(seeds)
            form = "" if main_target(seeds) == START else ", in the form of `known_by`"
            lead = f"Seeds {', '.join(map(str, done))}.{'' if stated else NOT_STATED.format(form)}"
            text = pictured = f"# {TITLE}\n\n    {command}\n\n{lead}\n"
        section = f"\n## {short_name(method)}\n\n{as_markdown(auroc_table(seeds))}\n"
        course = course_table(seeds)
        if course is not None:
            section += f"\n### {COURSE}\n\n{as_markdown(course)}\n"
        text += section
        pictured += section + _pictures(folder, method, seeds)
    write_whole(folder / "results.md", pictured)
    if out is not None:
        write_whole(out, text)
    return text


def _pictures(folder: Path, method: str, seeds: Seeds) -> str:
    """Draw and save the method's plots. Return the Markdown that shows them."""
    name = short_name(method)
    main = main_target(seeds)
    slick = all(one.slick is not None for kinds in seeds.values() for one in kinds.values())
    targets = (main, SLICK if slick else FORM if main == EXPOSURES else START)
    known = "stated often" if main == EXPOSURES else main
    shown = ""
    with canvas.project_style():
        curves = roc_figure(seeds, targets, name)
        if curves is not None:
            canvas.save(curves, folder / "plots" / f"roc_{method}.png")
            shown += f"\n![ROC curves of -NLL, {name}](plots/roc_{method}.png)\n"
        course = auroc_figure(seeds, (*targets, NOW), name, known)
        canvas.save(course, folder / "plots" / f"auroc_{method}.png")
    alt = f"AUROC of -NLL and share called known over updates, {name}"
    return f"{shown}\n![{alt}](plots/auroc_{method}.png)\n"


def roc_figure(seeds: Seeds, targets: Sequence[str], method: str) -> Figure | None:
    """Draw ROC curves in two columns: the questions trained on, and the others.

    Pairs of target and questions are left out if their AUROC is undefined in a seed; None if all
    are.
    """
    panels = [
        (f"{TARGET_WORDS[target]}, {words}", data, both)
        for target in targets
        for data, words in DATA_WORDS.items()
        if all(both := [pairs_of(seeds, data, target, at) for at in (0, -1)])
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    side, gap = 3.25, 0.95
    figure = canvas.new_figure(2 * (side + gap) + 0.3, rows * (side + gap) + 0.85)
    canvas.headline(
        figure,
        f"{method}: NLL as a detector of knowledge, before and after fine-tuning",
        "Lines: mean of seeds; bands: all of them. Dots: the threshold fitted at that moment.",
    )
    for i, (title, data, both) in enumerate(panels):
        row, column = divmod(i, 2)
        axes = canvas.place_axes(
            figure, 0.75 + column * (side + gap), 1.15 + row * (side + gap), side, side
        )
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linewidth=0.8, linestyle=":")
        for at, pairs, (when, color) in zip((0, -1), both, TIMES, strict=True):
            rocs = [metrics.roc(*pair) for pair in pairs]
            tpr = np.array([np.interp(GRID, roc.fpr, roc.tpr) for roc in rocs])
            axes.fill_between(GRID, tpr.min(0), tpr.max(0), color=color, alpha=0.22, linewidth=0)
            label = f"{when}: AUROC {np.mean([auroc_of(pair) for pair in pairs]):.3f}"
            axes.plot(GRID, tpr.mean(0), color=color, linewidth=2, label=label)
            rates = []
            for kinds, (_, truth) in zip(seeds.values(), pairs, strict=True):
                called = kinds[data].moments[at].called
                rates.append((called[~truth].mean(), called[truth].mean()))
            point = np.mean(rates, 0)
            axes.plot(*point, "o", color=color, markersize=8, markeredgecolor="white", zorder=4)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_title(title, fontweight="bold")
        axes.set_xlabel("unknown called known (%)")
        axes.set_ylabel("known called known (%)")
        axes.legend(loc="lower right")
        for axis in (axes.xaxis, axes.yaxis):
            canvas.percent_axis(axis)
        canvas.light_grid(axes)
    return figure


def auroc_figure(seeds: Seeds, targets: Sequence[str], method: str, known: str) -> Figure:
    """Draw AUROC over updates, a panel for each target; below, the share called known."""
    groups = (
        (KNOWN_COLOR, "-", f"of the known ({known})"),
        (UNKNOWN_COLOR, "-", "of the unknown"),
        (canvas.INK, DOTTED, "of all"),
    )
    across, height = 3.55, 2.6
    figure = canvas.new_figure(across * len(targets) + 0.75, 2 * height + 2.3)
    canvas.headline(
        figure,
        f"{method}: NLL as a detector of knowledge during fine-tuning",
        "Lines: mean of seeds; bands: all of them. Higher AUROC is better; 0.5 is chance.",
    )
    watched = {data: [kinds[data] for kinds in seeds.values()] for data in DATA_WORDS}
    steps = {
        data: np.array([moment.step for moment in one[0].moments]) for data, one in watched.items()
    }
    areas = {
        (target, data): _areas(one, target) for target in targets for data, one in watched.items()
    }
    every = np.concatenate([area.ravel() for area in areas.values()])
    lowest = min(every[~np.isnan(every)], default=0.5)
    first = steps[TRAINED]
    for i, target in enumerate(targets):
        axes = canvas.place_axes(figure, 0.75 + across * i, 1.1, across - 0.55, height)
        for data, (color, line) in zip(watched, KINDS, strict=True):
            _with_band(axes, steps[data], areas[target, data], color, line)
        axes.set_ylim(min(0.5, np.floor(10 * lowest) / 10), 1.005)
        axes.set_title(TARGET_WORDS[target], fontweight="bold")
        if i == 0:
            axes.set_ylabel("AUROC of -NLL")
        steps_axis(axes, int(first[-1]), int(first[0]))
    for i, (data, words) in enumerate(DATA_WORDS.items()):
        axes = canvas.place_axes(
            figure, 0.75 + across * i, 1.85 + height, across - 0.55, height - 0.2
        )
        called = np.array([one.rates for one in watched[data]])  # [seeds, moments, 3]
        for k, (color, line, _) in enumerate(groups):
            _with_band(axes, steps[data], called[:, :, k], color, line)
        axes.set_ylim(0, 1.01)
        canvas.percent_axis(axes.yaxis)
        axes.set_title(f"Called known, {words}", fontweight="bold")
        if i == 0:
            axes.set_ylabel("called known (%)")
        axes.set_xlabel("update")
        steps_axis(axes, int(steps[data][-1]), int(steps[data][0]))
    kinds = [
        (*look, f"questions {words}")
        for look, words in zip(KINDS, DATA_WORDS.values(), strict=True)
    ]
    handles = [
        Line2D([], [], color=color, linestyle=line, linewidth=2, label=label)
        for color, line, label in (*kinds, *groups)
    ]
    width, tall = figure.get_size_inches()
    figure.legend(
        handles=[*handles, style_patch()],
        loc="upper left",
        bbox_to_anchor=((0.75 + across * len(watched)) / width, 1 - (1.95 + height) / tall),
        borderaxespad=0,
        labelspacing=0.8,
    )
    return figure


def _areas(watched: Sequence[Watched], target: str) -> np.ndarray:
    """Return AUROCs `[seeds, moments]`, NaN if undefined."""
    pairs = [[one.target(target, moment) for moment in one.moments] for one in watched]
    # None becomes NaN.
    return np.array([[pair and auroc_of(pair) for pair in seed] for seed in pairs], float)


def _with_band(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, line: object) -> None:
    """Draw `[seeds, moments]` without the moments that are undefined in a seed."""
    defined = ~np.isnan(values).any(0)
    steps, values = steps[defined], values[:, defined]
    if values.size:
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
        axes.plot(steps, values.mean(0), color=color, linewidth=2, linestyle=line)
