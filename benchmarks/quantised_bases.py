"""Measure how the form of a base changes its answers, before and after fine-tuning.

    python -m benchmarks.quantised_bases --out runs/quantised.jsonl --seeds 0,100,101
    python -m benchmarks.quantised_bases --out runs/quantised_arc.jsonl --seeds 0,100,101 \
        --model SMOLLM2 --data ARC_EASY

In the world each seed has a base of its own, in float32, that never was quantised. With `--model`,
a folder with a model in bfloat16 answers ARC-Easy, and `--data` is the folder with its rows. The
base answers the test questions in each form; then plain fine-tuning (sft, from one start a seed)
learns on each of them, and answers again. A line a cell is written at once, and cells that the file
holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cogcalib_jax as cc
from cogcalib_jax.errors import run_main
from cogcalib_jax.metrics import summarize
from cogcalib_jax.world.base import ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig

WHEN = ("before", "after")


class Setup(NamedTuple):
    """A base with its questions, and the recipe that fine-tunes it."""

    forms: dict[str, tuple[str, str]]
    """name -> how the base is held (`model.quantise`), and the dtype of products; the first form is
    the one that the others are compared with"""
    lora: cc.LoraConfig
    training: cc.TrainingConfig
    batch: int
    """questions computed at a time"""
    model: Path | None = None
    """None: the seed's own base of the world"""
    data: Path | None = None

    def base(self, seed: int) -> Path:
        return self.model or ensure_base(WorldConfig(), PretrainConfig(), seed)

    def task(self, seed: int) -> cc.Task:
        if self.model is None:
            return cc.Task.from_hub("world", seed=seed)
        rows = {"train_rows": 400, "calibration_rows": 8, "validation_rows": 8, "test_rows": 600}
        return cc.Task.from_hub("arc_easy", path=self.data, prompt="cloze", seed=seed, **rows)


WORLD = Setup(
    {
        "float32": ("none", "float32"),
        "bfloat16": ("none", "bfloat16"),
        "int8": ("int8", "float32"),
        "nf4": ("nf4", "float32"),
    },
    cc.LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",)),
    cc.TrainingConfig(
        epochs=3, batch_size=32, learning_rate=2e-3, schedule="cosine", style_steps=0
    ),
    batch=128,
)


def real(model: Path, data: Path | None) -> Setup:
    """Return ARC-Easy, and one epoch of 400 rows at the rate of smollm2_135m_arc_easy."""
    forms = {
        "bfloat16": ("none", "bfloat16"),
        "float32": ("none", "float32"),
        "int8": ("int8", "bfloat16"),
        "nf4": ("nf4", "bfloat16"),
    }
    lora = cc.LoraConfig(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))
    training = cc.TrainingConfig(
        epochs=1,
        batch_size=8,
        learning_rate=5e-4,
        schedule="linear",
        warmup_fraction=0.06,
        style_steps=0,
    )
    return Setup(forms, lora, training, batch=16, model=model, data=data)


def measured(model: cc.Model, task: cc.Task, batch: int, seed: int) -> dict[str, Any]:
    """Return the numbers of eval.json on the test questions."""
    found = model.predict(task.test, batch_size=batch)
    return summarize(found.probs, found.mask, found.answers, None, resamples=1000, seed=seed)


def cells(these: Setup, seed: int, form: str) -> dict[str, Any]:
    """Return the numbers of one seed and one form of the base, before and after fine-tuning."""
    held, dtype = these.forms[form]
    task = these.task(seed)
    model = cc.Model.from_pretrained(
        these.base(seed), lora=these.lora, quantise=held, dtype=dtype, seed=seed
    )
    before = measured(model, task, these.batch, seed)
    loss = cc.LossConfig(space="options")
    tuned = cc.finetune(model, task, "sft", training=these.training, loss=loss, seed=seed).model
    return {"before": before, "after": measured(tuned, task, these.batch, seed)}


def table(rows: list[dict[str, Any]], forms: list[str]) -> str:
    """Return means over seeds, and differences from the first form seed by seed, in Markdown."""
    first = forms[0]
    lines = [
        "| | base | seeds | accuracy | NLL | ECE | noise floor |"
        f" accuracy - {first} | NLL - {first} | ECE - {first} |",
        "|" + "---|" * 10,
    ]
    for when in WHEN:
        held = {form: {x["seed"]: x[when] for x in rows if x["form"] == form} for form in forms}
        for form, mine in held.items():
            mean = {
                name: np.mean([m[name] for m in mine.values()])
                for name in ("accuracy", "nll", "ece")
            }
            floor = np.mean([m["ece_noise_floor"]["mean"] for m in mine.values()])
            numbers = f"{100 * mean['accuracy']:.1f} % | {mean['nll']:.4f} | {mean['ece']:.4f}"
            differences = " | ".join(
                ", ".join(f"{m[name] - held[first][seed][name]:+.4f}" for seed, m in mine.items())
                for name in mean
            )
            seeds = ", ".join(map(str, mine))
            lines.append(f"| {when} | {form} | {seeds} | {numbers} | {floor:.4f} | {differences} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--forms", help="some of them, with commas; without it, all")
    parser.add_argument("--model", type=Path, help="a model in bfloat16; without it, the world's")
    parser.add_argument("--data", type=Path, help="rows of ARC-Easy; without it, from the Hub")
    options = parser.parse_args(argv)
    these = WORLD if options.model is None else real(options.model, options.data)
    done = options.out.read_text().splitlines() if options.out.is_file() else []
    rows = [json.loads(line) for line in done]
    forms = list(these.forms) if options.forms is None else options.forms.split(",")
    for seed in map(int, options.seeds.split(",")):
        for form in forms:
            if any((row["seed"], row["form"]) == (seed, form) for row in rows):
                continue
            rows.append({"seed": seed, "form": form, **cells(these, seed, form)})
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows, [form for form in these.forms if any(x["form"] == form for x in rows)]))


if __name__ == "__main__":
    sys.exit(run_main(main))
