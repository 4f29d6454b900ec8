"""Numbers and tables of a suite: conditions side by side, and each of them over its seeds.

An interval of training is Student's t over seeds: each seed has its own training noise and, in the
world, its own questions, so that the spread between seeds holds both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.cli.method_run import SCORES
from cogcalib_jax.metrics.significance import student_t
from cogcalib_jax.report.comparison import Findings, findings
from cogcalib_jax.report.load_run import Method, Predictions, RunResults
from cogcalib_jax.report.tables import Metrics, Table, as_markdown, cell, cells, titles
from cogcalib_jax.report.text import count, credits, is_sampled, short_name
from cogcalib_jax.report.training_plots import DATA_WORDS
from cogcalib_jax.report.verdict import compare, difference_table
from cogcalib_jax.studies.detector_results import COURSE, course_table, read_watched

NUMBERS = (
    "n",
    "accuracy",
    "ece",
    "ece_debiased",
    "ece_p_value",
    "ece_equal_mass",
    "ece_classwise",
    "ece_smooth",
    "mce",
    "nll",
    "brier",
    "auroc",
    "aurc",
    "confidence",
    "coverage_at_90",
    "temperature",
)
VOCAB_NUMBERS = ("ece", "nll", "brier", "auroc", "confidence")
MOMENTS = ("start", "best epoch", "end")


@dataclass(frozen=True)
class Condition:
    """The finished runs of one condition."""

    name: str
    settings: tuple[str, ...]
    """its changes to the preset, each PATH=VALUE"""
    runs: Mapping[int, RunResults]
    """seed -> its comparison"""


@dataclass(frozen=True)
class Study:
    """The finished part of a suite."""

    name: str
    question: str
    folder: Path
    """holds the folders of all runs"""
    preset: str
    """the run that every condition starts from"""
    command: str
    configuration: str
    """the suite's resolved config as YAML"""
    across: tuple[str, ...]
    """methods whose conditions are compared with the first one"""
    conditions: tuple[Condition, ...]
    """those with at least one finished run"""
    followed: tuple[str, ...] = ()
    """methods whose training is shown; none: all that were followed"""
    failed: tuple[str, ...] = ()
    """titles of the failed cells"""

    @property
    def missing(self) -> str:
        """A sentence about failed cells, empty if there are none."""
        return f"Missing, because they failed: {'; '.join(self.failed)}." if self.failed else ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all runs, in the order they were evaluated."""
        runs = [run for condition in self.conditions for run in condition.runs.values()]
        return tuple(dict.fromkeys(task for run in runs for task in run.tasks))


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


def tidy_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row a run, method and task: its keys, then its numbers (None if undefined)."""
    rows = []
    for condition in study.conditions:
        for seed, run in condition.runs.items():
            results = json.loads((run.folder / "comparison.json").read_text(encoding="utf-8"))
            for method, tasks in results.items():
                for task, metrics in tasks.items():
                    floor = metrics["ece_noise_floor"]
                    vocab = metrics.get("vocab") or {}
                    keys = {"suite": study.name, "condition": condition.name, "seed": seed}
                    rows.append(
                        keys
                        | {"method": method, "task": task}
                        | {name: metrics.get(name) for name in NUMBERS}
                        | {"ece_floor_mean": floor["mean"], "ece_floor_p95": floor["p95"]}
                        | {f"vocab_{name}": vocab.get(name) for name in VOCAB_NUMBERS}
                    )
    return rows


def study_findings(study: Study) -> StudyFindings:
    """Return all tables and verdicts; a condition with one seed has no standard deviations."""
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
    beside = {task: _side_by_side(study, task) for task in tasks}
    return StudyFindings(beside, across, conditions, training)


def study_markdown(study: Study, found: StudyFindings) -> str:
    """Return the findings as Markdown: conditions against each other, then each of them."""
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


def seeds_of(condition: Condition, method: str, task: str) -> list[Metrics]:
    """Return the numbers of one method on one task, one for each seed that has them."""
    return [
        one.metrics[task]
        for run in condition.runs.values()
        for one in run.methods
        if one.key == method and task in one.metrics
    ]


