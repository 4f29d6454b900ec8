"""What the answers to a task show, over one run or several seeds of it: tables and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from cogcalib_jax.errors import UserError
from cogcalib_jax.report.evaluations import subgroup_table
from cogcalib_jax.report.load_run import Run, weights_of
from cogcalib_jax.report.names import REFERENCES, is_tempered, short_name
from cogcalib_jax.report.open_tables import confidence_table
from cogcalib_jax.report.tables import (
    Metrics,
    Table,
    as_markdown,
    comparison_table,
    vocabulary_table,
)
from cogcalib_jax.report.text import questions
from cogcalib_jax.report.verdict import compare, difference_table, tempered_pairs, verdict

RESULTS = "Results over the options of each question"
ANSWERS = "Results of the generated answers"
CONFIDENCES = "Confidences in these answers"
DIFFERENCES = "Differences between methods"
TEMPERED = "Differences between methods, each with its temperature"
VOCABULARY = "Results over the whole vocabulary"
BY = "Results by "
"""opens the caption of a table of subgroups"""


@dataclass(frozen=True)
class Findings:
    """On one task."""

    task: str
    tables: Mapping[str, Table]
    """by caption"""
    verdict: tuple[str, ...]

    def as_markdown(self) -> str:
        """Tables and verdict, without the captions."""
        lines = "\n".join(f"- {line}" for line in self.verdict)
        shown = [as_markdown(table) for table in self.tables.values()]
        return "\n\n".join([*shown, *filter(None, [lines])])


def results_of(run: Run, task: str) -> dict[str, Metrics]:
    """Method -> numbers of the task."""
    return {m.key: m.metrics[task] for m in run.methods}


def findings(runs: Sequence[Run], task: str) -> Findings:
    """Of one run, or of several that differ in their seed: means, standard deviations, differences.

    What is not averaged (vocabulary, subgroups, confidences in generated answers) is only in those
    of one run. Rows beside the methods that some runs lack, such as a temperature that could not be
    fitted, are left out. Raises UserError where runs hold different methods or were not evaluated
    on `task`.
    """
    for run in runs:
        if task not in run.tasks:
            raise UserError(
                f"{run.folder}: was not evaluated on {task}, which {runs[0].folder} was;"
                " evaluate all seeds on the same tasks"
            )
    runs, left_out = _with_same_rows(runs)
    metrics = [results_of(run, task) for run in runs]
    results = comparison_table(metrics)  # first: it refuses seeds of different methods
    predictions = [{m.key: m.predictions[task] for m in run.methods} for run in runs]
    comparisons = compare(predictions, bins=runs[0].bins)
    scaled = compare(predictions, pairs=tempered_pairs(predictions[0]), bins=runs[0].bins)
    n = questions(next(iter(metrics[0].values())))
    first = metrics[0]
    confidences = confidence_table(first) if len(runs) == 1 else None
    tables = {
        ANSWERS if "confidences" in next(iter(first.values())) else RESULTS: results,
        CONFIDENCES: confidences,
        DIFFERENCES: difference_table(comparisons, n),
        TEMPERED: difference_table(scaled, n),
    }
    if len(runs) == 1:
        tables[VOCABULARY] = vocabulary_table(first)
        tables |= _subgroups(first)
    return Findings(
        task,
        {caption: table for caption, table in tables.items() if table is not None},
        (*left_out, *verdict([*comparisons, *scaled], metrics, weights_of(runs[0]))),
    )


def _with_same_rows(runs: Sequence[Run]) -> tuple[Sequence[Run], tuple[str, ...]]:
    """`runs` without the rows beside the methods that some of them lack, and a line about it."""
    keys = [[method.key for method in run.methods] for run in runs]
    partial = [
        key
        for key in dict.fromkeys(chain(*keys))
        if (key in REFERENCES or is_tempered(key)) and not all(key in held for held in keys)
    ]
    if not partial:
        return runs, ()
    kept = [
        replace(run, methods=tuple(m for m in run.methods if m.key not in partial)) for run in runs
    ]
    names = "; ".join(map(short_name, partial))
    return kept, (f"Left out, for not every seed has it: {names}.",)


def _subgroups(results: Mapping[str, Metrics]) -> dict[str, Table]:
    fields = next(iter(results.values())).get("by", {})
    return {
        f"{BY}{field}": subgroup_table(
            field, {method: metrics["by"][field] for method, metrics in results.items()}
        )
        for field in fields
    }
