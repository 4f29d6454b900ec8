"""Files of a suite: results.jsonl, .csv and .md, plots/ with its figures, and report.html."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cogcalib_jax.files import whole_file, write_whole
from cogcalib_jax.report import canvas
from cogcalib_jax.report.html import Making, Picture, Section, page
from cogcalib_jax.report.load_run import RunResults
from cogcalib_jax.report.plots import COLUMNS, save_picture
from cogcalib_jax.report.report import commands_of, plain
from cogcalib_jax.report.tables import Metrics, Table
from cogcalib_jax.report.text import Look, count, dynamics_text, looks, percent, short_name
from cogcalib_jax.report.training_plots import dynamics_figure
from cogcalib_jax.studies.suite_results import (
    Condition,
    Study,
    StudyFindings,
    followed_methods,
    methods_of,
    seed_means,
    seeds_of,
    study_findings,
    study_markdown,
    tidy_rows,
)

RESULTS = "results.jsonl"
SUITE = "the study itself"
FLOOR = "floor: a calibrated model's ECE, up to its 95th percentile"
DASHED = (0, (4, 2))
SHARE = "composition.known_share"
NOT_OF_A_CURVE = (SHARE, "compare")
"""settings that conditions on one curve may differ in"""


def write_results(study: Study) -> str:
    """Write all files of the study's finished runs. Return the Markdown."""
    rows = tidy_rows(study)
    with whole_file(study.folder / RESULTS) as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with whole_file(study.folder / "results.csv") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = study_findings(study)
    text = study_markdown(study, found)
    write_whole(study.folder / "results.md", text)
    write_page(study, found)
    return text


def write_page(study: Study, found: StudyFindings) -> None:
    """Write plots/ and report.html into the study's folder."""
    configs = {SUITE: study.configuration} | {
        f"{_place(study, run)}/config.yaml": run.configs["config.yaml"]
        for condition in study.conditions
        for run in condition.runs.values()
    }
    sections = [_task_section(study, found, task) for task in study.tasks]
    sections += [_condition_section(study, c, found) for c in study.conditions]
    runs = sum(len(condition.runs) for condition in study.conditions)
    size = f"{count(len(study.conditions), 'condition')}, {count(runs, 'run')}."
    first = next(iter(study.conditions[0].runs.values()))
    facts = {"preset": study.preset} | {
        name: plain(value)
        for name, value in first.provenance.items()
        if name not in ("command", "seed")
    }
    text = page(
        title=f"Study: {study.name}",
        lead=" ".join(filter(None, [study.question, size, study.missing])),
        sections=sections,
        making=Making((study.command,), facts, configs, {"Every run": _runs_table(study)}),
    )
    write_whole(study.folder / "report.html", text)


def _place(study: Study, run: RunResults) -> str:
    """A run's folder as seen from the page."""
    return run.folder.relative_to(study.folder).as_posix()


def _task_section(study: Study, found: StudyFindings, task: str) -> Section:
    tables = {}
    if task in found.side_by_side:
        tables = {"Conditions side by side": found.side_by_side[task], **found.across[task]}
    return Section(
        title=f"Conditions on {task}" if len(study.conditions) > 1 else f"Seeds on {task}",
        numbers=RESULTS,
        tables=tables,
        pictures=tuple(_task_pictures(study, task)),
    )


def _condition_section(study: Study, condition: Condition, everything: StudyFindings) -> Section:
    found = everything.conditions[condition.name]
    picture = _training_picture(study, condition)
    places = {seed: _place(study, run) for seed, run in condition.runs.items()}
    several = len(found) > 1
    return Section(
        title=f"Condition: {condition.name}",
        lead=f"Changed in {study.preset}: {', '.join(condition.settings) or 'nothing'}.",
        numbers="seed-S/METHOD/eval.json",
        place=f"{Path(next(iter(places.values()))).parent.as_posix()}/",
        links={f"Report of seed {s}": f"{place}/report.html" for s, place in places.items()},
        verdict=tuple(
            f"{one.task}: {line}" if several else line for one in found for line in one.verdict
        ),
        tables={
            f"{one.task}: {caption}" if several else caption: table
            for one in found
            for caption, table in one.tables.items()
        }
        | everything.training[condition.name],
        pictures=() if picture is None else (picture,),
    )


