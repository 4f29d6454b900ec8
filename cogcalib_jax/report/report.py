"""From finished run folders to tables, verdict, pictures and page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import write_whole
from cogcalib_jax.report.comparison import BY, VOCABULARY, Findings, findings
from cogcalib_jax.report.html import Card, Making, Section, Source, page
from cogcalib_jax.report.load_run import Run, read_run
from cogcalib_jax.report.names import is_tempered, short_name
from cogcalib_jax.report.plots import task_pictures, training_pictures
from cogcalib_jax.report.recommendation import Recommendation, base_words, read_base, recommendation
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.report.text import TEXT_WIDTH, count, questions
from cogcalib_jax.report.training_words import training_notes


def write_report(run_dir: Path) -> str:
    """Write plots/ and report.html of a finished run or comparison; return the text to print.

    The text holds the table and verdict of the task that was trained on, and where the files lie;
    the page holds those of every task. Raises UserError where
    `run_dir` is no finished run or its files do not belong together. Nothing else is changed, so
    an old folder can be reported again.
    """
    run = read_run(run_dir)
    found = [findings([run], task) for task in run.tasks]
    sections = [_section(run, one) for one in found]
    training = Section(
        "Training",
        source=_source(run, "metrics.jsonl"),
        verdict=training_notes(run),
        pictures=tuple(training_pictures(run)),
    )
    sections += [training] if training.pictures or training.verdict else []
    path = run.folder / "report.html"
    base, take = read_base(run.folder), recommendation(run)
    write_whole(path, _page(run, sections, [*_take_card(take), *_base_card(base)]))

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
        f"Report: {path}{also}\nPictures: {run.folder / 'plots'} ({pictures})\n"
        f"Every answer: {run.folder / _place(run) / 'predictions'}"
    )
    if take is not None:
        text.append(take.as_text())
    return "\n\n".join(text)


def seeds_report(run_dirs: Sequence[Path]) -> str:
    """Markdown over several seeds of one comparison: mean ± standard deviation, and the verdict.

    Raises UserError where the folders hold different methods or tasks, or one alone is given.
    """
    runs = [read_run(folder) for folder in run_dirs]
    if len(runs) < 2:
        raise UserError("a report over seeds needs at least two run folders; give more")
    parts = [f"### {task}\n\n{findings(runs, task).as_markdown()}" for task in runs[0].tasks]
    return "\n\n".join(parts) + "\n"


def _section(run: Run, found: Findings) -> Section:
    return Section(
        title=f"Results on {found.task}",
        source=_source(run, "eval.json"),
        verdict=found.verdict,
        tables=found.tables,
        pictures=tuple(task_pictures(run, found.task)),
    )


def _place(run: Run) -> str:
    """What stands before a method's files, as the run's page sees them."""
    return "METHOD/" if (run.folder / "comparison.json").is_file() else ""


def _source(run: Run, numbers: str) -> Source:
    configs = tuple(dict.fromkeys(m.config for m in run.methods if m.config in run.configs))
    return Source(numbers, _place(run), commands_of(run), configs)


def commands_of(run: Run) -> tuple[str, ...]:
    """Every command that made numbers of the run; where none was recorded, one that repeats it."""
    recorded = tuple(dict.fromkeys(m.command for m in run.methods if m.command is not None))
    return recorded or (
        "# not recorded; the resolved configuration repeats the run\n"
        f"python train.py --config {run.folder / next(iter(run.configs))}",
    )


def _take_card(take: Recommendation | None) -> list[Card]:
    if take is None:
        return []
    first, *others = take.take
    lines = (*others, take.how_to_ask)
    return [Card(first, lines, tuple(filter(None, [take.example, take.command])))]


def _base_card(base: Mapping[str, Any] | None) -> list[Card]:
    return [] if base is None else [Card("Before training", tuple(base_words(base)))]


def _page(run: Run, sections: Sequence[Section], cards: Sequence[Card]) -> str:
    names = [short_name(m.key) for m in run.methods if not is_tempered(m.key)]
    n = questions(run.methods[0].metrics[run.tasks[0]])
    facts = {name: plain(value) for name, value in run.provenance.items() if name != "command"}
    return page(
        title=f"Calibration report: {run.folder.name}",
        lead=f"{'; '.join(names)}: {count(n, 'test question')} of {run.tasks[0]}.",
        sections=sections,
        making=Making(commands_of(run), facts, run.configs, _origins(run)),
        cards=cards,
    )


def _origins(run: Run) -> dict[str, Table]:
    """Which files belong to which method; nothing where there is one."""
    if not _place(run):
        return {}
    rows = tuple((short_name(m.key), f"{m.key}/eval.json", m.config) for m in run.methods)
    return {"Numbers and configuration": Table(("method", "numbers", "configuration"), rows, "")}


def plain(value: Any) -> str:
    """A value of the provenance, as words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    return "not recorded" if value is None else str(value)
