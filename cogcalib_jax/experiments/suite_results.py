"""What a suite found: one tidy table of numbers, and Markdown tables that say how sure it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cogcalib_jax.experiments.suite import Cell, SuiteConfig
from cogcalib_jax.reporting.names import long_name, short_name
from cogcalib_jax.reporting.records import Predictions, Run, read_run
from cogcalib_jax.reporting.report import seeds_report
from cogcalib_jax.reporting.tables import Table, as_markdown
from cogcalib_jax.reporting.verdict import compare, difference_table

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


def tidy_rows(suite: str, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row a cell, method and task: its keys, then its numbers (None where undefined)."""
    rows = []
    for cell in cells:
        results = json.loads((cell.folder / "comparison.json").read_text(encoding="utf-8"))
        for method, tasks in results.items():
            for task, metrics in tasks.items():
                floor = metrics["ece_noise_floor"]
                vocab = metrics.get("vocab") or {}
                rows.append(
                    {
                        "suite": suite,
                        "condition": cell.condition,
                        "seed": cell.seed,
                        "method": method,
                        "task": task,
                        **{name: metrics.get(name) for name in NUMBERS},
                        "ece_floor_mean": floor["mean"],
                        "ece_floor_p95": floor["p95"],
                        **{f"vocab_{name}": vocab.get(name) for name in VOCAB_NUMBERS},
                    }
                )
    return rows


def write_results(config: SuiteConfig, name: str, cells: Sequence[Cell], folder: Path) -> str:
    """results.jsonl, results.csv and results.md of the finished cells; returns the Markdown."""
    rows = tidy_rows(name, cells)
    with (folder / "results.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = markdown(config, name, cells, rows)
    (folder / "results.md").write_text(text, encoding="utf-8")
    return text


def markdown(
    config: SuiteConfig, name: str, cells: Sequence[Cell], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Every condition's tables over its seeds; before them, conditions against the first."""
    parts = [f"# {name}", config.question] if config.question else [f"# {name}"]
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    if len(conditions) > 1:
        parts += _across(config, cells, rows, conditions)
    for condition in conditions:
        folders = [cell.folder for cell in cells if cell.condition == condition]
        parts.append(f"## {condition}")
        if len(folders) > 1:
            parts.append(seeds_report(folders).strip())
        else:
            parts.append(f"One seed: see {folders[0] / 'report.html'}.")
    return "\n\n".join(parts) + "\n"


def _across(
    config: SuiteConfig,
    cells: Sequence[Cell],
    rows: Sequence[Mapping[str, Any]],
    conditions: Sequence[str],
) -> list[str]:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    parts = []
    for task in tasks:
        parts += [f"## Conditions side by side: {task}", as_markdown(_side_by_side(rows, task))]
    runs = {cell: read_run(cell.folder) for cell in cells} if config.across else {}
    for method in config.across:
        for task in tasks:
            table = _differences(method, task, runs, conditions)
            if table is not None:
                title = f"### {short_name(method)}: conditions against {conditions[0]}, {task}"
                parts += [title, as_markdown(table)]
    return parts


def _side_by_side(rows: Sequence[Mapping[str, Any]], task: str) -> Table:
    """A line a method and condition: mean ± standard deviation over seeds."""
    shown = ("accuracy", "confidence", "ece", "ece_floor_mean", "nll", "brier", "auroc")
    lines = []
    chosen = [row for row in rows if row["task"] == task]
    for method in dict.fromkeys(row["method"] for row in chosen):
        for condition in dict.fromkeys(row["condition"] for row in chosen):
            those = [r for r in chosen if (r["method"], r["condition"]) == (method, condition)]
            if those:
                cells = [mean_sd([row[name] for row in those]) for name in shown]
                lines.append((long_name(method), condition, str(len(those)), *cells))
    header = ("method", "condition", "seeds", *(name.replace("_", " ") for name in shown))
    return Table(header, tuple(lines), "Mean ± standard deviation over seeds.")


def _differences(
    method: str, task: str, runs: Mapping[Cell, Run], conditions: Sequence[str]
) -> Table | None:
    """Paired differences of one method under each condition and the first, same questions."""
    by_seed: dict[int, dict[str, Predictions]] = {}
    for cell, run in runs.items():
        for one in run.methods:
            if one.key == method and task in one.predictions:
                by_seed.setdefault(cell.seed, {})[cell.condition] = one.predictions[task]
    present = [c for c in conditions if all(c in seed for seed in by_seed.values())]
    whole = [{c: seed[c] for c in present} for seed in by_seed.values()]
    if not whole or len(present) < 2 or present[0] != conditions[0]:
        return None
    if any(seed[c].ids != seed[present[0]].ids for seed in whole for c in present):
        return None
    pairs = [(condition, present[0]) for condition in present[1:]]
    n = len(whole[0][present[0]].ids)
    return difference_table(compare(whole, pairs=pairs), n)


def mean_sd(values: Sequence[float | None]) -> str:
    """`0.123 ± 0.004` over seeds; undefined values are left out."""
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {stdev(known):.3f}" if len(known) > 1 else ""
    return f"{mean(known):.3f}{spread}"
