"""What every evaluation leaves in its folder, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.evaluation.config import EvaluationConfig
from cogcalib_jax.evaluation.evaluate import data_hash, provenance, task_metrics, write_json
from cogcalib_jax.evaluation.predictions import Predictions, write_predictions

FILE = "eval.json"


def write_results(
    folder: Path,
    sets: Mapping[str, EncodedSplit],
    predict: Callable[[EncodedSplit], Predictions],
    config: EvaluationConfig,
    seed: int,
    command: str,
) -> None:
    """Score every set of test questions; predictions/TASK.jsonl, and last eval.json.

    sets: task -> questions. command: the command line that asked for it.
    """
    results: dict[str, Any] = {}
    for task, encoded in sets.items():
        predictions = predict(encoded)
        write_predictions(folder / "predictions" / f"{task}.jsonl", predictions, encoded)
        results[task] = {"split": "test"} | task_metrics(predictions, config, seed)
    hashes = {task: data_hash(encoded) for task, encoded in sets.items()}
    results["provenance"] = provenance(seed, hashes) | {"command": command}
    write_json(folder / FILE, results)


def has_results(folder: Path) -> bool:
    """Whether an evaluation of `folder` was finished."""
    return (folder / FILE).is_file()


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Task -> metrics of a finished evaluation."""
    results = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return {task: metrics for task, metrics in results.items() if task != "provenance"}