def _runs_table(study: Study) -> Table:
    """Return a table of the commands that repeat each run without the suite."""
    rows = tuple(
        (f"{condition.name}, seed {seed}", f"{_place(study, run)}/config.yaml", command)
        for condition in study.conditions
        for seed, run in condition.runs.items()
        for command in commands_of(run)
    )
    return Table(("run", "configuration", "command"), rows, "")


def _task_pictures(study: Study, task: str) -> list[Picture]:
    """Draw and save the pictures of a task; those of the first task have the plain names."""
    suffix = "" if task == study.tasks[0] else "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", task)
    pictures = []
    with canvas.project_style():
        for settings, shares in _curves_of(study.conditions).items():
            curves = _curves(shares, task)
            if not curves:
                continue
            number = f"_{len(pictures) + 1}" if pictures else ""
            also = f" Besides the share, all have {', '.join(settings)}." if settings else ""
            pictures.append(
                save_picture(
                    study.folder,
                    f"ratio{suffix}{number}",
                    ratio_figure(curves),
                    "Does known data make the model overconfident?",
                    ratio_text(curves, task),
                    "Fine-tuned on equally many questions. Dots: seeds; lines: means. Above: ECE,"
                    " and in grey the ECE of a calibrated model by chance. Below: the model is too"
                    f" confident if confidence (dashed) is above accuracy (solid).{also}",
                    RESULTS,
                )
            )
        rows = _dots(study, task)
        pictures.append(
            save_picture(
                study.folder,
                f"seeds{suffix}",
                dots_figure(rows),
                "Every seed: ECE, NLL and accuracy",
                dots_text(rows, task),
                "Dots: seeds; bars: their mean. An ECE within the grey band cannot be told from"
                " that of a calibrated model. The spread of the seeds on a line is the noise of"
                " training and of questions.",
                RESULTS,
            )
        )
    return pictures


def _training_picture(study: Study, condition: Condition) -> Picture | None:
    """Draw means of accuracy and confidence over training; None if nothing was followed."""
    drawn = [
        (short_name(key), means)
        for key, seeds in followed_methods(condition.runs, study.followed).items()
        if (means := seed_means(seeds)) is not None
    ]
    if not drawn:
        return None
    number = [c.name for c in study.conditions].index(condition.name)
    with canvas.project_style():
        return save_picture(
            study.folder,
            f"training{f'_{number + 1}' if number else ''}",
            dynamics_figure(drawn, next(iter(condition.runs.values())).style_end),
            "Accuracy and confidence over training",
            f"Means of {count(len(condition.runs), 'seed')}. {dynamics_text(drawn)}",
            "Known and unknown refer to the model before it was fine-tuned. Lines: means of seeds;"
            " bands: from the lowest seed to the highest.",
            "seed-S/METHOD/dynamics.jsonl",
        )


Shares = list[tuple[float, Condition]]
"""Known share and condition of the points on one curve."""


def _curves_of(conditions: Sequence[Condition]) -> dict[tuple[str, ...], Shares]:
    """Return settings -> the conditions that differ in nothing but the known share."""
    groups: dict[tuple[str, ...], Shares] = {}
    for condition in conditions:
        config = yaml.safe_load(next(iter(condition.runs.values())).configs["config.yaml"])
        share = (config.get("composition") or {}).get("known_share")
        if share not in (None, "natural"):
            others = [s for s in condition.settings if s.partition("=")[0] not in NOT_OF_A_CURVE]
            groups.setdefault(tuple(others), []).append((float(share), condition))
    return {settings: group for settings, group in groups.items() if len(group) > 1}


