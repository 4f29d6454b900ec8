"""Measure how quantising the world's base changes its answers, before and after fine-tuning.

    python -m benchmarks.quantised_bases --out runs/quantised.jsonl --seeds 0,100,101

Each seed is a world of its own with a base that never was quantised. The base answers the test
questions held as float32, int8 and nf4; then plain fine-tuning (sft, the preset's adapter and
learning rate, from one start) learns on each of them, and answers again. A line a cell is written
at once, and cells that the file holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import cogcalib_jax as cc
from cogcalib_jax.errors import run_main
from cogcalib_jax.metrics import summarize
from cogcalib_jax.world.base import ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig

KINDS = ("none", "int8", "nf4")
LORA = cc.LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
BATCH = 128
WHEN = ("before", "after")


def measured(model: cc.Model, task: cc.Task, seed: int) -> dict[str, Any]:
    """Return the numbers of eval.json on the test questions."""
    found = model.predict(task.test, batch_size=BATCH)
    return summarize(found.probs, found.mask, found.answers, None, resamples=1000, seed=seed)


def cells(seed: int, kind: str, epochs: float) -> dict[str, Any]:
    """Return the numbers of one seed and one form of the base, before and after fine-tuning."""
    base = ensure_base(WorldConfig(), PretrainConfig(), seed)
    task = cc.Task.from_hub("world", seed=seed)
    model = cc.Model.from_pretrained(base, lora=LORA, quantise=kind, dtype="float32", seed=seed)
    training = cc.TrainingConfig(
        epochs=epochs, batch_size=32, learning_rate=2e-3, schedule="cosine", style_steps=0
    )
    before = measured(model, task, seed)
    loss = cc.LossConfig(space="options")
    tuned = cc.finetune(model, task, "sft", training=training, loss=loss, seed=seed).model
    return {"before": before, "after": measured(tuned, task, seed)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds, and differences from float32 seed by seed, in Markdown."""
    lines = [
        "| | base held in | accuracy | NLL | ECE | noise floor | NLL - float32 | ECE - float32 |",
        "|" + "---|" * 8,
    ]
    for when in WHEN:
        held = {k: [row[when] for row in rows if row["kind"] == k] for k in KINDS}
        for kind, mine in held.items():
            mean = {name: np.mean([m[name] for m in mine]) for name in ("accuracy", "nll", "ece")}
            floor = np.mean([m["ece_noise_floor"]["mean"] for m in mine])
            pairs = list(zip(mine, held["none"], strict=True))
            nll, ece = (
                ", ".join(f"{m[name] - whole[name]:+.4f}" for m, whole in pairs)
                for name in ("nll", "ece")
            )
            name = "float32" if kind == "none" else kind
            numbers = f"{100 * mean['accuracy']:.1f} % | {mean['nll']:.4f} | {mean['ece']:.4f}"
            lines.append(f"| {when} | {name} | {numbers} | {floor:.4f} | {nll} | {ece} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=float, default=3.0)
    options = parser.parse_args(argv)
    done = options.out.read_text().splitlines() if options.out.is_file() else []
    rows = [json.loads(line) for line in done]
    for seed in map(int, options.seeds.split(",")):
        for kind in KINDS:
            if any((row["seed"], row["kind"]) == (seed, kind) for row in rows):
                continue
            rows.append({"seed": seed, "kind": kind, **cells(seed, kind, options.epochs)})
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_main(main))
