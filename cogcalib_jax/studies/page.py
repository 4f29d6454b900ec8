"""report.html of a study: its conditions side by side, and each of them over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogcalib_jax.files import write_whole
from cogcalib_jax.report.html import Making, Section, Source, page
from cogcalib_jax.report.load_run import Run
from cogcalib_jax.report.report import commands_of, plain
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import count
from cogcalib_jax.studies.pictures import study_pictures, training_picture
from cogcalib_jax.studies.study_tables import NUMBERS, Condition, Study, StudyFindings

SUITE = "the study itself"


def write_suite_report(study: Study, found: StudyFindings) -> Path:
    """Write plots/ and report.html into the study's folder; returns the page's path."""
    configs = {SUITE: study.configuration} | {
        f"{_place(study, run)}/{name}": text
        for condition in study.conditions
        for run in condition.runs.values()
        for name, text in run.configs.items()
        if name == "config.yaml"
    }
    sections = [_task_section(study, found, task, tuple(configs)) for task in study.tasks]
    sections += [_condition_section(study, c, found) for c in study.conditions]
    runs = sum(len(condition.runs) for condition in study.conditions)
    lead = [study.question] if study.question else []
    lead.append(f"{count(len(study.conditions), 'condition')}, {count(runs, 'run')}.")
    lead += [study.missing] if study.failed else []
    first = next(iter(study.conditions[0].runs.values()))
    leave_out = ("command", "seed")
    facts = {"preset": study.preset} | {
        name: plain(value) for name, value in first.provenance.items() if name not in leave_out
    }
    path = study.folder / "report.html"
    text = page(
        title=f"Study: {study.name}",
        lead=" ".join(lead),
        sections=sections,
        making=Making((study.command,), facts, configs, {"Every run": _runs_table(study)}),
    )
    write_whole(path, text)
    return path


def _place(study: Study, run: Run) -> str:
    """A run's folder as seen from the page."""
    return run.folder.relative_to(study.folder).as_posix()


def _task_section(study: Study, found: StudyFindings, task: str, configs: Sequence[str]) -> Section:
    tables = {}
    if task in found.side_by_side:
        tables = {"Conditions side by side": found.side_by_side[task], **found.across[task]}
    return Section(
        title=f"Conditions on {task}" if len(study.conditions) > 1 else f"Seeds on {task}",
        source=Source(NUMBERS, "", (study.command,), tuple(configs)),
        tables=tables,
        pictures=tuple(study_pictures(study, task)),
    )


def _condition_section(study: Study, condition: Condition, everything: StudyFindings) -> Section:
    found = everything.conditions[condition.name]
    picture = training_picture(study, condition)
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
    """Every run's own command, which repeats it without the study."""
    rows = tuple(
        (f"{condition.name}, seed {seed}", f"{_place(study, run)}/config.yaml", command)
        for condition in study.conditions
        for seed, run in condition.runs.items()
        for command in commands_of(run)
    )
    return Table(("run", "configuration", "command"), rows, "")
