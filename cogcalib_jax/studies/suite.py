"""A study: a preset under several conditions and seeds, resumable, in one folder with one table.

A cell is one condition with one seed. Its methods are a comparison (`--compare`), so they share
base, data, style phase and first threshold; cells that differ in nothing the style phase sees share
that phase too, and all share compiled steps through JAX's cache on disk. A finished cell is never
run again, a half-finished one continues, and one that fails is reported and does not stop the rest.
"""

from __future__ import annotations

import json
import shlex
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from cogcalib_jax.configlib import (
    FieldError,
    check,
    load_config,
    places,
    style_identity,
    without_person,
)
from cogcalib_jax.configlib.command_line import SOURCE
from cogcalib_jax.console import progress_bar
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import write_whole
from cogcalib_jax.preemption import Preempted
from cogcalib_jax.report.names import DERIVED, REFERENCES
from cogcalib_jax.report.report import write_report
from cogcalib_jax.runs.assemble import say, with_own_lora
from cogcalib_jax.runs.before_work import refuse_choice_of_rule
from cogcalib_jax.runs.config import RunConfig, require_same_config
from cogcalib_jax.runs.folder import holding_locks, lock_folder
from cogcalib_jax.runs.train import train_run

# Compiling a step of the world takes 2 to 6 s; what takes less is not worth a file.
MIN_COMPILE_SECONDS = 0.5

# Settings of a run that a condition cannot have, and who has them.
THE_SUITES = {
    "seed": "name them in seeds",
    "run_dir": "cells lie in folder",
    "resume": "a suite goes on by itself",
    "dry_run": "give the suite --dry-run",
}


@dataclass(frozen=True)
class SuiteConfig:
    """A grid of conditions and seeds over one preset."""

    preset: str = "configs/world.yaml"
    """the run every cell starts from"""
    question: str = ""
    """what the suite is to answer, in a sentence; heads its tables"""
    compare: tuple[str, ...] = ()
    """methods of every cell, as in train.py; none: as the preset says"""
    conditions: tuple[str, ...] = ("'as in the preset'",)
    """each a name, in quotes where it has blanks, then settings as PATH=VALUE"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """0 to 4 for developing; 100 to 104, once, for publishing what was frozen"""
    across: tuple[str, ...] = ()
    """methods whose conditions are compared with the first one"""
    followed: tuple[str, ...] = ()
    """methods whose accuracy and confidence over training are shown; none: every loss"""
    folder: str | None = None
    """where the cells and results lie; unset: runs/NAME after the suite's file"""
    out: str | None = None
    """Markdown file for a copy of the tables; unset: in the folder only"""
    dry_run: bool = False
    """list the cells with an estimate of their time, and run nothing"""

    def __post_init__(self) -> None:
        check(len(self.seeds) > 0, "seeds", "must name at least one seed")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", "must name each seed once")
        check(len(self.conditions) > 0, "conditions", "must name at least one condition")
        names = [parse_condition(entry)[0] for entry in self.conditions]
        check(len(set(names)) == len(names), "conditions", "must have a name of its own each")


@dataclass(frozen=True)
class Cell:
    """One condition with one seed: a comparison in a folder of its own."""

    condition: str
    seed: int
    config: RunConfig
    folder: Path
    argv: tuple[str, ...]
    """the command line of train.py that makes this very run"""

    @property
    def title(self) -> str:
        return f"{self.condition}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        return self.trained and (self.folder / "report.html").is_file()

    @property
    def trained(self) -> bool:
        return (self.folder / "comparison.json").is_file()


def parse_condition(entry: str) -> tuple[str, tuple[str, ...]]:
    """`"all known" composition.known_share=1` -> name and command-line words."""
    try:
        name, *settings = shlex.split(entry)
    except ValueError as error:
        raise FieldError("conditions", f"must begin with a name (got {entry!r})") from error
    check(
        any(map(str.isalnum, name)),
        "conditions",
        f"must have names with a letter or a digit, which become those of folders (got {name!r})",
    )
    words: list[str] = []
    for setting in settings:
        path, equals, value = setting.partition("=")
        check(bool(equals), "conditions", f"must have settings as PATH=VALUE (got {setting!r})")
        of_suite = THE_SUITES.get(path.replace("-", "_"))
        check(of_suite is None, "conditions", f"must not set {path}; {of_suite} (got {setting!r})")
        words += [f"--{path}", value]
    return name, tuple(words)