def _curves(shares: Shares, task: str) -> list[RatioCurve]:
    """A curve for every method that all conditions have."""
    methods = methods_of([condition for _, condition in shares])
    style = looks(methods)
    curves = []
    for method in methods:
        runs = [(share, run) for share, c in shares for run in seeds_of(c, method, task)]
        if len({share for share, _ in runs}) == len(shares):
            found, metrics = zip(*runs, strict=True)
            curves.append(RatioCurve(short_name(method), style[method], np.array(found), metrics))
    return curves


def _dots(study: Study, task: str) -> list[SeedDots]:
    methods = methods_of(study.conditions)
    style = looks(methods)
    return [
        SeedDots(short_name(method), condition.name, style[method], seeds)
        for method in methods
        for condition in study.conditions
        if (seeds := seeds_of(condition, method, task))
    ]


@dataclass(frozen=True)
class SeedDots:
    """One method under one condition: a dot for each seed."""

    method: str
    condition: str
    look: Look
    runs: Sequence[Metrics]
    """[seeds]"""


@dataclass(frozen=True)
class RatioCurve:
    """One method over the share of known rows among its fine-tuning rows: a dot for each run."""

    name: str
    look: Look
    share: np.ndarray
    """[runs] share of known rows"""
    runs: Sequence[Metrics]


def numbers(runs: Sequence[Metrics], name: str) -> np.ndarray:
    """Return one number of eval.json, or `mean` or `p95` of its ECE's noise floor, `[runs]`."""
    floor = name in ("mean", "p95")
    return np.array([(run["ece_noise_floor"] if floor else run)[name] for run in runs])


def dots_figure(rows: Sequence[SeedDots]) -> Figure:
    """Draw a line for each method and condition: a dot for each seed, a bar at their mean."""
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
    top, first = 0.25, line * (0.8 if several else 0.5)
    tall = height + line / 2 - first
    figure = canvas.new_figure(10.85, top + tall + 1.05)
    panels = {"ece": "ECE", "nll": "NLL (nats)", "accuracy": "accuracy (%)"}
    for column, (name, title) in enumerate(panels.items()):
        axes = canvas.place_axes(figure, left + across * column, top, across - 0.25, tall)
        for row, place in zip(rows, places, strict=True):
            dots = numbers(row.runs, name)
            if column == 0:
                floor = numbers(row.runs, "p95").mean()
                axes.barh(place, floor, line * 0.95, color=canvas.BAND, zorder=1)
            axes.plot(dots, np.full(len(dots), place), "o", color=row.look.color, markersize=5,
                      alpha=0.65, markeredgewidth=0, zorder=3)  # fmt: skip
            axes.plot(dots.mean(), place, "|", color=canvas.INK, markersize=12, markeredgewidth=1.8,
                      zorder=4)  # fmt: skip
        axes.set_ylim(first + tall, first)  # inches downwards
        axes.set_yticks(places, labels if column == 0 else [""] * len(labels))
        if column == 0:
            axes.set_xlim(left=0)
        if name == "accuracy":
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(title)
        canvas.light_grid(axes)
    if several:
        for name in names:
            place = next(p for p, row in zip(places, rows, strict=True) if row.method == name)
            above = top + place - first - line - 0.03
            figure.text(0.12 / 10.85, 1 - above / figure.get_figheight(), name,
                        fontweight="bold", va="center")  # fmt: skip
    figure.legend(handles=[Patch(facecolor=canvas.BAND, label=FLOOR)], loc="lower center")
    return figure


def dots_text(rows: Sequence[SeedDots], task: str) -> str:
    """Return the picture's numbers in words: a sentence for each line."""
    parts = []
    for row in rows:
        ece, floor, nll, accuracy = (
            numbers(row.runs, name).mean() for name in ("ece", "p95", "nll", "accuracy")
        )
        parts.append(
            f"{row.method}, {row.condition}: ECE {ece:.3f} (95th percentile of the floor"
            f" {floor:.3f}), NLL {nll:.3f} nats, accuracy {percent(accuracy)},"
            f" {count(len(row.runs), 'seed')}."
        )
    opening = f"ECE, NLL and accuracy on {task} of every seed; in numbers, the means."
    return " ".join([opening, *parts])


