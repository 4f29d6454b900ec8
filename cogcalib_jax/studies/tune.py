"""Choose term, gate, weight and epochs on validation questions; no test question is read.

    python -m cogcalib_jax.studies tune --config configs/world.yaml --seeds 0,1,2

Every candidate is trained from the same style-adapted start. Plain fine-tuning, the same stopped at
its best validation epoch, and with a fitted temperature, are candidates like all others. Among
those whose accuracy is within one point of plain fine-tuning's, the lowest validation NLL leads;
recommended is the simplest candidate that cannot be told from the leader. A preset that trains the
recommended candidate is written.

What a candidate believes of the questions is kept in the folder as soon as it is trained: the same
command started again trains what is missing, also where it asks for more.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cogcalib_jax.cli.presets import DEFAULT, find_preset, with_preset_file
from cogcalib_jax.configlib import FieldError, check, command_line, load_config, to_yaml
from cogcalib_jax.data.json_values import as_json
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import whole_file, write_whole
from cogcalib_jax.method.registries import GATES, TERMS
from cogcalib_jax.runs.before_work import (
    goes_on,
    refuse_choice_of_rule,
    refuse_meaningless,
    require_folder,
)
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.folder import holding_locks, lock_folder
from cogcalib_jax.studies.choosing import BEST_EPOCH, Candidate, Found, numbers_of, recommend
from cogcalib_jax.studies.suite import share_compiled_steps
from cogcalib_jax.studies.trying import Trial, read_trial, require_same_trials, train_missing
from cogcalib_jax.studies.tune_plan import trials_text

# Options of a run that mean nothing here, and what to write instead.
REFUSED = {
    "compare": "name what is tried with --terms, --gates and --weights",
    "method.name": "name what is tried with --terms and --gates",
    "method.term": "name the terms with --terms",
    "method.gate": "name the gates with --gates",
    "method.weight": "name the weights with --weights",
    "seed": "name the seeds with --seeds",
    "run_dir": "everything lies in the folder --out",
    "resume": "what is finished in the folder --out is never trained again",
}


@dataclass(frozen=True)
class TuneConfig(RunConfig):
    """A run, and what is tried on its validation split."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds for developing; those that are published (100 and up) are refused"""
    terms: tuple[str, ...] = ("ls", "mbls", "ecp")
    """terms that are tried, with settings if wanted: ls,mbls(margin=5),focal(gamma=3)"""
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
        """The run that is tuned, with one seed and length."""
        values = {field.name: getattr(self, field.name) for field in fields(RunConfig)}
        training = replace(self.training, epochs=epochs)
        own = {"seed": seed, "training": training, "compare": ("sft",)}
        return RunConfig(**values | own | {"run_dir": None, "resume": False, "dry_run": False})

    def trials(self, folder: Path) -> list[Trial]:
        """Everything that is tried, a trial for each seed and length."""
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


def tune(argv: list[str]) -> str:
    """The command: try what is not yet tried, write results and preset, return what to print."""
    loaded = load_config(
        TuneConfig,
        with_preset_file(argv),
        prog="tune",
        description=__doc__,
        default_preset=find_preset(DEFAULT),
    )
    refuse_meaningless(loaded, REFUSED, "tuning")
    config, name = loaded.config, loaded.preset.stem
    refuse_choice_of_rule(config.option_score, "tune")
    folder = Path(config.out) if config.out else Path("runs") / f"tune-{name}"
    trials = config.trials(folder)
    require_same_trials(folder, trials)
    if config.dry_run:
        return trials_text(trials)
    require_folder(folder, "--out")
    with goes_on(folder, ["tune", *argv]), holding_locks():
        lock_folder(folder)
        share_compiled_steps(folder / "compiled")
        for trial in trials:
            train_missing(trial, argv)
    tried = [(one.config.seed, *found) for one in trials for found in read_trial(one)]
    found: Found = {}
    for _, candidate, belief in tried:
        found.setdefault(candidate, []).append(belief)
    chosen, text = recommend(found, len(config.seeds))
    command = command_line("python", "-m", "cogcalib_jax.studies", "tune", *argv)
    write_whole(folder / "tune.md", f"    {command}\n\n{text}\n")
    with whole_file(folder / "tune.jsonl") as file:
        for seed, candidate, belief in tried:
            line = {"candidate": candidate.label, "seed": seed} | numbers_of(belief)
            file.write(json.dumps(as_json(line), allow_nan=False) + "\n")
    preset = folder / f"{name}_tuned.yaml"
    write_whole(preset, _preset(config, chosen, command))
    return f"{text}\n\nPreset: {preset}\nEverything tried: {folder / 'tune.md'}"


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
