"""Numbers in words, and the alternative text of every figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cogcalib_jax.report.names import short_name

SCORED_BY = {
    "mean": "their mean log-probability per token",
    "sum": "their log-probability summed over tokens",
    "chars": "their log-probability per character",
    "pmi": "their log-probability minus the one without the question (pmi)",
}
"""The rules of `option_score`, as tables name them."""


def scoring_notes(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on each rule by which options were scored.

    results: numbers of eval.json. Options of one token need no words: all rules but pmi agree.
    """
    rules = [
        metrics["option_score"]
        for metrics in results
        if metrics.get("option_score") == "pmi" or not metrics.get("single_token_options", True)
    ]
    return [f"Options are scored by {SCORED_BY[rule]}." for rule in dict.fromkeys(rules)]


TEXT_WIDTH = 110
"""Columns of a paragraph on a terminal."""


def percent(value: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 question", "1,520 questions"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def questions(metrics: Mapping[str, Any]) -> int:
    """Return the number of different questions behind the numbers of a task in eval.json."""
    return metrics.get("n_questions", metrics["n"])


def is_at_chance(metrics: Mapping[str, Any]) -> bool:
    """Return whether the 95 % interval of the accuracy holds that of guessing, or lies below.

    metrics: the numbers of a task in eval.json. Guessing an open answer is never right.
    """
    return metrics["ci95"]["accuracy"][0] <= metrics.get("chance", 0.0)


def reliability_text(results: Mapping[str, Mapping[str, Any]], task: str) -> str:
    """Describe a reliability diagram; `results`: method -> numbers of the task in eval.json."""
    parts = []
    for key, m in results.items():
        floor = m["ece_noise_floor"]
        sure = "surer than right" if m["confidence"] > m["accuracy"] else "no surer than right"
        sure = "at chance" if is_at_chance(m) else f"{sure} on average"
        parts.append(
            f"{short_name(key)}: mean confidence {percent(m['confidence'])}, accuracy"
            f" {percent(m['accuracy'])}, so {sure}; ECE {m['ece']:.3f}, noise floor"
            f" {floor['mean']:.3f}, 95th percentile {floor['p95']:.3f}."
        )
    n = next(iter(results.values()))["n"]
    opening = f"Reliability diagrams, accuracy against confidence, on {count(n, 'question')} of"
    return " ".join([f"{opening} {task}.", *parts])


def histogram_text(
    means: Mapping[str, tuple[float | None, float | None]],
    results: Mapping[str, Mapping[str, Any]],
    task: str,
) -> str:
    """Describe histograms; `means`: method -> mean confidence of right and of wrong answers."""
    parts = []
    for key, (right, wrong) in means.items():
        m = results[key]
        correct = round(m["accuracy"] * m["n"])
        auroc = "undefined" if m["auroc"] is None else f"{m['auroc']:.3f}"
        parts.append(
            f"{short_name(key)}: {count(correct, 'right answer')}{_sure(right)},"
            f" {count(m['n'] - correct, 'wrong answer')}{_sure(wrong)}; AUROC {auroc}."
        )
    return " ".join([f"Confidence of right and of wrong answers to {task}.", *parts])


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f" with mean confidence {percent(confidence)}"


def gate_text(
    thresholds: Mapping[str, tuple[float, float]], shares: Mapping[str, tuple[float, float]]
) -> str:
    """Describe thresholds (nats) and known shares, each as method -> first and last value."""
    parts = [
        f"{short_name(key)}: threshold from {nats(first)} to {nats(last)}, known share from"
        f" {percent(shares[key][0])} to {percent(shares[key][1])}."
        for key, (first, last) in thresholds.items()
    ]
    opening = "Threshold, and share of the training examples that count as known, over steps."
    return " ".join([opening, *parts])


def nats(value: float) -> str:
    """Return a loss in nats, or "undefined"."""
    return "undefined" if math.isnan(value) else f"{value:.3f} nats"


def coverage_text(results: Mapping[str, Mapping[str, Any]], task: str) -> str:
    """Describe a coverage plot; `results`: method -> numbers of the task in eval.json."""
    parts = [f"{short_name(key)} {percent(m['coverage_at_90'])}" for key, m in results.items()]
    return (
        f"Accuracy against the share of the questions of {task} that is answered, the most"
        f" confident first. Share answered at 90 % accuracy: {', '.join(parts)}."
    )


def dynamics_text(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Describe training; `runs` holds (name of the method, lines of its dynamics.jsonl)."""
    parts = []
    for name, lines in runs:
        for data, seen in (("train", "trained on"), ("validation", "not trained on")):
            for group in ("known", "unknown"):
                chosen = [x for x in lines if x["data"] == data and x["group"] == group]
                if chosen:
                    first, last = chosen[0], chosen[-1]
                    parts.append(
                        f"{name}, {group} questions {seen}: accuracy from"
                        f" {percent(first['accuracy'])} to {percent(last['accuracy'])}, mean"
                        f" confidence from {percent(first['confidence'])} to"
                        f" {percent(last['confidence'])}."
                    )
    return " ".join(["Accuracy and mean confidence over training steps.", *parts])
