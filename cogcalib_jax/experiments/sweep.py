"""Choose the weights of a preset's methods on its validation split; no test question is read.

    python -m cogcalib_jax.experiments.sweep --preset configs/world.yaml

For every seed the style phase runs once; then each method is trained with each weight from there.
The weight chosen for a method has the lowest mean validation NLL among those whose mean validation
accuracy is within one point of plain fine-tuning's; where no weight keeps that accuracy, the
smallest is chosen and said. The numbers are those after the last epoch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cogcalib_jax.configlib import check, load_config
from cogcalib_jax.errors import run_main
from cogcalib_jax.runs.assemble import say
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.train import prepare
from cogcalib_jax.training.finetune import finetune, style_phase
from cogcalib_jax.training.journal import Journal

ACCURACY_MARGIN = 0.01
SHOWN = ("accuracy", "nll", "brier", "ece", "auroc", "confidence")


@dataclass(frozen=True)
class SweepConfig:
    """Which weights of which methods are tried, and on which seeds."""

    preset: str = "configs/world.yaml"
    """the run whose weights are chosen"""
    methods: tuple[str, ...] = ("ls", "cols")
    """methods whose weight is chosen; plain fine-tuning is always run beside them"""
    weights: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
    """weights tried for each method"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """seeds for developing; those that are published (100 and up) are refused"""
    out: str | None = None
    """Markdown file for the table, beside it a .jsonl with every run; unset: printed only"""

    def __post_init__(self) -> None:
        check(len(self.weights) > 0, "weights", "must name at least one weight")
        check(all(w > 0 for w in self.weights), "weights", "must be numbers above 0")
        check(
            len(self.seeds) > 0 and all(0 <= s < 100 for s in self.seeds),
            "seeds",
            "must be from 0 to 99: seeds from 100 on are kept for publishing",
        )


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """One record a (seed, method, weight): the validation numbers after the last epoch."""
    preset = load_config(RunConfig, ["--config", config.preset], prog="", description="").config
    entries = ["sft", *(f"{m}={w:g}" for m in config.methods for w in config.weights)]
    records = []
    for seed in config.seeds:
        with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
            run_config = replace(
                preset, seed=seed, compare=("sft",), run_dir=str(Path(scratch) / "run")
            )
            run = prepare(run_config, "sweep", [])
            style_folder = run.folder / "style"
            start = style_phase(run.trainer, run.assembled.lora, style_folder)
            for number, entry in enumerate(entries):
                say(f"== seed {seed}: {entry} ({number + 1} of {len(entries)})")
                (method,) = replace(run_config, compare=(entry,)).resolved_methods().values()
                folder = run.folder / entry
                finetune(run.trainer, method, start, style_folder, folder)
                records.append(
                    {"seed": seed, "method": method.label, "weight": method.weight}
                    | _last_validation(folder)
                )
    return records


def _last_validation(folder: Path) -> dict[str, float | None]:
    lines = Journal(folder / "metrics.jsonl").read()
    last = [line for line in lines if line["phase"] == "validation"][-1]
    return {name: last[name] for name in SHOWN}


def choose(records: Sequence[dict[str, Any]], method: str) -> tuple[float, bool]:
    """The weight of `method`, and whether any weight kept the accuracy of plain fine-tuning."""

    def average(name: str, method: str, weight: float) -> float:
        return mean(r[name] for r in records if r["method"] == method and r["weight"] == weight)

    weights = sorted({r["weight"] for r in records if r["method"] == method})
    floor = average("accuracy", "sft", 0.0) - ACCURACY_MARGIN
    kept = [w for w in weights if average("accuracy", method, w) >= floor]
    if not kept:
        return weights[0], False
    return min(kept, key=lambda w: average("nll", method, w)), True


def table(records: Sequence[dict[str, Any]], config: SweepConfig) -> str:
    """Markdown: mean and standard deviation over seeds of every condition, and the choices."""
    lines = [
        f"| method | weight | {' | '.join(SHOWN)} |",
        f"|---|---|{'---|' * len(SHOWN)}",
    ]
    for method, weight in dict.fromkeys((r["method"], r["weight"]) for r in records):
        chosen = [r for r in records if (r["method"], r["weight"]) == (method, weight)]
        cells = [_mean_sd([r[name] for r in chosen]) for name in SHOWN]
        lines.append(f"| {method} | {weight:g} | {' | '.join(cells)} |")
    choices = []
    for method in config.methods:
        weight, kept = choose(records, method)
        note = "" if kept else " (no weight keeps accuracy within a point of plain fine-tuning)"
        choices.append(f"- {method}: weight {weight:g}{note}")
    return "\n".join(
        [
            "Validation questions, mean ± standard deviation over seeds"
            f" {', '.join(map(str, config.seeds))}.",
            "",
            *lines,
            "",
            "Chosen (lowest validation NLL with accuracy within one point of sft):",
            "",
            *choices,
            "",
        ]
    )


def _mean_sd(values: list[float | None]) -> str:
    if None in values:
        return "n/a"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def main(argv: list[str]) -> None:
    config = load_config(SweepConfig, argv, prog="sweep", description=__doc__).config
    records = sweep(config)
    text = table(records, config)
    print(text)
    if config.out is not None:
        out = Path(config.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python -m cogcalib_jax.experiments.sweep", *argv])
        out.write_text(f"    {command}\n\n{text}", encoding="utf-8")
        rows = "".join(json.dumps(record) + "\n" for record in records)
        out.with_suffix(".jsonl").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
