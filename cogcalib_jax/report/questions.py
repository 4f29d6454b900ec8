"""The questions of a task one by one: each method's answers, confidences and mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogcalib_jax.report.load_run import Run
from cogcalib_jax.report.names import COMMONEST, REFERENCES, short_name
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import count, percent

MOST = 2000
"""questions on a page"""
MISTAKES = 20
"""rows of a table that needs no script"""
LONGEST = 600
"""characters of a question"""


@dataclass(frozen=True)
class Questions:
    """The questions as the page's script reads them, and as tables without it."""

    data: Mapping[str, Any]
    """`questions`: id, text and right answer of each; `answers`: method -> [given, right,
    confidence] of each"""
    surest_mistakes: Mapping[str, Table]
    """method -> its wrong answers, the surest first"""
    note: str


def browse_questions(run: Run, task: str) -> Questions:
    """Return the questions of a task; of more than `MOST`, those with the surest mistakes."""
    first = run.methods[0].predictions[task]
    predictions = {
        short_name(m.key): m.predictions[task]
        for m in sorted(run.methods, key=lambda m: m.key in REFERENCES)
        if m.key != COMMONEST and m.predictions[task].ids == first.ids
    }
    mistakes = {name: np.where(p.correct, -1.0, p.confidence) for name, p in predictions.items()}
    n = len(first.ids)
    worst = np.max(list(mistakes.values()), axis=0)
    shown = np.sort(np.argsort(-worst, kind="stable")[:MOST])
    asked = [
        {"id": first.ids[i], "text": first.texts[i][:LONGEST], "answer": first.expected[i]}
        for i in shown
    ]
    answers = {
        name: [[p.given[i], bool(p.correct[i]), round(float(p.confidence[i]), 4)] for i in shown]
        for name, p in predictions.items()
    }
    tables = {}
    for name, p in predictions.items():
        surest = np.argsort(-mistakes[name], kind="stable")[:MISTAKES]
        rows = tuple(
            (p.ids[i], p.texts[i][:LONGEST], p.given[i], p.expected[i], percent(p.confidence[i]))
            for i in surest
            if not p.correct[i]
        )
        if rows:
            header = ("id", "question", "answer given", "right answer", "confidence")
            tables[name] = Table(header, rows, "")
    note = ""
    if n > MOST:
        note = (
            f"{count(MOST, 'question')} of {n:,} are on this page: those that some method got most"
            f" surely wrong. predictions/{task}.jsonl has them all."
        )
    return Questions({"questions": asked, "answers": answers}, tables, note)
