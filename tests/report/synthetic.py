"""Run folders as training leaves them, from a recipe of confidences instead of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.metrics import summarize
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.studies.suite_results import Condition, Study

CONFIG = """\
seed: {seed}
method:
  term: {term}
  gate: {gate}
  weight: 0.5
training:
  keep: last
evaluation:
  bins: 15
"""


def option_probs(
    n: int, sharpness: float, *, options: int = 8, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, options] and answers [n]; sharpness 1 is calibrated, 2 is over-confident.

    `noise` is the standard deviation of what a method adds to every score at random.

    The same seed gives the same questions with the same answers whatever the sharpness.
    """
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, options)) * rng.gamma(1.2, 1.6, size=(n, 1))
    true = _softmax(scores)
    answers = (true.cumsum(1) > rng.random((n, 1))).argmax(1)
    return _softmax(sharpness * scores + noise * rng.normal(size=scores.shape)), answers


def _softmax(scores: np.ndarray) -> np.ndarray:
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def write_evaluation(
    folder: Path, task: str, probs: np.ndarray, answers: np.ndarray, **row: Any
) -> dict[str, Any]:
    """Predictions, eval.json and config.yaml of one method; returns the task's numbers."""
    predictions = folder / "predictions" / f"{task}.jsonl"
    predictions.parent.mkdir(parents=True, exist_ok=True)
    with predictions.open("w", encoding="utf-8") as file:
        for i, (p, answer) in enumerate(zip(probs, answers, strict=True)):
            best = int(p.argmax())
            line = {
                "id": f"q{i}",
                "prompt": f"question {i} answer",
                "completions": [f" {k}" for k in range(len(p))],
                "answer": int(answer),
                "prediction": best,
                "option_logprobs": np.log(p * 0.98).tolist(),
                "option_probs": p.tolist(),
                "nll": float(-np.log(p[answer])),
                "confidence": float(p[best]),
                "vocab_confidence": float(p[best] * 0.98),
            }
            file.write(json.dumps(line | row) + "\n")
    mask = np.full(probs.shape, True)
    metrics = summarize(probs, mask, answers, probs * 0.98, resamples=100)
    metrics = {"split": "test"} | metrics
    provenance = {
        "versions": {"jax": "0.10.2"},
        "commit": "0123abc",
        "device": "cpu",
        "data_hash": {"test": "ab12"},
        "seed": 0,
        "protocol": "clean",
    }
    (folder / "eval.json").write_text(json.dumps({task: metrics, "provenance": provenance}))
    return metrics


def write_training(folder: Path, *, overconfidence: float, style: int = 60, end: int = 330) -> None:
    """metrics.jsonl and dynamics.jsonl with the shapes seen in the world."""
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(10, style + 1, 10):
            file.write(json.dumps({"step": step, "phase": "style", "loss": 2.0}) + "\n")
        for step in range(style, end + 1, 10):
            done = (step - style) / (end - style)
            if step > style:
                known = 0.45 + 0.4 * done * overconfidence / (1 + overconfidence)
                line = {"step": step, "phase": "finetune", "loss": 1.0, "ce": 1.5 - done}
                line |= {"known_fraction": known, "lr": 1e-3, "examples_per_s": 40.0}
                file.write(json.dumps(line) + "\n")
            if (step - style) % 30 == 0:
                fit = 1.6 - 0.4 * done / (1 + overconfidence)
                line = {"step": step, "phase": "refit", "threshold": fit, "auroc": 0.99}
                file.write(json.dumps(line) + "\n")
                nll = 0.9 + (done - 0.4) ** 2
                line = {"step": step, "phase": "validation", "epoch": 10 * done, "nll": nll}
                file.write(json.dumps(line) + "\n")
    goal = {
        ("train", "known"): (0.86, 0.93, 0.80),
        ("train", "unknown"): (0.10, 0.55, 0.20),
        ("validation", "known"): (0.80, 0.76, 0.74),
        ("validation", "unknown"): (0.12, 0.13, 0.20),
    }
    with (folder / "dynamics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(style, end + 1, (end - style) // 9):
            done = 1 - np.exp(-3 * (step - style) / (end - style))
            for (data, group), (first, last, sure) in goal.items():
                accuracy = first + (last - first) * done
                top = min(0.97, accuracy + overconfidence * (0.15 if group == "known" else 0.3))
                line = {
                    "step": step,
                    "data": data,
                    "group": group,
                    "n": 300,
                    "accuracy": accuracy,
                    "confidence": sure + (top - sure) * done,
                    "nll": 1.0,
                }
                file.write(json.dumps(line) + "\n")


def write_config(folder: Path, term: str, gate: str, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(term=term, gate=gate, seed=seed))


def write_comparison(
    folder: Path, sharpness: dict[str, float], *, n: int = 1520, task: str = "world", seed: int = 0
) -> dict[str, Any]:
    """A comparison folder; `sharpness` gives every method its own over-confidence."""
    write_config(folder, "none", "all", seed)
    table = {}
    for key, value in sharpness.items():
        probs, answers = option_probs(n, value, seed=seed)
        table[key] = {task: write_evaluation(folder / key, task, probs, answers)}
        if "_" not in key:
            write_training(folder / key, overconfidence=value - 1)
    (folder / "comparison.json").write_text(json.dumps(table))
    return table


def write_study(
    folder: Path,
    *,
    shares: tuple[float, ...] = (0.0, 0.5, 1.0),
    seeds: tuple[int, ...] = (0, 1),
    n: int = 60,
    methods: tuple[str, ...] = ("sft", "cols"),
    command: str = "cogcalib study ratios.yaml",
) -> Study:
    """A study whose conditions are known shares; over-confidence grows with them."""
    conditions = []
    for share in shares:
        runs = {}
        for seed in seeds:
            place = folder / f"share-{share}" / f"seed-{seed}"
            sharpness = {key: 1.2 + share * (2 - i) for i, key in enumerate(methods)}
            write_comparison(place, sharpness, n=n, seed=seed)
            with (place / "config.yaml").open("a") as file:
                file.write(f"composition:\n  known_share: {share}\n")
            runs[seed] = read_run(place)
        settings = (f"composition.known_share={share}", "composition.by=world")
        conditions.append(Condition(f"{share:.0%} known", settings, runs))
    return Study(
        name="ratios",
        question="Does known data harm?",
        folder=folder,
        preset="configs/world.yaml",
        command=command,
        configuration="preset: configs/world.yaml\n",
        across=("sft",),
        conditions=tuple(conditions),
    )