def methods_of(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """Return every method of any condition, in order of appearance."""
    return tuple(
        dict.fromkeys(m.key for c in conditions for run in c.runs.values() for m in run.methods)
    )


def _side_by_side(study: Study, task: str) -> Table:
    """A line a method and condition: mean ± standard deviation over seeds."""
    names = ("accuracy", "confidence", "ece", "brier", "nll", "auroc")
    lines = tuple(
        (short_name(method), condition.name, str(len(seeds)), *cells(seeds, names))
        for method in methods_of(study.conditions)
        for condition in study.conditions
        if (seeds := seeds_of(condition, method, task))
    )
    header = ("method", "condition", "seeds", *titles(names))
    note = (
        "Mean ± standard deviation over seeds. Floor: the ECE that a calibrated model with these"
        " confidences would show by chance."
    )
    note = "\n".join([note, *(f"{credit}." for credit in credits(methods_of(study.conditions)))])
    return Table(header, lines, note)


def _against_first(study: Study, method: str, task: str) -> Table | None:
    """Return paired differences of a method under each condition and the first, same questions.

    None if the method was not run under the first condition, or if the questions differ.
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


Line = Mapping[str, Any]
"""A line of dynamics.jsonl."""


def followed_methods(
    runs: Mapping[int, RunResults], only: Sequence[str]
) -> dict[str, list[Method]]:
    """Return the methods whose training was followed in every seed: key -> one a seed.

    only: the keys wanted; none for all but MC-dropout, which was followed without its passes and
    so as another model.
    """
    found: dict[str, list[Method]] = {}
    for run in runs.values():
        for method in run.methods:
            wanted = method.key in only if only else not is_sampled(method.key)
            if wanted and method.dynamics:
                found.setdefault(method.key, []).append(method)
    return {key: seeds for key, seeds in found.items() if len(seeds) == len(runs)}


def seed_means(seeds: Sequence[Method]) -> list[dict[str, Any]] | None:
    """Return lines like those of dynamics.jsonl with the means over seeds, and `accuracy_low` to
    `confidence_high`, the lowest and highest seed.

    The n-th validation of one seed is averaged with that of another: in the world seeds differ in
    rows, and so in the updates of an epoch. None if seeds were not validated equally often.
    """
    parts = {(line["data"], line["group"]) for m in seeds for line in m.dynamics}
    lines = []
    for data, group in sorted(parts):
        each = [_lines_of(method, data, group) for method in seeds]
        if len({len(one) for one in each}) > 1:
            return None
        for moment in zip(*each, strict=True):
            line: dict[str, Any] = {"data": data, "group": group}
            line["step"] = round(float(np.mean([one["step"] for one in moment])))
            for name in ("accuracy", "confidence"):
                values = [one[name] for one in moment]
                line |= {name: float(np.mean(values))}
                line |= {f"{name}_low": min(values), f"{name}_high": max(values)}
            lines.append(line)
    return sorted(lines, key=lambda line: line["step"])


def training_tables(runs: Mapping[int, RunResults], only: Sequence[str] = ()) -> dict[str, Table]:
    """Return caption -> one method at the start, at its best epoch and at the end; and, with
    `known_by`, how well it tells at each validation what the start knows."""
    found = {}
    for key, seeds in followed_methods(runs, only).items():
        found[f"{short_name(key)} over training"] = _training_table(seeds)
        table = course_table(
            {
                seed: read_watched(run.folder, key)
                for seed, run in runs.items()
                if (run.folder / key / SCORES).is_file()
            }
        )
        if table is not None:
            found[f"{COURSE}: {short_name(key)}"] = table
    return found


def _training_table(seeds: Sequence[Method]) -> Table:
    rows = []
    kinds = {line["data"] for method in seeds for line in method.dynamics}
    for data in ("train", "validation"):
        for group in ("known", "unknown"):
            if data not in kinds:
                continue
            each = [_moments(method, data, group) for method in seeds]
            if any(one is None for one in each):
                continue
            accuracy, confidence = (
                np.array([[line[name] for line in moments] for moments in each])
                for name in ("accuracy", "confidence")
            )  # [seeds, moments]
            size = np.mean([moments[0]["n"] for moments in each])
            for i, moment in enumerate(MOMENTS):
                changes = (
                    points(values[:, i] - values[:, 0]) if i else ""
                    for values in (accuracy, confidence)
                )
                rows.append(
                    (
                        f"{group}, {DATA_WORDS[data].removeprefix('questions ')}",
                        f"{size:.0f}",
                        moment,
                        cell(accuracy[:, i].tolist(), percent=True),
                        cell(confidence[:, i].tolist(), percent=True),
                        points(confidence[:, i] - accuracy[:, i]),
                        *changes,
                    )
                )
    head = (
        "questions",
        "n",
        "when",
        "accuracy",
        "mean\nconfidence",
        "confidence minus accuracy\n(points)",
        "accuracy since\nthe start (points)",
        "confidence since\nthe start (points)",
    )
    note = (
        f"{count(len(seeds), 'seed')}, n: questions of a seed. Known: before fine-tuning. Best"
        " epoch: each seed's lowest validation NLL."
    )
    if len(seeds) > 1:
        note += " Mean ± standard deviation; in brackets 95 % intervals (Student's t over seeds)."
    return Table(head, tuple(rows), note)


def points(values: np.ndarray) -> str:
    """Return the mean of shares `[seeds]` in percentage points, with its interval if there are
    several."""
    mean = 100 * values.mean()
    if len(values) == 1:
        return f"{mean:+.1f}"
    low, high, _ = student_t(100 * values)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _moments(method: Method, data: str, group: str) -> tuple[Line, Line, Line] | None:
    """The lines at the start, the best epoch and the end; None if these were not followed."""
    lines = _lines_of(method, data, group)
    validations = [x for x in method.steps if x.get("phase") == "validation"][1:]
    if not lines or not validations:
        return None
    best = min(validations, key=lambda line: line["nll"])["step"]
    return lines[0], next(line for line in lines if line["step"] == best), lines[-1]


def _lines_of(method: Method, data: str, group: str) -> list[Line]:
    return [x for x in method.dynamics if x["data"] == data and x["group"] == group]
