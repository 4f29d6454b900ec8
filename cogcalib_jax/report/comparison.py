"""The findings on a task: tables and sentences on the methods of a run, or on evaluated models."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import write_whole
from cogcalib_jax.metrics.significance import holm
from cogcalib_jax.report.load_run import (
    RunResults,
    anchor_terms,
    read_predictions,
    task_file,
    weights_of,
)
from cogcalib_jax.report.tables import (
    Metrics,
    Table,
    as_markdown,
    as_text,
    cells,
    comparison_table,
    confidence_table,
    titles,
    vocabulary_table,
)
from cogcalib_jax.report.text import (
    REFERENCES,
    count,
    is_at_chance,
    is_tempered,
    questions,
    short_name,
)
from cogcalib_jax.report.verdict import (
    LEVEL,
    Comparison,
    at_chance,
    at_floor,
    compare,
    difference_table,
    tempered_pairs,
    verdict,
)

COMPARISON = "comparison"
SMALL = 100
"""questions below which an ECE is not tested: one of 15 bins would hold a handful"""
WITH_INTERVAL = ("NLL", "Brier", "accuracy")

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
    """The findings on one task."""

    task: str
    results: Mapping[str, Metrics]
    """method or model -> numbers of eval.json, of the first seed"""
    comparisons: tuple[Comparison, ...]
    tables: Mapping[str, Table]
    """by caption"""
    verdict: tuple[str, ...]

    def show(self, form: Callable[[Table], str]) -> str:
        """Return all tables in the form wanted, those of subgroups with captions, and sentences."""
        parts = [
            f"{caption}:\n\n{form(table)}" if caption.startswith(BY) else form(table)
            for caption, table in self.tables.items()
        ]
        return "\n\n".join([*parts, *filter(None, ["\n".join(self.verdict)])])

    def as_markdown(self) -> str:
        """Return tables without captions, and the sentences as a list."""
        lines = "\n".join(f"- {line}" for line in self.verdict)
        shown = [as_markdown(table) for table in self.tables.values()]
        return "\n\n".join([*shown, *filter(None, [lines])])


def findings(runs: Sequence[RunResults], task: str) -> Findings:
    """Return the findings on one run, or on several that differ in their seed.

    Vocabulary, subgroups and confidences in generated answers are not averaged, and only in those
    of one run. Rows beside the methods that some runs lack, such as a temperature that could not be
    fitted, are left out. Raises UserError if runs hold different methods or were not evaluated on
    `task`.
    """
    for run in runs:
        if task not in run.tasks:
            raise UserError(
                f"{run.folder}: was not evaluated on {task}, but {runs[0].folder} was; evaluate all"
                " seeds on the same tasks"
            )
    runs, left_out = _with_same_rows(runs)
    metrics = [{m.key: m.metrics[task] for m in run.methods} for run in runs]
    results = comparison_table(metrics)  # first: it refuses seeds of different methods
    predictions = [{m.key: m.predictions[task] for m in run.methods} for run in runs]
    comparisons = compare(predictions, bins=runs[0].bins)
    scaled = compare(predictions, pairs=tempered_pairs(predictions[0]), bins=runs[0].bins)
    first = metrics[0]
    n = questions(next(iter(first.values())))
    alone = len(runs) == 1
    tables = {
        ANSWERS if "confidences" in next(iter(first.values())) else RESULTS: results,
        CONFIDENCES: confidence_table(first) if alone else None,
        DIFFERENCES: difference_table(comparisons, n),
        TEMPERED: difference_table(scaled, n),
        VOCABULARY: vocabulary_table(first) if alone else None,
    } | (_subgroups(first) if alone else {})
    return Findings(
        task,
        first,
        (*comparisons, *scaled),
        {caption: table for caption, table in tables.items() if table is not None},
        (
            *left_out,
            *_held(runs[0]),
            *verdict([*comparisons, *scaled], metrics, weights_of(runs[0])),
        ),
    )


def _held(run: RunResults) -> tuple[str, ...]:
    """Return a sentence on each method that anchors held."""
    knows, weights = ", a target that knows that nobody can answer them", weights_of(run)
    alone = ", and only on these: the weight of its own term is 0"
    return tuple(
        f"{short_name(key)} was held on questions without answers by the term {term}"
        f"{knows if term.startswith('uniform') else ''}{alone if weights.get(key) == 0 else ''}."
        for key, term in anchor_terms(run).items()
    )


def _with_same_rows(runs: Sequence[RunResults]) -> tuple[Sequence[RunResults], tuple[str, ...]]:
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


def _subgroups(models: Mapping[str, Metrics]) -> dict[str, Table]:
    """By caption; none if the first model has none."""
    fields = next(iter(models.values()), {}).get("by", {})
    return {
        f"{BY}{field}": subgroup_table(field, {name: m["by"][field] for name, m in models.items()})
        for field in fields
    }


def results_text(results: Mapping[str, Metrics]) -> str:
    """Return the text on one model: a line a task, then the subgroups of each task."""
    table = comparison_table([results])
    parts = [as_text(replace(table, header=("task", *table.header[1:])))]
    parts += [line for task, m in results.items() for line in at_chance([{task: m}])]
    open_tasks = {task: m for task, m in results.items() if "confidences" in m}
    confidences = confidence_table(open_tasks) if open_tasks else None
    parts += [] if confidences is None else [as_text(confidences)]
    for task, metrics in results.items():
        groups = _subgroups({"": metrics})
        parts += [f"{task}:"] if groups and len(results) > 1 else []
        parts += [f"{caption}:\n\n{as_text(table)}" for caption, table in groups.items()]
    return "\n\n".join(parts)


def subgroup_table(field: str, models: Mapping[str, Mapping[str, Metrics]]) -> Table:
    """Return a line for each value of `field`, and under it for each model.

    models: model -> value -> numbers. Only the ECEs of groups of at least `SMALL` questions are
    tested; Holm's correction is over the groups of a model.
    """
    values = list(dict.fromkeys(value for groups in models.values() for value in groups))
    lines = {
        (value, name): groups[value]
        for value in values
        for name, groups in models.items()
        if value in groups
    }
    large = [line for line, m in lines.items() if questions(m) >= SMALL]
    beyond = {}
    for name in models:
        own = [line for line in large if line[1] == name]
        adjusted = holm([lines[line]["ece_p_value"] for line in own])
        beyond |= {k: "yes" if p <= LEVEL else "no" for k, p in zip(own, adjusted, strict=True)}
        beyond |= {k: "at chance" for k in own if is_at_chance(lines[k])}
    several = len(models) > 1
    rows = tuple(
        (
            f"{value}: {short_name(name)}" if several else value,
            f"{m['n']:,}",
            *cells([m], ("accuracy", "confidence", "ece")),
            beyond.get((value, name), "small"),
            *cells([m], ("nll", "brier")),
        )
        for (value, name), m in lines.items()
    )
    header = (
        f"{field}: model" if several else field,
        "n",
        *titles(("accuracy", "confidence", "ece")),
        "beyond\nits floor",
        *titles(("nll", "brier")),
    )
    notes = []
    if large:
        most = max(sum(line[1] == name for line in large) for name in models)
        notes.append(
            f"Beyond its floor: p against calibrated at most {LEVEL} after Holm's correction over"
            f" {count(most, 'test')}{' of each model' if several else ''}."
        )
    if len(large) < len(lines):
        notes.append(
            f"Small: fewer than {SMALL} questions, too few to tell its ECE from that of a"
            " calibrated model; read it beside the floor."
        )
    return Table(header, rows, "\n".join(notes))


def write_comparison(folder: Path, bins: int) -> str:
    """Write comparison.md and comparison.csv beside comparison.json, whose ECEs have `bins`; return
    the text to print."""
    tasks = compare_evaluations(folder, bins)
    markdown = "\n\n".join(f"## {task.task}\n\n{task.show(as_markdown)}" for task in tasks)
    write_whole(folder / f"{COMPARISON}.md", markdown + "\n")
    write_whole(folder / f"{COMPARISON}.csv", comparison_csv(tasks))
    return "\n\n".join(f"{task.task}:\n\n{task.show(as_text)}" for task in tasks)


def compare_evaluations(folder: Path, bins: int) -> list[Findings]:
    """Compare the evaluated models in `folder` with the first of them, task by task.

    Only models that were asked the very same questions are subtracted from each other.
    """
    results = json.loads((folder / f"{COMPARISON}.json").read_text(encoding="utf-8"))
    hashes = {name: _data_hash(folder / name) for name in results}
    first, *others = results
    found = []
    for task in results[first]:
        same = [name for name in others if hashes[name][task] == hashes[first][task]]
        asked = {
            name: read_predictions(folder / name / "predictions" / task_file(task))
            for name in (first, *same)
        }
        numbers = {name: metrics[task] for name, metrics in results.items()}
        comparisons = compare([asked], pairs=[(name, first) for name in same], bins=bins)
        table = comparison_table([numbers])
        tables = {
            RESULTS: replace(table, header=("model", *table.header[1:])),
            CONFIDENCES: confidence_table(numbers),
            DIFFERENCES: difference_table(comparisons, questions(numbers[first])),
        } | _subgroups(numbers)
        remarks = [
            f"{short_name(name)}: no difference from {short_name(first)}, because it was not asked"
            " the same texts (another tokenizer may cut a passage elsewhere)."
            for name in others
            if name not in same
        ]
        found.append(
            Findings(
                task,
                numbers,
                tuple(comparisons),
                {caption: table for caption, table in tables.items() if table is not None},
                (*remarks, *at_floor([numbers]), *at_chance([numbers])),
            )
        )
    return found


def _data_hash(folder: Path) -> dict[str, str]:
    content = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    return content["provenance"]["data_hash"]


def comparison_csv(tasks: Sequence[Findings]) -> str:
    """Return a line for each task and model, with its difference from the first model."""
    lines = []
    for task in tasks:
        # The first comparison of a method is with SFT, or with the first model.
        against = {c.method: c for c in reversed(task.comparisons)}
        for name, m in task.results.items():
            line: dict[str, Any] = {"task": task.task, "model": name, "n": m["n"]}
            line |= {"n_questions": m["n_questions"]} if "n_questions" in m else {}
            line |= {key: m[key] for key in ("accuracy", "confidence", "ece")}
            line |= {f"ece_floor_{key}": value for key, value in m["ece_noise_floor"].items()}
            keys = ("ece_p_value", "brier", "nll", "auroc", "coverage_at_90")
            line |= {key: m[key] for key in keys}
            line["vocab_ece"] = m["vocab"]["ece"] if m.get("vocab") else None
            if name in against:
                line |= _difference_columns(against[name])
            lines.append(line)
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _difference_columns(comparison: Comparison) -> dict[str, Any]:
    columns: dict[str, Any] = {"minus": comparison.other}
    for metric, d in comparison.differences.items():
        name = metric.lower()
        columns[f"{name}_difference"] = d.difference
        if metric in WITH_INTERVAL:
            columns |= {f"{name}_low": d.low, f"{name}_high": d.high}
        columns[f"{name}_beyond_noise"] = metric in comparison.claimed
    return columns
