"""From finished folders to tables, figures, report.html and the text to print."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogcalib_jax.files import write_whole
from cogcalib_jax.report.comparison import (
    BY,
    VOCABULARY,
    Findings,
    compare_evaluations,
    comparison_csv,
    findings,
)
from cogcalib_jax.report.html import Card, Making, Section, Source, page
from cogcalib_jax.report.load_run import Run, read_evaluation, read_run
from cogcalib_jax.report.names import is_tempered, short_name
from cogcalib_jax.report.plots import task_pictures
from cogcalib_jax.report.questions import browse_questions
from cogcalib_jax.report.recommendation import base_words, read_base, recommendation, trust
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.report.text import TEXT_WIDTH, count, questions
from cogcalib_jax.report.training_plots import training_pictures, training_table
from cogcalib_jax.report.training_words import training_notes

PAGE = "report.html"


def write_report(run_dir: Path) -> str:
    """Write plots/, report.html and, of a comparison, comparison.csv; return the text to print.

    The text holds the table and verdict of the task that was trained on, and where the files lie;
    the page holds those of every task. Nothing else is changed, so an old folder can be reported
    again. Raises UserError if `run_dir` is no finished run or its files do not belong together.
    """
    run = read_run(run_dir)
    found = [findings([run], task) for task in run.tasks]
    sections = [_section(run, one) for one in found]
    table = training_table(run)
    training = Section(
        "Training",
        source=_source(run, "metrics.jsonl"),
        verdict=training_notes(run),
        tables={} if table is None else {"Training of each method": table},
        pictures=tuple(training_pictures(run)),
    )
    sections += [training] if training.pictures or training.verdict else []
    base, take = read_base(run.folder), recommendation(run)
    cards = [Card("Can I trust its confidence?", trust(run, take))]
    if take is not None:
        code = tuple(filter(None, [take.example, take.command]))
        cards.append(Card("Which method do I take?", (*take.take, take.how_to_ask), code))
    if base is not None:
        cards.append(Card("Before training", tuple(base_words(base))))
    path = run.folder / PAGE
    write_whole(path, _page(f"Calibration report: {run.folder.name}", run, sections, cards))
    if _place(run):
        write_whole(run.folder / "comparison.csv", comparison_csv(found))

    main, others = found[0], run.tasks[1:]
    shown = {c: t for c, t in main.tables.items() if c != VOCABULARY and not c.startswith(BY)}
    wrapped = [
        "\n".join(textwrap.fill(line, TEXT_WIDTH) for line in lines)
        for lines in (base_words(base) if base else (), main.verdict, training.verdict)
    ]
    text = [*map(as_text, shown.values()), *filter(None, wrapped)]
    pictures = ", ".join(p.path.name for p in (*sections[0].pictures, *training.pictures))
    also = f" (also: {', '.join(others)})" if others else ""
    text.append(
        f"Report: {path}{also}\nFigures: {run.folder / 'plots'} ({pictures})\n"
        f"Every answer: {run.folder / _place(run) / 'predictions'}"
    )
    if take is not None:
        text.append(take.as_text())
    return "\n\n".join(text)


def write_evaluation_report(folder: Path, name: str = "") -> Path:
    """Write plots/ and report.html of a finished evaluation; return the page's path.

    name: of a single model in tables; several have their own. Raises UserError if the folder is no
    finished evaluation.
    """
    run = read_evaluation(folder, name or folder.name)
    if _place(run):
        found = compare_evaluations(folder, run.bins)
    else:
        found = [findings([run], task) for task in run.tasks]
    sections = [_section(run, one) for one in found]
    cards = [Card("Can I trust its confidence?", trust(run, None))]
    write_whole(folder / PAGE, _page(f"Evaluation report: {folder.name}", run, sections, cards))
    return folder / PAGE


def _section(run: Run, found: Findings) -> Section:
    return Section(
        title=f"Results on {found.task}",
        source=_source(run, "eval.json"),
        verdict=found.verdict,
        tables=found.tables,
        pictures=tuple(task_pictures(run, found.task)),
        questions=browse_questions(run, found.task),
    )


def _place(run: Run) -> str:
    """The part before a method's files, as the run's page sees them."""
    return "METHOD/" if (run.folder / "comparison.json").is_file() else ""


def _source(run: Run, numbers: str) -> Source:
    configs = tuple(dict.fromkeys(m.config for m in run.methods if m.config in run.configs))
    return Source(numbers, _place(run), commands_of(run), configs)


def commands_of(run: Run) -> tuple[str, ...]:
    """Return every command that made numbers of the run; if none was recorded, one to repeat it."""
    recorded = tuple(dict.fromkeys(m.command for m in run.methods if m.command is not None))
    return recorded or (
        "# not recorded; the resolved configuration repeats the run\n"
        f"python train.py --config {run.folder / next(iter(run.configs))}",
    )


def _page(title: str, run: Run, sections: Sequence[Section], cards: Sequence[Card]) -> str:
    names = [short_name(m.key) for m in run.methods if not is_tempered(m.key)]
    n = questions(run.methods[0].metrics[run.tasks[0]])
    facts = {name: plain(value) for name, value in run.provenance.items() if name != "command"}
    origins = {}
    if _place(run):
        rows = tuple((short_name(m.key), f"{m.key}/eval.json", m.config) for m in run.methods)
        origins = {
            "Numbers and configuration": Table(("method", "numbers", "configuration"), rows, "")
        }
    return page(
        title=title,
        lead=f"{'; '.join(names)}: {count(n, 'test question')} of {run.tasks[0]}.",
        sections=sections,
        making=Making(commands_of(run), facts, run.configs, origins),
        cards=cards,
    )


def plain(value: Any) -> str:
    """Return a value of the provenance as words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    return "not recorded" if value is None else str(value)
