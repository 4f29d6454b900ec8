"""What a suite found: one tidy table of numbers, and Markdown tables that say how sure it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cogcalib_jax.configlib import to_yaml
from cogcalib_jax.files import whole_file, write_whole
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.studies.page import write_suite_report
from cogcalib_jax.studies.study_tables import Condition, Study, study_findings, study_markdown
from cogcalib_jax.studies.suite import Cell, SuiteConfig, parse_condition

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


def read_study(
    config: SuiteConfig,
    name: str,
    command: str,
    cells: Sequence[Cell],
    failed: Sequence[Cell],
    folder: Path,
) -> Study:
    """The finished cells as the report sees them, conditions in the suite's order."""
    conditions = []
    for entry in config.conditions:
        condition, words = parse_condition(entry)
        runs = {c.seed: read_run(c.folder) for c in cells if c.condition == condition}
        settings = zip(words[::2], words[1::2], strict=True)
        if runs:
            changed = tuple(f"{path.removeprefix('--')}={value}" for path, value in settings)
            conditions.append(Condition(condition, changed, runs))
    return Study(
        name=name,
        question=config.question,
        folder=folder,
        preset=config.preset,
        command=command,
        configuration=to_yaml(config),
        across=config.across,
        conditions=tuple(conditions),
        followed=config.followed,
        failed=tuple(cell.title for cell in failed),
    )


def write_results(study: Study, cells: Sequence[Cell]) -> str:
    """results.jsonl, results.csv, results.md and report.html of the finished cells.

    Returns the Markdown.
    """
    rows = tidy_rows(study.name, cells)
    with whole_file(study.folder / "results.jsonl") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with whole_file(study.folder / "results.csv") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = study_findings(study)
    text = study_markdown(study, found)
    write_whole(study.folder / "results.md", text)
    write_suite_report(study, found)
    return text


def mean_sd(values: Sequence[float | None]) -> str:
    """`0.123 ± 0.004` over seeds; undefined values are left out."""
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {stdev(known):.3f}" if len(known) > 1 else ""
    return f"{mean(known):.3f}{spread}"
