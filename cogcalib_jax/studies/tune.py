"""Choose term, gate, weight and epochs on validation questions; no test question is read.

    cogcalib study tune --config world --seeds 0,1,2

Every candidate is trained from the same style-adapted start. Plain fine-tuning is a candidate, too,
and so are its best validation epoch and a fitted temperature. The command recommends the simplest
candidate that is not distinguishable from the best, and writes a preset that trains it.

The folder keeps the answers of a candidate as soon as it is trained. The same command
continues after any interruption. A later command may add seeds, terms, gates, weights or epochs.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from cogcalib_jax.cli import run_folder
from cogcalib_jax.cli.prepare import with_own_lora
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.stored import CONFIG_FILE, read_config, require_same_config
from cogcalib_jax.cli.train import composed, open_run
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.sources import DEFAULT_PRESET, find_preset
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.console import say
from cogcalib_jax.data.tasks.fields import as_json
from cogcalib_jax.errors import FieldError, UserError, check, plain_text
from cogcalib_jax.files import refusing_damage, whole_file, write_whole
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.method.config import GATES, TERMS, MethodConfig
from cogcalib_jax.metrics import ece
from cogcalib_jax.metrics.significance import FEWEST_SEEDS, holm, paired_difference, resamples_for
from cogcalib_jax.report.tables import Table, as_markdown, as_text, cell
from cogcalib_jax.settings import Role, style_identity
from cogcalib_jax.studies import study_command
from cogcalib_jax.studies.suite import as_run
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, finetune, style_phase
from cogcalib_jax.training.log import Belief, options_belief

REFUSED: dict[Role, str] = {
    "comparison": "name what is tried with --terms, --gates and --weights",
    "methods": "name what is tried with --terms and --gates",
    "weights": "name the weights with --weights",
    "seed": "name the seeds with --seeds",
    "folder": "everything lies in the folder --out",
    "resume": "what is finished in the folder --out is never trained again",
}
"""options of a run that have no meaning here, and what to write instead"""
KEPT = ("correct", "confidence", "nll")
ACCURACY_MARGIN = 0.01
LEVEL = 0.05
RESAMPLES = 2000
SFT, BEST_EPOCH, TEMPERATURE = "sft", "sft, best epoch", "sft + temperature"


@dataclass(frozen=True)
class Trial:
    """Candidates of one seed and length, which share their start.

    `folder` is a run folder with the style phase of all candidates; `folder/tried` holds a file for
    each finished training, named as in compare.
    """

    config: RunConfig
    entries: tuple[str, ...]
    """methods as in compare, with their weights; `sft` includes those derived from it"""
    folder: Path

    def tried(self, entry: str) -> Path:
        """Return the file of a finished training."""
        return self.folder / "tried" / f"{entry}.json"

    @property
    def missing(self) -> list[str]:
        """Entries that are not finished."""
        return [entry for entry in self.entries if not self.tried(entry).is_file()]

    def method(self, entry: str) -> MethodConfig:
        (method,) = self.config.resolved_methods((entry,)).values()
        return method


@dataclass(frozen=True)
class TuneConfig(RunConfig):
    """A run, and the candidates tried on its validation split."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """development seeds; published seeds (100 and up) are refused"""
    terms: tuple[str, ...] = ("ls", "mbls", "ecp")
    """terms to try, with optional settings: ls,mbls(margin=5),focal(gamma=3)"""
    gates: tuple[str, ...] = ("all", "adaptive")
    """gates to try with each term"""
    weights: tuple[float, ...] = (0.1, 0.3, 1.0)
    """weights to try with each term"""
    epochs: tuple[float, ...] = ()
    """lengths of fine-tuning to try; none: the preset's"""
    out: str | None = None
    """folder for tune.md, tune.jsonl and the recommended preset; unset: runs/tune-NAME"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            len(self.seeds) > 0 and all(0 <= s < 100 for s in self.seeds),
            "seeds",
            "must be from 0 to 99: seeds from 100 on are kept for publishing",
        )
        for name in ("seeds", "terms", "gates", "weights", "epochs"):
            values = getattr(self, name)
            check(len(values) > 0 or name == "epochs", name, "must name at least one")
            check(len(set(values)) == len(values), name, "must name each once")
        for name in ("weights", "epochs"):
            above = all(0 < value < math.inf for value in getattr(self, name))
            check(above, name, "must be finite numbers above 0")
        for name, registry in (("terms", TERMS), ("gates", GATES)):
            for spec in getattr(self, name):
                try:
                    made = registry.make(spec)
                except UserError as error:
                    raise FieldError(name, str(error)) from error
                check(
                    getattr(made, "labelled_by", None) != "world",
                    name,
                    f"cannot be {spec}: a run whose settings are chosen has no such labels",
                )

    def run_config(self, seed: int, epochs: float) -> RunConfig:
        """Return the run that is tuned, with one seed and length."""
        training = replace(self.training, epochs=epochs)
        own = {"seed": seed, "training": training, "compare": ("sft",)}
        return as_run(self, **own, run_dir=None, resume=False, dry_run=False)

    def trials(self, folder: Path) -> list[Trial]:
        """Return a trial for each seed and length, with all candidates."""
        entries = ["sft"] + [
            f"{term}@{gate}={weight}"
            for term in self.terms
            for gate in self.gates
            for weight in self.weights
        ]
        made = []
        for seed in self.seeds:
            for epochs in self.epochs or (self.training.epochs,):
                place = folder / f"seed-{seed}" / f"epochs-{float(epochs)}"
                run = replace(self.run_config(seed, epochs), run_dir=str(place))
                made.append(Trial(run, tuple(entries), place))
        return made


def tune(argv: list[str]) -> None:
    """Try all candidates that are missing, write results and preset, and print them."""
    loaded = load_config(
        TuneConfig,
        argv,
        prog=study_command("tune"),
        description=__doc__,
        default_preset=find_preset(DEFAULT_PRESET),
    )
    run_folder.refuse_meaningless(loaded, REFUSED, "tuning")
    config, name = loaded.config, loaded.preset.stem
    run_folder.refuse_choice_of_rule(config.option_score, "tune")
    folder = Path(config.out) if config.out else Path("runs") / f"tune-{name}"
    trials = config.trials(folder)
    _require_same_config(folder, trials[0].config)
    if config.dry_run:
        print(plain_text(_listing(trials)))
        return
    run_folder.require_folder(folder, "--out")
    command = study_command("tune", *argv)
    with run_folder.resumable(folder, command, begun="."), run_folder.holding_locks():
        run_folder.lock_folder(folder)
        for trial in trials:
            _train_missing(trial, argv)
    tried = [(one.config.seed, *found) for one in trials for found in _read_trial(one)]
    found: Found = {}
    for _, candidate, belief in tried:
        found.setdefault(candidate, []).append(belief)
    chosen, text = recommend(found, len(config.seeds))
    write_whole(folder / "tune.md", f"    {command}\n\n{text}\n")
    with whole_file(folder / "tune.jsonl") as file:
        for seed, candidate, belief in tried:
            line = {"candidate": candidate.label, "seed": seed} | numbers_of(belief)
            file.write(json.dumps(as_json(line), allow_nan=False) + "\n")
    preset = folder / f"{name}_tuned.yaml"
    write_whole(preset, _preset(config, chosen, command))
    places = f"Preset: {preset}\nEverything tried: {folder / 'tune.md'}"
    print(plain_text(f"{text}\n\n{places}"))


def _preset(config: TuneConfig, chosen: Candidate, command: str) -> str:
    """The run that trains the recommended candidate, as YAML."""
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


def _listing(trials: Sequence[Trial]) -> str:
    rows = []
    for trial in trials:
        missing = trial.missing
        seed, epochs = str(trial.config.seed), f"{trial.config.training.epochs:g}"
        for entry in trial.entries:
            rows.append((seed, epochs, entry, "to do" if entry in missing else "finished"))
    to_do = sum(row[-1] == "to do" for row in rows)
    note = (
        f"{len(rows)} trainings, {to_do} still to run. The best epoch of sft and a temperature for"
        " it need no training of their own."
    )
    return as_text(Table(("seed", "epochs", "method", "state"), tuple(rows), note))


def _require_same_config(folder: Path, config: RunConfig) -> None:
    """Refuse a folder whose trials have another config; seeds and lengths may differ."""
    for file in sorted(folder.glob(f"seed-*/epochs-*/{CONFIG_FILE}")):
        stored = read_config(file.parent, RunConfig)
        training = replace(config.training, epochs=stored.training.epochs)
        asked = with_own_lora(replace(config, seed=stored.seed, training=training))
        require_same_config(file.parent, asked)


def _train_missing(trial: Trial, argv: Sequence[str]) -> None:
    """Train what is not finished and keep its answers; a begun training continues."""
    folder, missing = trial.folder, trial.missing
    if not missing:
        return
    resume = (folder / CONFIG_FILE).is_file()
    run = open_run(replace(trial.config, resume=resume), "tune", list(argv))
    style = folder / "style"
    start = style_phase(run.trainer, run.assembled.lora, style, style_identity(run.config))
    run = composed(run, start)
    for entry in missing:
        at = f"{trial.entries.index(entry) + 1} of {len(trial.entries)}"
        epochs = trial.config.training.epochs
        say(f"== seed {trial.config.seed}, {epochs:g} epochs: {entry} ({at})")
        method, place = trial.method(entry), folder / entry
        result = finetune(run.trainer, method, start, style, place)
        belief = run.trainer.belief(result.lora, run.trainer.splits["validation"])
        found = {SFT if entry == SFT else f"{method.label}, weight {method.weight:g}": belief}
        if entry == SFT:
            found |= _derived(run.trainer, result)
        kept = {
            name: {key: getattr(belief, key).tolist() for key in KEPT}
            for name, belief in found.items()
        }
        write_whole(trial.tried(entry), json.dumps(as_json(kept), allow_nan=False))
        # Only answers are compared; the weights of dozens of trainings would fill a disk.
        shutil.rmtree(place)


def _derived(trainer: Trainer, result: FinetuneResult) -> dict[str, Belief]:
    """The candidates that plain fine-tuning gives without a training of their own, by name."""
    validation = trainer.splits["validation"]
    derived = {BEST_EPOCH: trainer.belief(result.best_lora, validation)}
    if trainer.answers is None:
        try:
            calibration = trainer.predictor(result.lora, trainer.splits["calibration"])
            temperature = fit_temperature(calibration)
        except UserError as error:
            say(f"   note: no candidate {TEMPERATURE}: {error}")
        else:
            predictions = trainer.predictor(result.lora, validation, temperature)
            derived[TEMPERATURE] = options_belief(predictions)
    return derived


def _read_trial(trial: Trial) -> list[tuple[Candidate, Belief]]:
    """The kept answers of a trial with nothing missing, in the order it was asked for."""
    results = []
    for entry in trial.entries:
        file = trial.tried(entry)
        with refusing_damage(file, "remove it, and it is trained again"):
            kept = json.loads(file.read_text(encoding="utf-8"))
            beliefs = {
                name: Belief(**{key: np.array(one[key], np.float64) for key in KEPT}, brier=None)
                for name, one in kept.items()
            }
        for name, belief in beliefs.items():
            method = None if name in (BEST_EPOCH, TEMPERATURE) else trial.method(entry)
            results.append((Candidate(name, trial.config.training.epochs, method), belief))
    return results


@dataclass(frozen=True)
class Candidate:
    """A way to fine-tune that could be recommended."""

    name: str
    epochs: float
    method: MethodConfig | None
    """resolved; None for those derived from plain fine-tuning"""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.epochs:g} epochs"

    @property
    def simplicity(self) -> tuple[int, float]:
        """A sort key: nothing added, best epoch, temperature, all rows, a gate; then length."""
        order = {SFT: 0, BEST_EPOCH: 1, TEMPERATURE: 2}
        if self.name in order:
            return order[self.name], self.epochs
        return (3 if self.method.gate == "all" else 4), self.epochs


Found = dict[Candidate, list[Belief]]
"""Candidate -> its answers to the validation questions, one for each seed."""


def recommend(found: Found, seeds: int) -> tuple[Candidate, str]:
    """Return the recommended candidate, and a table and sentences in Markdown.

    Among candidates whose accuracy is within one point of plain fine-tuning's, the lowest
    validation NLL leads. Recommend the simplest one that is not distinguishable from it.
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
        numbers = [numbers_of(belief) for belief in whole[c]]
        against = "leads" if c == leader else "accuracy too low"
        if c in differences:
            d = differences[c]
            against = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            against += "" if adjusted[c] <= LEVEL else " (not beyond noise)"
        cells = [cell([n[key] for n in numbers]) for key in ("accuracy", "nll", "ece")]
        rows.append((c.label, *cells, against))
    n = len(whole[plain][0].nll)
    note = (
        f"Validation, {n:,} questions in each of {seeds} seed(s). Beyond noise: p at most {LEVEL}"
        f" after Holm's correction over {len(others)} comparisons with the leader. The best epoch"
        " was chosen on these same questions, so its numbers are optimistic."
    )
    if seeds < FEWEST_SEEDS:
        note += " With so few seeds, intervals hold the noise of questions and little of training."
    header = ("candidate", "accuracy", "NLL (nats)", "ECE", "NLL minus the leader's")
    return chosen, "\n\n".join(
        [as_markdown(Table(header, tuple(rows), note)), _sentence(chosen, leader, plain, n, seeds)]
    )


def _sentence(chosen: Candidate, leader: Candidate, plain: Candidate, n: int, seeds: int) -> str:
    if chosen == plain:
        return (
            f"No difference detectable at this n ({n:,} questions, {seeds} seed(s)): no candidate"
            f" is better than {plain.label} beyond noise. Recommended: {plain.label}."
        )
    if chosen == leader:
        return f"Recommended: {chosen.label}, the lowest validation NLL."
    return (
        f"Recommended: {chosen.label}, the simplest that cannot be told from the lowest validation"
        f" NLL ({leader.label})."
    )


def _average(beliefs: Sequence[Belief], field: str) -> float:
    return mean(float(getattr(belief, field).mean()) for belief in beliefs)


def numbers_of(belief: Belief) -> dict[str, Any]:
    """Return the numbers of one candidate with one seed."""
    return {
        "n": len(belief.nll),
        "accuracy": float(np.mean(belief.correct)),
        "nll": float(np.mean(belief.nll)),
        "ece": ece(belief.confidence, belief.correct),
        "confidence": float(np.mean(belief.confidence)),
    }
