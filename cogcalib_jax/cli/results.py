"""The results of an evaluation: files with predictions and numbers, written and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.cli import run_folder
from cogcalib_jax.cli.eval_config import EvalConfig
from cogcalib_jax.console import say
from cogcalib_jax.data.example import EncodedSplit, question_clusters
from cogcalib_jax.distributed import from_main, in_main, main_only
from cogcalib_jax.errors import UserError, first_of
from cogcalib_jax.files import is_plain_name, refusing_damage
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.evaluate import (
    MAIN,
    data_hash,
    open_metrics,
    provenance,
    question_fields,
    require_fields,
    subgroups,
    task_metrics,
    write_json,
    write_open_predictions,
)
from cogcalib_jax.inference.open_ended import OpenPredictions
from cogcalib_jax.inference.predictions import Predictions, held_as, write_predictions
from cogcalib_jax.inference.scored_rows import ConfidenceRows, read_scored
from cogcalib_jax.metrics import summarize
from cogcalib_jax.models.config import Quantise
from cogcalib_jax.training.config import require_same_identity

FILE = "eval.json"
PARTIAL = "eval.partial.json"
"""the finished tasks of an evaluation that is not finished"""

Predict = Callable[[EncodedSplit], Predictions | OpenPredictions]


def write_results(
    folder: Path,
    sets: Mapping[str, EncodedSplit],
    predict: Predict,
    config: EvaluationConfig,
    seed: int,
    command: str,
    *,
    model: str,
    by: Sequence[str] = (),
    weights: Mapping[str, str | None] | None = None,
    vocabulary: bool = True,
    quantise: Quantise = "none",
    started: Callable[[str], None] = lambda task: None,
) -> None:
    """Score every set of test questions, and write predictions/TASK.jsonl and eval.json.

    Finished tasks of an interrupted evaluation are kept.

    Args:
        model: the model's name in messages.
        by: fields whose values get numbers of their own.
        weights: hashes of the model's files, which are stored.
        vocabulary: whether `predict` gives probabilities over the whole vocabulary.
        quantise: the form in which the model's base is held, which is stored.
        started: gets the name of each task before it is scored.

    Raises:
        UserError: finished tasks with other questions or weights; as `require_numbers`.
    """
    hashes = {task: data_hash(encoded) for task, encoded in sets.items()}
    results = finished_tasks(folder / PARTIAL, hashes, weights)
    for task, encoded in sets.items():
        if task in results:
            continue
        started(task)
        predictions = predict(encoded)
        require_numbers(predictions, encoded, model)
        predictions = replace(predictions, quantise=quantise)
        results[task] = _score(folder, task, encoded, predictions, config, seed, by, vocabulary)
        made_from = {"data_hash": {name: hashes[name] for name in results}, "weights": weights}
        write_json(folder / PARTIAL, results | {"provenance": made_from})
    (protocol,) = {encoded.protocol for encoded in sets.values()}
    made = provenance(seed, hashes, protocol) | ({"weights": dict(weights)} if weights else {})
    made |= held_as(quantise)
    write_json(folder / FILE, results | {"provenance": made | {"command": command}})
    main_only((folder / PARTIAL).unlink)(missing_ok=True)


def _score(
    folder: Path,
    task: str,
    encoded: EncodedSplit,
    predictions: Predictions | OpenPredictions,
    config: EvaluationConfig,
    seed: int,
    by: Sequence[str],
    vocabulary: bool,
) -> dict[str, Any]:
    """Write the predictions of one task and return its numbers."""
    file = folder / "predictions" / f"{task}.jsonl"
    clusters = question_clusters(e.example for e in encoded)
    if isinstance(predictions, OpenPredictions):
        write_open_predictions(file, predictions, encoded)
        metrics = open_metrics(predictions, config, seed, clusters)
        part = _open_part(predictions, seed, clusters)
    else:
        write_predictions(file, predictions, encoded)
        exclusive = vocabulary and encoded.exclusive_options
        metrics = task_metrics(predictions, config, seed, exclusive, clusters)
        if not vocabulary:
            metrics["gold_nll"] = None
        if predictions.option_score == "pmi":
            metrics["pmi_prefix_ids"] = list(encoded.pmi_prefix_ids)
        part = _option_part(predictions, seed, exclusive, clusters)
    if by:
        metrics["by"] = subgroups(by, question_fields(encoded), config, part)
    return {"split": "test"} | metrics


def require_numbers(
    predictions: Predictions | OpenPredictions, encoded: EncodedSplit, model: str
) -> None:
    """Raise UserError naming `model` and the questions it has no probabilities for."""
    if isinstance(predictions, OpenPredictions):
        values = predictions.answers.logprobs + predictions.reference_logprobs
    else:
        # A calibrator refuses such scores, without the names of the questions.
        values = replace(predictions, calibrator=None).probs.sum(-1)
    lost = [e.id for e, value in zip(encoded, values, strict=True) if np.isnan(value)]
    if lost:
        raise UserError(
            f"{model}: gives no probabilities (not a number) for {len(lost)} of {len(encoded)}"
            f" questions: {first_of(lost)}; weights are damaged, or too large for --model.dtype:"
            " fetch them again, or use float32"
        )


Part = Callable[[EvaluationConfig, np.ndarray], dict[str, Any]]
"""(settings, indices of rows) -> the numbers of these rows"""


def _option_part(
    predictions: Predictions, seed: int, exclusive: bool, clusters: np.ndarray
) -> Part:
    rows = [predictions.probs, predictions.mask, predictions.answers]
    if exclusive:
        rows.append(predictions.vocab_probs)

    def part(config: EvaluationConfig, chosen: np.ndarray) -> dict[str, Any]:
        return summarize(
            *(values[chosen] for values in rows),
            clusters=clusters[chosen],
            bins=config.bins,
            resamples=config.resamples,
            seed=seed,
        )

    return part


def _open_part(predictions: OpenPredictions, seed: int, clusters: np.ndarray) -> Part:
    rows = ConfidenceRows(predictions.confidences[MAIN], predictions.answers.exact_match, clusters)
    return lambda config, chosen: rows.metrics(seed, config, chosen)


def finished_tasks(
    file: Path, hashes: Mapping[str, str], weights: Mapping[str, str | None] | None
) -> dict[str, Any]:
    """Return task -> numbers of an evaluation in `file`; {} if there is none.

    hashes: task -> hash of its questions.

    Raises:
        UserError: results of other questions or another model.
    """
    if not from_main(file.is_file):
        return {}
    results = _read(file)
    made = results.pop("provenance")
    stored = {"data_hash": made["data_hash"]}
    wanted = {"data_hash": {task: hashes.get(task) for task in made["data_hash"]}}
    if weights is not None:
        stored |= {"weights": made.get("weights")}
        wanted |= {"weights": dict(weights)}
    require_same_identity(file.parent, stored, wanted)
    return results


def has_results(folder: Path) -> bool:
    """Return whether `folder` holds a finished evaluation."""
    return from_main((folder / FILE).is_file)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return task -> metrics of a finished evaluation."""
    results = _read(folder / FILE)
    return {task: metrics for task, metrics in results.items() if task != "provenance"}


