"""From finished run folders to tables, verdict, pictures and page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics import ece_noise_floor, reliability_bins, risk_coverage
from cogcalib_jax.reporting.canvas import project_style, save
from cogcalib_jax.reporting.html import Picture, Section, page
from cogcalib_jax.reporting.names import SAMPLED, looks, short_name
from cogcalib_jax.reporting.open_tables import confidence_table
from cogcalib_jax.reporting.plots import (
    Coverage,
    Reliability,
    coverage_figure,
    dynamics_figure,
    reliability_figure,
)
from cogcalib_jax.reporting.records import Method, Run, read_run
from cogcalib_jax.reporting.tables import (
    as_markdown,
    as_text,
    comparison_table,
    vocabulary_table,
)
from cogcalib_jax.reporting.verdict import compare, difference_table, verdict
from cogcalib_jax.reporting.words import (
    count,
    coverage_text,
    dynamics_text,
    reliability_text,
)

RESULTS = "Results over the options of each question"
ANSWERS = "Results of the generated answers"
CONFIDENCES = "Confidences in these answers"
DIFFERENCES = "Differences between methods"
VOCABULARY = "Results over the whole vocabulary"

TARGET = 0.9
"""Accuracy of the coverage plot's line; eval.json has the share answered at 90 %."""
TEXT_WIDTH = 110


def write_report(run_dir: Path) -> str:
    """Write plots/ and report.html of a finished run or comparison; return the text to print.

    The text holds the table and verdict of the task that was trained on, and where the files lie;
    the page holds those of every task. Raises UserError where
    `run_dir` is no finished run or its files do not belong together. Nothing else is changed, so
    an old folder can be reported again.
    """
    run = read_run(run_dir)
    sections = [_section(run, task) for task in run.tasks]
    main, others = sections[0], run.tasks[1:]
    printed = [as_text(table) for c, table in main.tables.items() if c != VOCABULARY]
    wrapped = "\n".join(textwrap.fill(line, TEXT_WIDTH) for line in main.verdict)
    text = [*printed, *filter(None, [wrapped])]
    path = run.folder / "report.html"
    path.write_text(_page(run, sections), encoding="utf-8")
    pictures = ", ".join(p.path.name for p in main.pictures)
    also = f" (also: {', '.join(others)})" if others else ""
    text.append(
        f"Report: {path}{also}\nPictures: {run.folder / 'plots'} ({pictures})\n"
        f"Every answer: {_predictions_folder(run)}"
    )
    return "\n\n".join(text)


def seeds_report(run_dirs: Sequence[Path]) -> str:
    """Markdown over several seeds of one comparison: mean ± standard deviation, and the verdict.

    Raises UserError where the folders hold different methods or tasks, or one alone is given.
    """
    runs = [read_run(folder) for folder in run_dirs]
    if len(runs) < 2:
        raise UserError("a report over seeds needs at least two run folders; give more")
    parts = []
    for task in runs[0].tasks:
        for run in runs:
            if task not in run.tasks:
                raise UserError(
                    f"{run.folder}: was not evaluated on {task}, which {runs[0].folder} was;"
                    " evaluate all seeds on the same tasks"
                )
        metrics = [_results(run, task) for run in runs]
        results = comparison_table(metrics)  # first: it refuses seeds of different methods
        comparisons = compare([_predictions(run, task) for run in runs])
        n = next(iter(metrics[0].values()))["n"]
        tables = [results, difference_table(comparisons, n)]
        findings = "\n".join(f"- {line}" for line in verdict(comparisons, metrics))
        shown = [as_markdown(table) for table in tables if table is not None]
        parts.append("\n\n".join([f"### {task}", *shown, *filter(None, [findings])]))
    return "\n\n".join(parts) + "\n"


def _results(run: Run, task: str) -> dict[str, dict[str, Any]]:
    return {m.key: m.metrics[task] for m in run.methods}


def _predictions(run: Run, task: str) -> dict[str, Any]:
    return {m.key: m.predictions[task] for m in run.methods}


