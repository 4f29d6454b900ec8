"""The pictures of a run or comparison: drawn from its records, saved, and said in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.metrics import risk_coverage
from cogcalib_jax.report.canvas import project_style, save
from cogcalib_jax.report.diagram import reliability_panel
from cogcalib_jax.report.findings import results_of
from cogcalib_jax.report.html import Picture
from cogcalib_jax.report.load_run import Method, Run
from cogcalib_jax.report.names import (
    REFERENCES,
    SAMPLED,
    Look,
    is_tempered,
    looks,
    short_name,
)
from cogcalib_jax.report.plots import (
    Answers,
    Coverage,
    coverage_figure,
    histogram_figure,
    reliability_figure,
)
from cogcalib_jax.report.text import (
    coverage_text,
    dynamics_text,
    gate_text,
    histogram_text,
    reliability_text,
)
from cogcalib_jax.report.training_plots import Gate, dynamics_figure, gate_figure
from cogcalib_jax.report.verdict import TEMPERED_SFT

TARGET = 0.9
"""Accuracy of the coverage plot's line; eval.json has the share answered at 90 %."""
BLOCKS = 12
"""Points of the known share: a single batch of 8 or 32 says little."""


def task_pictures(run: Run, task: str) -> list[Picture]:
    """Draw and save the pictures of a task; those of the first task have the plain names."""
    suffix = "" if task == run.tasks[0] else "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", task)
    results = results_of(run, task)
    n = results[run.methods[0].key]["n"]
    shown = _shown(run)
    style = looks(m.key for m in shown)
    results = {m.key: results[m.key] for m in shown}
    with project_style():
        panels = [_answers(m, task, style[m.key], run.bins) for m in shown]
        path = _place(run, f"reliability{suffix}")
        save(reliability_figure(panels, task, n), path)
        pictures = [
            Picture(
                path,
                reliability_text(results, task),
                "Bars: accuracy of the answers given with that confidence. A calibrated model's"
                " bars end on the dashed line, up to chance: within the grey band in 90 % of"
                " cases. Hatched: how far off they are. Below: how many questions.",
                f"predictions/{task}.jsonl",
            )
        ]
        path = _place(run, f"confidence{suffix}")
        save(histogram_figure(panels, task, n), path)
        means = {
            m.key: (panel.sure_right, panel.sure_wrong)
            for m, panel in zip(shown, panels, strict=True)
        }
        pictures.append(
            Picture(
                path,
                histogram_text(means, results, task),
                "Confidence that knows right from wrong puts the two apart: the right answers far"
                " to the right, the wrong ones far to the left (an AUROC near 1).",
                f"predictions/{task}.jsonl",
            )
        )
        path = _place(run, f"coverage{suffix}")
        save(
            coverage_figure([_coverage(m, task, style[m.key]) for m in shown], task, n, TARGET),
            path,
        )
        pictures.append(
            Picture(
                path,
                coverage_text(results, task),
                "What confidence is good for: answer only the questions above a cut-off. The share"
                " at 90 % accuracy is read off the same questions, so it flatters every method.",
                f"predictions/{task}.jsonl",
            )
        )
    return pictures


def _shown(run: Run) -> list[Method]:
    """The rows with panels and lines of their own: with every temperature they would be too many.

    That of SFT stays, which is the rival of all others. A run of one method shows both its rows.
    """
    few = len(run.methods) <= 2
    return [
        m
        for m in run.methods
        if few or m.key == TEMPERED_SFT or not (m.key in REFERENCES or is_tempered(m.key))
    ]


def training_pictures(run: Run) -> list[Picture]:
    """How it was trained, where that was logged."""
    # MC-dropout's training was followed without its passes: that would be another model.
    trained = [m for m in run.methods if m.key not in SAMPLED]
    style = looks(m.key for m in run.methods)
    pictures = []
    with project_style():
        logged = [(short_name(m.key), m.dynamics) for m in trained if m.dynamics]
        if logged:
            path = _place(run, "dynamics")
            save(dynamics_figure(logged, run.style_end), path)
            pictures.append(
                Picture(
                    path,
                    dynamics_text(logged),
                    "Known and unknown refer to the model before it was fine-tuned. The mechanism"
                    " to look for: accuracy (solid) levels off while confidence (dashed) goes on.",
                    "dynamics.jsonl",
                )
            )
        gates = {m.key: gate for m in trained if (gate := _gate(m, style[m.key])) is not None}
        if gates:
            last = max(line["step"] for m in trained for line in m.steps)
            path = _place(run, "threshold")
            save(gate_figure(list(gates.values()), last, run.style_end), path)
            pictures.append(
                Picture(
                    path,
                    gate_text(*_ends(gates)),
                    "The threshold is fitted on questions that are not trained on; the share is of"
                    " those that are, and grows as they are memorised."
                    + (" Plain fine-tuning logs both and uses neither." if "sft" in gates else ""),
                    "metrics.jsonl",
                )
            )
    return pictures


def _place(run: Run, name: str) -> Path:
    return run.folder / "plots" / f"{name}.png"


def _answers(method: Method, task: str, look: Look, bins: int) -> Answers:
    p = method.predictions[task]
    return reliability_panel(
        method.key, look, p.confidence, p.correct, method.metrics[task], bins, p.clusters
    )


def _coverage(method: Method, task: str, look: Look) -> Coverage:
    """The curve from 20 answers on (5 % of a small test set): with fewer it only jumps."""
    p = method.predictions[task]
    n = len(p.ids)
    curve = risk_coverage(p.confidence, p.correct)
    shown = curve.coverage * n >= min(20, n // 20)
    return Coverage(
        name=short_name(method.key),
        look=look,
        share=curve.coverage[shown],
        accuracy=1 - curve.risk[shown],
        at_target=method.metrics[task]["coverage_at_90"],
    )


def _gate(method: Method, look: Look) -> Gate | None:
    """None where no threshold or no update of fine-tuning was logged."""
    fits = [line for line in method.steps if line.get("phase") == "refit"]
    updates = [line for line in method.steps if line.get("phase") == "finetune"]
    if not fits or not updates:
        return None
    values: list[Any] = [(line["step"], line["threshold"]) for line in fits]
    logged = np.array([(line["step"], line["known_fraction"]) for line in updates], float)
    blocks = np.array_split(logged, min(BLOCKS, len(logged)))
    return Gate(
        name=short_name(method.key),
        look=look,
        threshold=np.array(values, float),  # None becomes NaN
        known=np.array([block.mean(0) for block in blocks]),
    )


def _ends(
    gates: Mapping[str, Gate],
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    def ends(values: np.ndarray) -> tuple[float, float]:
        return float(values[0, 1]), float(values[-1, 1])

    thresholds = {key: ends(gate.threshold) for key, gate in gates.items()}
    return thresholds, {key: ends(gate.known) for key, gate in gates.items()}