@in_main
def _read(file: Path) -> dict[str, Any]:
    with refusing_damage(file, "remove it, and its questions are scored again"):
        results = json.loads(file.read_text(encoding="utf-8"))
        results["provenance"]["data_hash"].items()
    return results


@run_folder.holding_locks()
def score_predictions(config: EvalConfig, argv: list[str]) -> Path:
    """Score the file `config.predictions` without a model, and return the folder of the results,
    where its name stands for the task and `argv` is stored."""
    assert config.predictions is not None
    file = Path(config.predictions)
    task = file.stem
    if task == "provenance" or not is_plain_name(task):
        raise UserError(
            f"{file}: its name becomes the name of the task, and {task!r} cannot be one; rename the"
            " file"
        )
    folder = run_folder.choose_folder(config.run_dir, "eval", resume=False)
    scored = read_scored(file)
    require_fields(config.by, {task: scored.fields})
    for note in scored.notes:
        say(f"   note: {note}")
    metrics = {"split": "file"} | scored.scores.metrics(config.seed, config.evaluation)
    metrics |= scored.scoring
    if config.by:
        part = partial(scored.scores.metrics, config.seed)
        metrics["by"] = subgroups(config.by, scored.fields, config.evaluation, part)
    run_folder.make_folder(folder)
    command = run_folder.original_command(folder, "eval.py", argv)
    run_folder.write_config(folder, config)
    made = provenance(config.seed, {task: hashlib.sha256(file.read_bytes()).hexdigest()})
    # The protocol of predictions made elsewhere is not known.
    del made["protocol"]
    write_json(folder / FILE, {task: metrics, "provenance": made | {"command": command}})
    return folder
