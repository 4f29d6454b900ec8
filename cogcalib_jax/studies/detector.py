"""The gate's NLL as a detector of knowledge, and for how long it is one.

    cogcalib study detector --config world --seeds 0,1

Before fine-tuning and at every validation the gate's NLL is recorded for questions that are trained
on and for validation questions, with the threshold fitted at that moment. It is judged as a
detector of what the base knows (SliCK categories and, in the world, how often the corpus states a
fact) and of right answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from cogcalib_jax.baselines.registry import BASELINES, is_baseline
from cogcalib_jax.cli.method_run import Run
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import require_folder, require_writable, resumable
from cogcalib_jax.cli.train import open_run
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.sources import DEFAULT_PRESET, find_preset
from cogcalib_jax.console import say
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError, check, plain_text
from cogcalib_jax.inference.evaluate import data_hash, provenance, write_json
from cogcalib_jax.inference.predictions import write_rows
from cogcalib_jax.settings import style_identity
from cogcalib_jax.studies import study_command
from cogcalib_jax.studies.detector_report import (
    HELD_OUT,
    LABELS,
    NUMBERS,
    PROVENANCE,
    SCORES,
    TRAINED,
    tidy_rows,
    write_results,
)
from cogcalib_jax.studies.slick import SHOTS, SlickScorer
from cogcalib_jax.studies.suite import Cell, advice, as_run, listing, run_cells
from cogcalib_jax.training.finetune import Trainer, Watch, finetune, style_phase
from cogcalib_jax.training.journal import Journal


@dataclass(frozen=True)
class DetectorConfig(RunConfig):
    """A run whose gate is watched while it trains."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """0 to 4 for developing; 100 to 104, once, for publishing what was frozen"""
    methods: tuple[str, ...] = ("sft",)
    """losses that are trained and watched, each from the same start, named as in compare"""
    shots: int = SHOTS
    """solved questions before each one in SliCK's prompts (the world's have none)"""
    folder: str | None = None
    """folder of runs and results; unset: runs/detector-NAME after the preset's file"""
    out: str | None = None
    """Markdown file for a copy of the tables; unset: in the folder only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.seeds) > 0, "seeds", "must name at least one seed")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", "must name each seed once")
        check(self.shots >= 1, "shots", "must be at least 1")
        check(
            len(self.methods) > 0 and not any(map(is_baseline, self.methods)),
            "methods",
            f"must name at least one loss (not {', '.join(BASELINES.names())})",
        )
        check(
            self.composition.known_share is None,
            "composition.known_share",
            "must be unset: the fine-tuning rows are watched as they are",
        )
        check(self.training.probe_rows > 0, "training.probe_rows", "must be above 0 to watch rows")


class WatchedSeed(Cell):
    """One seed, finished when its numbers are written."""

    @property
    def title(self) -> str:
        return f"seed {self.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / NUMBERS).is_file()


def detector(argv: list[str]) -> None:
    """Watch every seed, write the results and print them.

    Raises:
        UserError: mistakes, before anything runs; and failed seeds, after the results of the others
            were written.
    """
    loaded = load_config(
        DetectorConfig,
        argv,
        prog=study_command("detector"),
        description=__doc__,
        default_preset=find_preset(DEFAULT_PRESET),
    )
    config, preset = loaded.config, loaded.preset
    folder = Path(config.folder) if config.folder else Path("runs") / f"detector-{preset.stem}"
    planned = []
    for seed in config.seeds:
        place = folder / f"seed-{seed}"
        own = {"seed": seed, "compare": config.methods, "run_dir": str(place), "dry_run": False}
        run = as_run(config, **own)
        # The config in the folder repeats its training.
        again = ("--config", str(place / "config.yaml"))
        planned.append(WatchedSeed("as in the preset", seed, run, place, again))
    if config.dry_run:
        print(plain_text(listing(planned)))
        return
    require_folder(folder, "--folder")
    if config.out is not None:
        require_writable(Path(config.out), "--out")
    command = study_command("detector", *argv)
    with resumable(folder, command, begun="."):
        failed = run_cells(planned, folder, partial(watch_seed, shots=config.shots))
    done = {cell.seed: cell.folder for cell in planned if cell not in failed}
    if not done:
        raise UserError(f"{folder}: every seed failed; the first: {failed[0].folder}/failure.txt")
    methods = tuple(planned[0].config.resolved_methods())
    text = write_results(folder, command, done, methods, config.out and Path(config.out))
    if failed:
        raise UserError(f"{folder / 'results.md'} lacks seeds that failed: {advice(failed)}")
    print(plain_text(text))
    print(f"Tables and pictures: {folder / 'results.md'}, {folder / 'results.jsonl'}")


def watch_seed(cell: Cell, config: RunConfig, style: Path | None, shots: int = SHOTS) -> None:
    """Train every method of `config` and record the gate's NLL; `style` is not used."""
    run = open_run(config, "detector", list(cell.argv))
    trainer = run.trainer
    rows = {
        TRAINED: trainer.splits["train"][: config.training.probe_rows],
        HELD_OUT: trainer.splits["validation"],
    }
    write_labels(run, rows, shots)
    say(f"== Style adaptation: {trainer.style_steps} updates of plain cross-entropy")
    start = style_phase(
        trainer, run.assembled.lora, run.folder / "style", style_identity(run.config)
    )
    methods = run.config.resolved_methods()
    for key, method in methods.items():
        say(f"== {key}, watched: {trainer.total_steps} updates")
        folder = run.folder / key
        watch = Watch(Journal(folder / SCORES), partial(scores, trainer, rows))
        finetune(trainer, method, start, run.folder / "style", folder, watch)
    hashes = {data: data_hash(encoded) for data, encoded in rows.items()}
    write_json(run.folder / PROVENANCE, provenance(cell.seed, hashes))
    # Last: it marks the seed as finished.
    write_rows(run.folder / NUMBERS, tidy_rows(cell.seed, run.folder, tuple(methods)))


def write_labels(run: Run, rows: Mapping[str, EncodedSplit], shots: int) -> None:
    """Write what the base knows of each question: a line with its SliCK category and exposure."""
    if (run.folder / LABELS).is_file():
        return
    say("== SliCK categories, before any training")
    slick = SlickScorer(run, shots)
    lines: list[dict[str, Any]] = []
    for data, encoded in rows.items():
        found = slick(run.assembled.lora, encoded)
        lines += [
            {
                "data": data,
                "id": row.id,
                "known": row.example.extra.get("known"),
                "exposure": row.example.extra.get("exposure"),
                "slick": str(found.category[i]),
                "greedy": float(found.greedy[i].mean()),
                "sampled": float(found.sampled[i].mean()),
            }
            for i, row in enumerate(encoded)
        ]
    write_rows(run.folder / LABELS, lines)


def scores(
    trainer: Trainer, rows: Mapping[str, EncodedSplit], lora: nnx.State
) -> Iterator[dict[str, Any]]:
    """Yield NLL, correctness and the gate's decision for every question, with the threshold of this
    moment."""
    threshold = trainer.refit(lora).threshold
    for data, encoded in rows.items():
        nll, correct = trainer.nll(lora, encoded)
        yield {
            "data": data,
            "threshold": threshold,
            "nll": nll.tolist(),
            "correct": correct.astype(int).tolist(),
            "called_known": (nll <= threshold).astype(int).tolist(),
        }
