"""What a study found: conditions side by side, and each condition's methods over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogcalib_jax.report.comparison import Findings, findings
from cogcalib_jax.report.load_run import Predictions, Run
from cogcalib_jax.report.names import credits, short_name
from cogcalib_jax.report.tables import Metrics, Table, as_markdown, cell, floor_cell
from cogcalib_jax.report.verdict import compare, difference_table
from cogcalib_jax.studies.dynamics import training_tables

NUMBERS = "results.jsonl"
"""The study's file with the numbers of all its runs."""


@dataclass(frozen=True)
class Condition:
    """The finished runs of one condition."""

    name: str
    settings: tuple[str, ...]
    """what it changes in the preset, each PATH=VALUE"""
    runs: Mapping[int, Run]
    """seed -> its comparison"""


@dataclass(frozen=True)
class Study:
    """A grid of conditions and seeds, as far as it is finished."""

    name: str
    question: str
    folder: Path
    """holds the folders of all runs"""
    preset: str
    """file of the run that every condition starts from"""
    command: str
    configuration: str
    """the study's own resolved config as YAML"""
    across: tuple[str, ...]
    """methods whose conditions are compared with the first one"""
    conditions: tuple[Condition, ...]
    """those with at least one finished run"""
    followed: tuple[str, ...] = ()
    """methods whose training is shown; none: all that were followed"""
    failed: tuple[str, ...] = ()
    """what is missing: condition and seed in words"""

    @property
    def missing(self) -> str:
        """A sentence about what failed, empty where nothing did."""
        return f"Missing, because they failed: {'; '.join(self.failed)}." if self.failed else ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of all runs, in the order they were evaluated."""
        return tuple(
            dict.fromkeys(
                task for c in self.conditions for r in c.runs.values() for task in r.tasks
            )
        )


@dataclass(frozen=True)
class StudyFindings:
    """Tables and verdicts of a study."""

    side_by_side: Mapping[str, Table]
    """by task"""
    across: Mapping[str, Mapping[str, Table]]
    """task -> caption -> one method's conditions against the first condition"""
    conditions: Mapping[str, tuple[Findings, ...]]
    """condition -> one a task"""
    training: Mapping[str, Mapping[str, Table]]
    """condition -> caption -> one method over training"""


def study_findings(study: Study) -> StudyFindings:
    """Everything there is to say; a condition with one seed says it without standard deviations."""
    tasks = study.tasks if len(study.conditions) > 1 else ()
    first = study.conditions[0].name
    across = {
        task: {
            f"{short_name(method)}: conditions against {first}": table
            for method in study.across
            if (table := _against_first(study, method, task)) is not None
        }
        for task in tasks
    }
    conditions, training = {}, {}
    for condition in study.conditions:
        training[condition.name] = training_tables(condition.runs, study.followed)
        runs = list(condition.runs.values())
        conditions[condition.name] = tuple(findings(runs, task) for task in runs[0].tasks)
    beside = {task: side_by_side(study, task) for task in tasks}
    return StudyFindings(beside, across, conditions, training)


def study_markdown(study: Study, found: StudyFindings) -> str:
    """The findings as Markdown: conditions against each other, then each of them."""
    parts = [f"# {study.name}", *filter(None, [study.question, study.missing])]
    for task, table in found.side_by_side.items():
        parts += [f"## Conditions side by side: {task}", as_markdown(table)]
        for caption, differences in found.across[task].items():
            parts += [f"### {caption}, {task}", as_markdown(differences)]
    for name, tasks in found.conditions.items():
        parts.append(f"## {name}")
        for one in tasks:
            parts += [f"### {one.task}", one.as_markdown()]
        for caption, table in found.training[name].items():
            parts += [f"### {caption}", as_markdown(table)]
    return "\n\n".join(parts) + "\n"


def seeds_of(condition: Condition, method: str, task: str) -> dict[int, Metrics]:
    """Seed -> numbers of one method on one task; nothing where it was not run or evaluated."""
    return {
        seed: one.metrics[task]
        for seed, run in condition.runs.items()
        for one in run.methods
        if one.key == method and task in one.metrics
    }


def methods_of(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """Every method of any of them, in order of appearance."""
    return tuple(
        dict.fromkeys(m.key for c in conditions for run in c.runs.values() for m in run.methods)
    )


def side_by_side(study: Study, task: str) -> Table:
    """A line a method and condition: mean ± standard deviation over seeds."""
    lines = []
    for method in methods_of(study.conditions):
        for condition in study.conditions:
            seeds = list(seeds_of(condition, method, task).values())
            if seeds:
                lines.append(
                    (
                        short_name(method),
                        condition.name,
                        str(len(seeds)),
                        cell([m["accuracy"] for m in seeds], percent=True),
                        cell([m["confidence"] for m in seeds], percent=True),
                        f"{cell([m['ece'] for m in seeds])} ({floor_cell(seeds)})",
                        *(cell([m[name] for m in seeds]) for name in ("brier", "nll", "auroc")),
                    )
                )
    header = (
        "method",
        "condition",
        "seeds",
        "accuracy",
        "mean\nconfidence",
        "ECE\n(floor: mean / 95 %)",
        "Brier",
        "NLL\n(nats)",
        "AUROC",
    )
    note = (
        "Mean ± standard deviation over seeds. Floor: the ECE that a calibrated model with these"
        " confidences would show by chance."
    )
    note = "\n".join([note, *(f"{credit}." for credit in credits(methods_of(study.conditions)))])
    return Table(header, tuple(lines), note)


def _against_first(study: Study, method: str, task: str) -> Table | None:
    """Paired differences of one method under each condition and the first, same questions.

    None where the method was not run under the first condition, or the questions differ.
    """
    by_seed: dict[int, dict[str, Predictions]] = {}
    for condition in study.conditions:
        for seed, run in condition.runs.items():
            for one in run.methods:
                if one.key == method and task in one.predictions:
                    by_seed.setdefault(seed, {})[condition.name] = one.predictions[task]
    names = [condition.name for condition in study.conditions]
    present = [name for name in names if all(name in seed for seed in by_seed.values())]
    whole = [{name: seed[name] for name in present} for seed in by_seed.values()]
    if not whole or len(present) < 2 or present[0] != names[0]:
        return None
    if any(p.ids != seed[names[0]].ids for seed in whole for p in seed.values()):
        return None
    pairs = [(name, names[0]) for name in present[1:]]
    bins = next(iter(study.conditions[0].runs.values())).bins
    return difference_table(compare(whole, pairs=pairs, bins=bins), whole[0][names[0]].questions)
