"""Files of a suite: results.jsonl, results.csv, results.md, plots/ and report.html."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from cogcalib_jax.files import whole_file, write_whole
from cogcalib_jax.report.canvas import project_style, save
from cogcalib_jax.report.html import Making, Picture, Section, Source, page
from cogcalib_jax.report.load_run import Run
from cogcalib_jax.report.names import looks, short_name
from cogcalib_jax.report.report import commands_of, plain
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import count, dynamics_text
from cogcalib_jax.report.training_plots import dynamics_figure
from cogcalib_jax.studies.plots import (
    RatioCurve,
    SeedDots,
    dots_figure,
    dots_text,
    ratio_figure,
    ratio_text,
)
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
    sections = [_task_section(study, found, task, tuple(configs)) for task in study.tasks]
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


def _place(study: Study, run: Run) -> str:
    """A run's folder as seen from the page."""
    return run.folder.relative_to(study.folder).as_posix()


def _task_section(study: Study, found: StudyFindings, task: str, configs: Sequence[str]) -> Section:
    tables = {}
    if task in found.side_by_side:
        tables = {"Conditions side by side": found.side_by_side[task], **found.across[task]}
    return Section(
        title=f"Conditions on {task}" if len(study.conditions) > 1 else f"Seeds on {task}",
        source=Source(RESULTS, "", (study.command,), tuple(configs)),
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
        source=Source(
            "seed-S/METHOD/eval.json",
            f"{Path(next(iter(places.values()))).parent.as_posix()}/",
            tuple(c for run in condition.runs.values() for c in commands_of(run)),
            tuple(f"{place}/config.yaml" for place in places.values()),
        ),
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
    folder = study.folder / "plots"
    pictures = []
    with project_style():
        for settings, shares in _curves_of(study.conditions).items():
            curves = _curves(shares, task)
            if not curves:
                continue
            number = f"_{len(pictures) + 1}" if pictures else ""
            path = folder / f"ratio{suffix}{number}.png"
            save(ratio_figure(curves, task), path)
            also = f" Besides the share, all have {', '.join(settings)}." if settings else ""
            caption = (
                "Above: ECE, and in grey the ECE of a calibrated model by chance. Below: the model"
                f" is too confident if confidence (dashed) is above accuracy (solid).{also}"
            )
            pictures.append(Picture(path, ratio_text(curves, task), caption, RESULTS))
        rows = _dots(study, task)
        path = folder / f"seeds{suffix}.png"
        save(dots_figure(rows, task), path)
        caption = (
            "An ECE within the grey band cannot be told from that of a calibrated model. The"
            " spread of the seeds on a line is the noise of training and of questions."
        )
        pictures.append(Picture(path, dots_text(rows, task), caption, RESULTS))
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
    path = study.folder / "plots" / f"training{f'_{number + 1}' if number else ''}.png"
    with project_style():
        save(dynamics_figure(drawn, next(iter(condition.runs.values())).style_end), path)
    return Picture(
        path,
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
