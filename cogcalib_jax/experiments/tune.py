"""Choose term, gate, weight and epochs on validation questions; no test question is read.

    python -m cogcalib_jax.experiments tune --config configs/world.yaml --seeds 0,1,2

Every candidate is trained from the same style-adapted start. Plain fine-tuning, the same stopped at
its best validation epoch, and with a fitted temperature, are candidates like all others. Among
those whose accuracy is within one point of plain fine-tuning's, the lowest validation NLL leads;
recommended is the simplest candidate that cannot be told from the leader. A preset that trains the
recommended candidate is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np

from cogcalib_jax.configlib import check, command_line, load_config, to_yaml
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.posthoc import fit_temperature
from cogcalib_jax.experiments.suite import share_compiled_steps
from cogcalib_jax.experiments.suite_results import mean_sd
from cogcalib_jax.files import whole_file, write_whole
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.metrics import ece
from cogcalib_jax.reporting.tables import Table, as_markdown
from cogcalib_jax.runs.assemble import say
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.train import prepare
from cogcalib_jax.significance import holm, paired_difference, resamples_for
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, finetune, style_phase
from cogcalib_jax.training.validation import Belief, options_belief

DEFAULT_PRESET = Path(__file__).resolve().parents[2] / "configs" / "world.yaml"
ACCURACY_MARGIN = 0.01
LEVEL = 0.05
RESAMPLES = 2000
SFT, BEST_EPOCH, TEMPERATURE = "sft", "sft, best epoch", "sft + temperature"


@dataclass(frozen=True)
class TuneConfig(RunConfig):
    """A run, and what is tried on its validation split."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds for developing; those that are published (100 and up) are refused"""
    terms: tuple[Literal["ls", "mbls", "ecp"], ...] = ("ls", "mbls", "ecp")
    """calibration terms that are tried"""
    gates: tuple[str, ...] = ("all", "adaptive")
    """gates each term is tried with"""
    weights: tuple[float, ...] = (0.1, 0.3, 1.0)
    """weights each term is tried with"""
    epochs: tuple[float, ...] = ()
    """lengths of fine-tuning that are tried; none: the preset's"""
    out: str | None = None
    """folder for tune.md, tune.jsonl and the recommended preset; unset: runs/tune-NAME"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            len(self.seeds) > 0 and all(0 <= s < 100 for s in self.seeds),
            "seeds",
            "must be from 0 to 99: seeds from 100 on are kept for publishing",
        )
        for name in ("terms", "gates", "weights"):
            check(len(getattr(self, name)) > 0, name, "must name at least one")
        check(all(w > 0 for w in self.weights), "weights", "must be numbers above 0")
        for gate in self.gates:
            check(gate != "oracle", "gates", "must not be oracle: no real run has its labels")

    def run_config(self, seed: int, epochs: float) -> RunConfig:
        """The run that is tuned, with one seed and length."""
        values = {field.name: getattr(self, field.name) for field in fields(RunConfig)}
        training = replace(self.training, epochs=epochs)
        return RunConfig(**values | {"seed": seed, "training": training, "compare": ("sft",)})


@dataclass(frozen=True)
class Candidate:
    """Something that could be recommended."""

    name: str
    epochs: float
    method: MethodConfig | None
    """resolved; None for what is derived from plain fine-tuning"""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.epochs:g} epochs"

    @property
    def simplicity(self) -> tuple[int, float]:
        """Sorts the simplest first: nothing added, less training, a temperature, all, a gate."""
        order = {SFT: 0, BEST_EPOCH: 1, TEMPERATURE: 2}
        if self.name in order:
            return order[self.name], self.epochs
        return (3 if self.method.gate == "all" else 4), self.epochs


Found = dict[Candidate, list[Belief]]
"""Candidate -> what it believes of the validation questions, one a seed."""


def tune(argv: list[str]) -> str:
    """The command: try everything, write the results and the preset, return what to print."""
    loaded = load_config(
        TuneConfig, argv, prog="tune", description=__doc__, default_preset=DEFAULT_PRESET
    )
    config, name = loaded.config, loaded.preset.stem
    folder = Path(config.out) if config.out else Path("runs") / f"tune-{name}"
    share_compiled_steps(folder / "compiled")
    found: Found = {}
    for seed in config.seeds:
        for epochs in config.epochs or (config.training.epochs,):
            for candidate, belief in _try_all(config, seed, epochs):
                found.setdefault(candidate, []).append(belief)
    chosen, text = recommend(found, len(config.seeds))
    command = command_line("python", "-m", "cogcalib_jax.experiments", "tune", *argv)
    write_whole(folder / "tune.md", f"    {command}\n\n{text}\n")
    with whole_file(folder / "tune.jsonl") as file:
        for candidate, beliefs in found.items():
            for seed, belief in zip(config.seeds, beliefs, strict=True):
                line = {"candidate": candidate.label, "seed": seed} | _numbers(belief)
                file.write(json.dumps(line) + "\n")
    preset = folder / f"{name}_tuned.yaml"
    write_whole(preset, _preset(config, chosen, command))
    return f"{text}\n\nPreset: {preset}\nEverything tried: {folder / 'tune.md'}"


def _try_all(config: TuneConfig, seed: int, epochs: float) -> list[tuple[Candidate, Belief]]:
    """All candidates of one seed and length, from one start."""
    results: list[tuple[Candidate, Belief]] = []
    with tempfile.TemporaryDirectory(prefix="tune-") as scratch:
        run_config = replace(config.run_config(seed, epochs), run_dir=str(Path(scratch) / "run"))
        run = prepare(run_config, "tune", [])
        style = run.folder / "style"
        start = style_phase(run.trainer, run.assembled.lora, style)
        entries = ["sft"] + [
            f"{term}@{gate}={weight:g}"
            for term in config.terms
            for gate in config.gates
            for weight in config.weights
        ]
        for number, entry in enumerate(entries, start=1):
            say(f"== seed {seed}, {epochs:g} epochs: {entry} ({number} of {len(entries)})")
            (method,) = replace(run_config, compare=(entry,)).resolved_methods().values()
            result = finetune(run.trainer, method, start, style, run.folder / f"try-{number}")
            validation = run.trainer.splits["validation"]
            name = SFT if entry == "sft" else f"{method.label}, weight {method.weight:g}"
            belief = run.trainer.belief(result.lora, validation)
            results.append((Candidate(name, epochs, method), belief))
            if entry == "sft":
                results += _derived(run.trainer, result, epochs)
    return results


def _derived(
    trainer: Trainer, result: FinetuneResult, epochs: float
) -> list[tuple[Candidate, Belief]]:
    validation = trainer.splits["validation"]
    best = trainer.belief(result.best_lora, validation)
    derived = [(Candidate(BEST_EPOCH, epochs, None), best)]
    if trainer.answers is None:
        try:
            calibration = trainer.predictor(result.lora, trainer.splits["calibration"])
            temperature = fit_temperature(calibration)
        except UserError as error:
            say(f"   note: no candidate {TEMPERATURE}: {error}")
        else:
            predictions = trainer.predictor(result.lora, validation, temperature)
            derived.append((Candidate(TEMPERATURE, epochs, None), options_belief(predictions)))
    return derived


def recommend(found: Found, seeds: int) -> tuple[Candidate, str]:
    """The recommended candidate, and the table and sentences that say why.

    Candidates that lack a seed (a temperature that could not be fitted) are left out.
    """
    whole = {c: beliefs for c, beliefs in found.items() if len(beliefs) == seeds}
    plain = max((c for c in whole if c.name == SFT), key=lambda c: c.epochs)
    floor = _average(whole[plain], "correct") - ACCURACY_MARGIN
    kept = [c for c in whole if _average(whole[c], "correct") >= floor]
    leader = min(kept, key=lambda c: _average(whole[c], "nll"))
    others = [c for c in kept if c != leader]
    differences = {
        c: paired_difference(
            [b.nll for b in whole[c]],
            [b.nll for b in whole[leader]],
            statistic="mean",
            resamples=max(RESAMPLES, resamples_for(len(others), LEVEL)),
        )
        for c in others
    }
    adjusted = dict(zip(others, holm([d.p_value for d in differences.values()]), strict=True))
    tied = [leader, *(c for c in others if adjusted[c] > LEVEL)]
    chosen = min(tied, key=lambda c: (c.simplicity, _average(whole[c], "nll")))
    rows = []
    for c in sorted(whole, key=lambda c: _average(whole[c], "nll")):
        numbers = [_numbers(belief) for belief in whole[c]]
        against = "leads" if c == leader else "accuracy too low"
        if c in differences:
            d = differences[c]
            against = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            against += "" if adjusted[c] <= LEVEL else " (not beyond noise)"
        cells = [mean_sd([n[key] for n in numbers]) for key in ("accuracy", "nll", "ece")]
        rows.append((c.label, *cells, against))
    n = len(whole[plain][0].nll)
    note = (
        f"Validation, {n:,} questions in each of {seeds} seed(s). Beyond noise: p at most {LEVEL}"
        f" after Holm's correction over {len(others)} comparisons with the leader. The best epoch"
        " was chosen on these very questions, so its numbers flatter it."
    )
    header = ("candidate", "accuracy", "NLL (nats)", "ECE", "NLL minus the leader's")
    return chosen, "\n\n".join(
        [as_markdown(Table(header, tuple(rows), note)), _sentence(chosen, leader, plain, n, seeds)]
    )


def _sentence(chosen: Candidate, leader: Candidate, plain: Candidate, n: int, seeds: int) -> str:
    if chosen == plain:
        return (
            f"No difference detectable at this n ({n:,} questions, {seeds} seed(s)): nothing is"
            f" better than {plain.label} beyond noise. Recommended: {plain.label}."
        )
    if chosen == leader:
        return f"Recommended: {chosen.label}, the lowest validation NLL."
    return (
        f"Recommended: {chosen.label}, the simplest that cannot be told from the lowest validation"
        f" NLL ({leader.label})."
    )


def _preset(config: TuneConfig, chosen: Candidate, command: str) -> str:
    """The run that trains the recommended candidate."""
    run = replace(config.run_config(0, chosen.epochs), compare=())
    notes = [f"# Recommended on validation questions: {chosen.label}.", "#", f"#     {command}"]
    if chosen.method is not None:
        run = replace(run, method=replace(chosen.method, name=None))
    else:
        run = run.as_plain_finetuning()
        if chosen.name == BEST_EPOCH:
            run = replace(run, training=replace(run.training, keep="best"))
        else:
            notes += ["#", "# Divide option scores by the temperature in adapter/calibration.json."]
    return "\n".join(notes) + "\n" + to_yaml(run)


def _average(beliefs: Sequence[Belief], field: str) -> float:
    return mean(float(getattr(belief, field).mean()) for belief in beliefs)


def _numbers(belief: Belief) -> dict[str, Any]:
    return {
        "n": len(belief.nll),
        "accuracy": float(np.mean(belief.correct)),
        "nll": float(np.mean(belief.nll)),
        "ece": ece(belief.confidence, belief.correct),
        "confidence": float(np.mean(belief.confidence)),
    }