def cells(config: SuiteConfig, folder: Path) -> list[Cell]:
    """Every cell, seeds of one condition together.

    Raises UserError for a preset or setting that does not exist, before anything is run.
    """
    planned = []
    for entry in config.conditions:
        name, words = parse_condition(entry)
        for seed in config.seeds:
            place = folder / slug(name) / f"seed-{seed}"
            argv = ["--config", config.preset]
            if config.compare:
                argv += ["--compare", ",".join(config.compare)]
            # Later words win: a condition may compare other methods than the suite.
            merged = dict(zip(argv[::2], argv[1::2], strict=True))
            merged |= dict(zip(words[::2], words[1::2], strict=True))
            merged |= {"--seed": str(seed), "--run-dir": str(place)}
            argv = [word for pair in merged.items() for word in pair]
            run = _config(argv, f"condition {name!r}, seed {seed}")
            if not run.compare:
                raise UserError(
                    f"suite: condition {name!r} compares no methods; name them with compare (in the"
                    " suite, in the condition as compare=sft,cols, or in the preset)"
                )
            planned.append(Cell(name, seed, run, place, tuple(argv)))
    if len({cell.folder for cell in planned}) < len(planned):
        raise UserError("suite: two conditions would have one folder; give them other names")
    _require_methods(config, planned)
    return planned


def _require_methods(config: SuiteConfig, planned: Sequence[Cell]) -> None:
    """Tables of a method that nobody trains would only be missing in the end."""
    losses = dict.fromkeys(key for cell in planned for key in cell.config.resolved_methods())
    baselines = dict.fromkeys(key for cell in planned for key in cell.config.sampling_baselines)
    derived = [f"{key}_{derivation}" for key in losses for derivation in DERIVED]
    for field, known in (
        ("across", [*losses, *derived, *REFERENCES, *baselines]),
        ("followed", [*losses, *baselines]),
    ):
        for name in getattr(config, field):
            if name not in known:
                raise UserError(
                    f"suite: {field} names {name!r}, which no condition has; it has"
                    f" {', '.join(known)}"
                )


def _config(argv: Sequence[str], cell: str) -> RunConfig:
    try:
        config = load_config(RunConfig, argv, prog="", description="").config
        refuse_choice_of_rule(config.option_score, "a suite")
        return config
    except UserError as error:
        reason = str(error).removeprefix(f"{SOURCE}: ")  # nobody typed these words
        raise UserError(f"suite: {cell}: {reason}") from error


def slug(name: str) -> str:
    """A condition's name as that of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


Work = Callable[[Cell, RunConfig, Path | None], None]
"""What is done for a cell: with its config, resumed where it was begun, and a finished style phase
that is the same, where there is one."""


def train_cell(cell: Cell, config: RunConfig, style: Path | None) -> None:
    """A comparison with its report; the report alone where it was killed over that."""
    if cell.trained:
        require_same_config(cell.folder, with_own_lora(cell.config))
    else:
        train_run(config, cell.condition, list(cell.argv), style)
    write_report(cell.folder)


def run_cells(planned: Sequence[Cell], folder: Path, work: Work = train_cell) -> list[Cell]:
    """Do what is not finished; returns the cells that failed, each with `failure.txt`.

    Raises Preempted where SIGTERM comes: no cell failed, and the same suite goes on from there.
    """
    with holding_locks():
        lock_folder(folder)
        return _run_cells(planned, folder, work)


def _run_cells(planned: Sequence[Cell], folder: Path, work: Work) -> list[Cell]:
    share_compiled_steps(folder / "compiled")
    failed = []
    styles: dict[str, Path] = {}
    with progress_bar(len(planned), folder.name, "cell") as bar:
        for cell in planned:
            bar.set_postfix_str(cell.title)
            settings = style_identity(with_own_lora(cell.config))
            style_key = json.dumps([settings, places(cell.config)], sort_keys=True)
            try:
                _run(cell, styles.get(style_key), work)
            except Preempted as stopped:
                raise stopped.with_words(f"in {cell.title}") from None
            except Exception as error:  # whatever it is: the other cells do not depend on it
                failed.append(cell)
                write_whole(cell.folder / "failure.txt", without_person(traceback.format_exc()))
                say(f"== {cell.title} failed: {error} (details: {cell.folder / 'failure.txt'})")
            else:
                styles.setdefault(style_key, cell.folder / "style")
            bar.update()
            # Compiled functions of finished cells would stay in memory.
            jax.clear_caches()
    return failed


def share_compiled_steps(folder: Path) -> None:
    """Keep what XLA compiles in `folder`, for later cells and later processes."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _run(cell: Cell, style: Path | None, work: Work) -> None:
    """One cell, from where it stands."""
    if cell.finished:
        require_same_config(cell.folder, with_own_lora(cell.config))
        return
    say(f"== {cell.title}, in {cell.folder}")
    (cell.folder / "failure.txt").unlink(missing_ok=True)
    resume = (cell.folder / "config.yaml").is_file()
    start = time.monotonic()
    work(cell, replace(cell.config, resume=resume), style)
    with (cell.folder / "seconds.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.monotonic() - start:.1f}\n")