def ratio_figure(curves: Sequence[RatioCurve]) -> Figure:
    """Draw ECE, and accuracy beside mean confidence, over the known share: a column a method."""
    columns = COLUMNS.get(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    across, height = {1: 6.3, 2: 5.0, 3: 3.45}[columns], 2.05
    down = 2 * height + 1.5
    figure = canvas.new_figure(max(across * columns + 0.6, 7.2), down * rows + 0.25)
    highest = 1.1 * max(numbers(c.runs, name).max() for c in curves for name in ("ece", "p95"))
    for i, curve in enumerate(curves):
        row, column = divmod(i, columns)
        left, top = 0.8 + across * column, 0.4 + down * row
        upper = canvas.place_axes(figure, left, top, across - 0.5, height)
        lower = canvas.place_axes(figure, left, top + height + 0.25, across - 0.5, height)
        _ratio_panels(upper, lower, curve, highest)
        if column == 0:
            upper.set_ylabel("ECE")
            lower.set_ylabel("accuracy, confidence (%)")
    dot = {"color": canvas.INK, "marker": "o", "markersize": 4}
    handles = [
        Line2D([], [], label="ECE, accuracy", **dot),
        Line2D([], [], label="mean confidence", markerfacecolor="white", linestyle=DASHED, **dot),
        Patch(facecolor=canvas.BAND, label=FLOOR),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3 if columns > 1 else 2)
    return figure


def _ratio_panels(upper: Axes, lower: Axes, curve: RatioCurve, highest: float) -> None:
    shares = np.unique(curve.share)

    def means(name: str) -> np.ndarray:
        values = numbers(curve.runs, name)
        return np.array([values[curve.share == share].mean() for share in shares])

    upper.fill_between(shares, means("p95"), color=canvas.BAND, linewidth=0, zorder=1)
    upper.plot(shares, means("mean"), color=canvas.MUTED, linewidth=1, zorder=2)
    lines = (
        (upper, "ece", "-", curve.look.color),
        (lower, "accuracy", "-", curve.look.color),
        (lower, "confidence", DASHED, "white"),
    )
    for axes, name, style, inside in lines:
        axes.plot(shares, means(name), color=curve.look.color, linewidth=2, linestyle=style,
                  zorder=3)  # fmt: skip
        dots = numbers(curve.runs, name)
        axes.plot(curve.share, dots, "o", markersize=4.5, markerfacecolor=inside,
                  markeredgecolor=curve.look.color, alpha=0.8, zorder=4)  # fmt: skip
    lower.fill_between(shares, means("accuracy"), means("confidence"),
                       color=curve.look.color, alpha=0.12, linewidth=0)  # fmt: skip
    upper.set_title(curve.name, fontweight="bold")
    upper.set_ylim(0, highest)
    upper.tick_params(labelbottom=False)
    lower.set_ylim(0, 1)
    canvas.percent_axis(lower.yaxis)
    lower.set_xlabel("known (% of the fine-tuning questions)")
    for axes in (upper, lower):
        axes.set_xlim(shares[0] - 0.04, shares[-1] + 0.04)
        axes.set_xticks(shares)
        canvas.percent_axis(axes.xaxis)
        canvas.light_grid(axes)


def ratio_text(curves: Sequence[RatioCurve], task: str) -> str:
    """Return the curves' numbers in words: a sentence for each method and known share."""
    parts = []
    for curve in curves:
        for share in np.unique(curve.share):
            ece, floor, confidence, accuracy = (
                numbers(curve.runs, name)[curve.share == share].mean()
                for name in ("ece", "mean", "confidence", "accuracy")
            )
            parts.append(
                f"{curve.name}, {100 * share:.0f} % known: ECE {ece:.3f} (floor {floor:.3f}), mean"
                f" confidence {percent(confidence)}, accuracy {percent(accuracy)}."
            )
    opening = f"ECE, mean confidence and accuracy on {task} over the known share; means of seeds."
    return " ".join([opening, *parts])
