"""Metrics of a split's predictions, and the files in which they are kept."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.data.example import Encoded
from cogcalib_jax.distributed import main_only
from cogcalib_jax.files import write_whole
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics import summarize

VERSIONED = ("cogcalib-jax", "jax", "flax", "optax", "transformers", "numpy")


def task_metrics(
    predictions: Predictions,
    config: EvaluationConfig,
    seed: int,
    exclusive: bool,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """Everything eval.json says about one task, from its predictions alone.

    exclusive: whether options exclude one another over the vocabulary (`EncodedSplit`); without
    that nothing can be said of them and "all else", and `vocab` is None.
    clusters: [n] which question each row asks (`data.repeats`); None: each its own.
    """
    metrics = summarize(
        predictions.probs,
        predictions.mask,
        predictions.answers,
        predictions.vocab_probs if exclusive else None,
        clusters=clusters,
        bins=config.bins,
        resamples=config.resamples,
        seed=seed,
    )
    metrics["gold_nll"] = float(predictions.gold_nll.mean())
    metrics["option_score"] = predictions.option_score
    metrics["single_token_options"] = bool(predictions.tokens.max() <= 1)
    if predictions.temperature != 1.0:
        metrics["temperature"] = predictions.temperature
    if predictions.calibrator is not None:
        metrics["calibrator"] = CALIBRATORS.spec(predictions.calibrator)
    if predictions.averaged is not None:
        metrics[predictions.averaged.over] = predictions.averaged.count
    return metrics


def data_hash(encoded: Sequence[Encoded]) -> str:
    """SHA-256 over ids, texts and answers: equal hashes mean the very same questions."""
    digest = hashlib.sha256()
    for e in encoded:
        asked = [e.id, e.prompt, e.completions, e.answer, *e.example.aliases]
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()


def provenance(seed: int, data: dict[str, str], protocol: str = "clean") -> dict[str, Any]:
    """What is needed to say where numbers came from; no times, no host or user names."""
    return {
        "versions": {name: version(name) for name in VERSIONED},
        "python": platform.python_version(),
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "data_hash": data,
        "seed": seed,
        "protocol": protocol,
    }


def _commit() -> str | None:
    """Commit of the source tree this package runs from, None outside a git checkout."""
    result = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


@main_only
def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `path` whole or not at all; NaN is refused (a metric without a value is null)."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
