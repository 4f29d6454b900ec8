"""Training over the seeds of a condition: accuracy and confidence of known and unknown questions.

An interval is Student's t over seeds: each has its own training noise and, in the world, its own
questions, so that the spread between seeds holds both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cogcalib_jax.metrics.significance import student_t
from cogcalib_jax.report.load_run import Method, Run
from cogcalib_jax.report.names import SAMPLED, short_name
from cogcalib_jax.report.tables import Table, cell
from cogcalib_jax.report.text import count
from cogcalib_jax.report.training_plots import DATA_WORDS

GROUPS = ("known", "unknown")
MOMENTS = ("start", "best epoch", "end")

Line = Mapping[str, Any]
"""Of dynamics.jsonl."""


def followed_methods(runs: Mapping[int, Run], only: Sequence[str]) -> dict[str, list[Method]]:
    """Method -> itself in every seed: those whose training was followed in all of them.

    only: keys of the methods wanted; none for all. MC-dropout was followed without its passes,
    and that would be another model.
    """
    found: dict[str, list[Method]] = {}
    for run in runs.values():
        for method in run.methods:
            wanted = method.key in only if only else method.key not in SAMPLED
            if wanted and method.dynamics:
                found.setdefault(method.key, []).append(method)
    return {key: seeds for key, seeds in found.items() if len(seeds) == len(runs)}


def seed_means(seeds: Sequence[Method]) -> list[dict[str, Any]] | None:
    """Lines like those of dynamics.jsonl with the means over seeds, and `accuracy_low` to
    `confidence_high`, the lowest and highest seed.

    The n-th validation of one seed is averaged with that of another: where the world decides how
    many rows there are, epochs differ in their updates. None where seeds were not validated
    equally often.
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


def training_tables(runs: Mapping[int, Run], only: Sequence[str] = ()) -> dict[str, Table]:
    """Caption -> one method at the start, at its best epoch and at the end."""
    return {
        f"{short_name(key)} over training": _training_table(seeds)
        for key, seeds in followed_methods(runs, only).items()
    }


def _training_table(seeds: Sequence[Method]) -> Table:
    rows = []
    kinds = {line["data"] for method in seeds for line in method.dynamics}
    for data in ("train", "validation"):
        for group in GROUPS:
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
    """Mean of `[seeds]` shares as percentage points, with its interval where there are several."""
    mean = 100 * values.mean()
    if len(values) == 1:
        return f"{mean:+.1f}"
    low, high, _ = student_t(100 * values)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _moments(method: Method, data: str, group: str) -> tuple[Line, Line, Line] | None:
    """At the start, the best epoch and the end; None where these questions were not followed."""
    lines = _lines_of(method, data, group)
    validations = [x for x in method.steps if x.get("phase") == "validation"][1:]
    if not lines or not validations:
        return None
    best = min(validations, key=lambda line: line["nll"])["step"]
    return lines[0], next(line for line in lines if line["step"] == best), lines[-1]


def _lines_of(method: Method, data: str, group: str) -> list[Line]:
    return [x for x in method.dynamics if x["data"] == data and x["group"] == group]