def _predictions_folder(run: Run) -> Path:
    if len(run.methods) == 1 and (run.folder / "predictions").is_dir():
        return run.folder / "predictions"
    return run.folder / "METHOD" / "predictions"


def _section(run: Run, task: str) -> Section:
    results = _results(run, task)
    comparisons = compare([_predictions(run, task)])
    confidences = confidence_table(results)
    tables = {
        RESULTS if confidences is None else ANSWERS: comparison_table([results]),
        CONFIDENCES: confidences,
        DIFFERENCES: difference_table(comparisons, next(iter(results.values()))["n"]),
        VOCABULARY: vocabulary_table(results),
    }
    return Section(
        title=f"Results on {task}",
        verdict=tuple(verdict(comparisons, [results])),
        tables={caption: table for caption, table in tables.items() if table is not None},
        pictures=tuple(_pictures(run, task)),
    )


def _pictures(run: Run, task: str) -> list[Picture]:
    """Draw and save the pictures of a task; those of the first task have the plain names."""
    folder = run.folder / "plots"
    suffix = "" if task == run.tasks[0] else "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", task)
    results = _results(run, task)
    n = results[run.methods[0].key]["n"]
    style = looks(results)
    pictures = []
    with project_style():
        path = folder / f"reliability{suffix}.png"
        panels = [_reliability(m, task, style[m.key], run.bins) for m in run.methods]
        save(reliability_figure(panels, task, n), path)
        pictures.append(
            Picture(
                path,
                reliability_text(results, task),
                "Bars: accuracy of the answers given with that confidence. A calibrated model's"
                " bars end on the dashed line, up to chance: within the grey band in 90 % of"
                " cases. Hatched: how far off they are. Below: how many questions.",
            )
        )
        # MC-dropout's training was followed without its passes: that would be another model.
        trained = [m for m in run.methods if m.key not in SAMPLED]
        logged = [(short_name(m.key), m.dynamics) for m in trained if m.dynamics]
        if logged and not suffix:
            path = folder / "dynamics.png"
            save(dynamics_figure(logged, run.style_end), path)
            pictures.append(
                Picture(
                    path,
                    dynamics_text(logged),
                    "Known and unknown refer to the model before it was fine-tuned. The mechanism"
                    " to look for: accuracy (solid) levels off while confidence (dashed) goes on.",
                )
            )
        path = folder / f"coverage{suffix}.png"
        lines = [_coverage(m, task, style[m.key]) for m in run.methods]
        save(coverage_figure(lines, task, n, TARGET), path)
        pictures.append(
            Picture(
                path,
                coverage_text(results, task),
                "What confidence is good for: answer only the questions above a cut-off. The share"
                " at 90 % accuracy is read off the same questions, so it flatters every method.",
            )
        )
    return pictures


def _reliability(method: Method, task: str, look: Any, bins: int) -> Reliability:
    p = method.predictions[task]
    return Reliability(
        name=short_name(method.key),
        look=look,
        bins=reliability_bins(p.confidence, p.correct, bins=bins),
        band=ece_noise_floor(p.confidence, bins=bins).band,
        metrics=method.metrics[task],
    )


def _coverage(method: Method, task: str, look: Any) -> Coverage:
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


def _page(run: Run, sections: Sequence[Section]) -> str:
    names = [short_name(m.key) for m in run.methods]
    n = run.methods[0].metrics[run.tasks[0]]["n"]
    facts = {name: _plain(value) for name, value in run.provenance.items() if name != "command"}
    command = run.provenance.get("command")
    if command is None:
        first = next(iter(run.configs))
        command = (
            "# not recorded; the resolved configuration repeats the run\n"
            f"python train.py --config {run.folder / first}"
        )
    return page(
        title=f"Calibration report: {run.folder.name}",
        lead=f"{', '.join(names)}; {count(n, 'test question')} of {run.tasks[0]}.",
        sections=sections,
        command=command,
        facts=facts,
        configs=run.configs,
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return "not recorded" if value is None else str(value)
