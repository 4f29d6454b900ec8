"""A suite: a preset under several conditions and seeds, resumable, in one folder with one table.

A cell is one condition with one seed. Its methods are a comparison (`--compare`): they share base,
data, style phase and first threshold. Cells with the same style phase share it, too, and all cells
share compiled steps. A finished cell is not run again, a begun one continues, and one that fails
does not stop the others.
"""

from __future__ import annotations

import json
import shlex
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax

from cogcalib_jax.cli import run_folder
from cogcalib_jax.cli.prepare import with_own_lora
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.stored import require_same_config
from cogcalib_jax.cli.train import train_run
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.sources import SOURCE
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.console import progress_bar, say
from cogcalib_jax.errors import FieldError, Preempted, UserError, check, plain_text
from cogcalib_jax.files import without_person, write_whole
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.report.report import write_report
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.report.text import DERIVED, REFERENCES, count
from cogcalib_jax.settings import Role, by_path, places, style_identity
from cogcalib_jax.studies import study_command
from cogcalib_jax.studies.frontier_report import write_frontier
from cogcalib_jax.studies.suite_report import write_results
from cogcalib_jax.studies.suite_results import Condition, Study

OWN_SETTINGS: dict[Role, str] = {
    "seed": "name them in seeds",
    "folder": "cells lie in folder",
    "resume": "a suite continues by itself",
    "dry_run": "give the suite --dry-run",
}
"""settings of a run that a condition cannot have, and what to do instead"""


@dataclass(frozen=True)
class SuiteConfig:
    """A grid of conditions and seeds over one preset."""

    preset: str = "world"
    """the run every cell starts from: the name of a preset, or a file"""
    question: str = ""
    """the question that the suite answers, in one sentence; it heads the tables"""
    compare: tuple[str, ...] = ()
    """methods of every cell, as in train.py; none: as the preset says"""
    conditions: tuple[str, ...] = ("'as in the preset'",)
    """each a name, in quotes if it has blanks, then settings as PATH=VALUE"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """0 to 4 for development; 100 to 104, once, for publishing frozen settings"""
    across: tuple[str, ...] = ()
    """methods whose conditions are compared with the first one"""
    followed: tuple[str, ...] = ()
    """methods whose accuracy and confidence over training are shown; none: every loss"""
    frontier: bool = False
    """whether to draw what was taught against all else, too (studies/frontier.py); its cells need
    also=TASK:taught_fit,TASK:unseen_fit"""
    folder: str | None = None
    """folder of the cells and results; unset: runs/suites/NAME after the suite's file"""
    out: str | None = None
    """Markdown file for a copy of the tables; unset: in the folder only"""
    dry_run: bool = False
    """list the cells with their state, and run nothing"""

    def __post_init__(self) -> None:
        check(len(self.seeds) > 0, "seeds", "must name at least one seed")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", "must name each seed once")
        check(len(self.conditions) > 0, "conditions", "must name at least one condition")
        names = [parse_condition(entry)[0] for entry in self.conditions]
        check(len(set(names)) == len(names), "conditions", "must have different names")


def as_run(config: RunConfig, **changes: Any) -> RunConfig:
    """Return the run within a config that has fields of its own beside it, with `changes`."""
    return RunConfig(**{f.name: getattr(config, f.name) for f in fields(RunConfig)} | changes)


@dataclass(frozen=True)
class Cell:
    """One condition with one seed: a comparison in a folder of its own."""

    condition: str
    seed: int
    config: RunConfig
    folder: Path
    argv: tuple[str, ...]
    """the command line of train.py that makes the same run"""

    @property
    def title(self) -> str:
        return f"{self.condition}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        return self.trained and (self.folder / "report.html").is_file()

    @property
    def trained(self) -> bool:
        return (self.folder / "comparison.json").is_file()

    @property
    def state(self) -> str:
        """The word of a dry run for what a start of the suite finds."""
        if self.finished:
            return "finished"
        if (self.folder / "failure.txt").is_file():
            return "failed, runs again"
        return "begun" if (self.folder / "config.yaml").is_file() else "to do"


def run_suite(file: str, argv: Sequence[str]) -> None:
    """Run the suite in `file`, write its results and print them.

    argv: the words behind `cogcalib study`; all but the first are options.

    Raises:
        UserError: mistakes, before anything runs; and failed cells, after the results of the others
            were written.
    """
    words = ["--config", file, *argv[1:]]
    prog = study_command(argv[0])
    config = load_config(SuiteConfig, words, prog=prog, description=__doc__).config
    name = Path(file).stem
    folder = Path(config.folder) if config.folder else Path("runs") / "suites" / name
    planned = cells(config, folder)
    if config.dry_run:
        print(plain_text(listing(planned)))
        return
    run_folder.require_folder(folder, "--folder")
    if config.out is not None:
        run_folder.require_writable(Path(config.out), "--out")
    command = study_command(*argv)
    with run_folder.resumable(folder, command, begun="."):
        failed = run_cells(planned, folder)
    if len(failed) == len(planned):
        raise UserError(f"{folder}: every cell failed; the first: {failed[0].folder}/failure.txt")
    study = Study(
        name=name,
        question=config.question,
        folder=folder,
        preset=config.preset,
        command=command,
        configuration=to_yaml(config),
        across=config.across,
        conditions=_conditions(config, [cell for cell in planned if cell not in failed]),
        followed=config.followed,
        failed=tuple(cell.title for cell in failed),
    )
    text = write_results(study)
    if config.frontier:
        text = write_frontier(study)
    if config.out is not None:
        write_whole(Path(config.out), f"    {command}\n\n{text}")
    print(plain_text(text))
    if config.frontier:
        print(f"Frontier: {folder / 'frontier.md'}, {folder / 'plots' / 'frontier.png'}")
    print(f"Tables: {folder / 'results.md'}, {folder / 'results.csv'}, {folder / 'results.jsonl'}")
    print(f"Report: {folder / 'report.html'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(planned)} cells failed: {advice(failed)}")


def advice(failed: Sequence[Cell]) -> str:
    """Return the titles of failed cells and what to do about them."""
    titles = ", ".join(cell.title for cell in failed)
    return f"{titles}. Read failure.txt in their folders, then run the same command again"


def _conditions(config: SuiteConfig, done: Sequence[Cell]) -> tuple[Condition, ...]:
    """The conditions with a finished cell, as the report sees them."""
    found = []
    for name, words in map(parse_condition, config.conditions):
        changed = zip(words[::2], words[1::2], strict=True)
        settings = tuple(f"{path.removeprefix('--')}={value}" for path, value in changed)
        runs = {cell.seed: read_run(cell.folder) for cell in done if cell.condition == name}
        found += [Condition(name, settings, runs)] if runs else []
    return tuple(found)


def parse_condition(entry: str) -> tuple[str, tuple[str, ...]]:
    """Return name and command-line words of `"all known" composition.known_share=1`."""
    try:
        name, *settings = shlex.split(entry)
    except ValueError as error:
        raise FieldError("conditions", f"must begin with a name (got {entry!r})") from error
    check(
        any(map(str.isalnum, name)),
        "conditions",
        f"must have names with a letter or a digit, for their folders (got {name!r})",
    )
    check(
        bool(settings) or entry.lstrip()[:1] in "'\"",
        "conditions",
        "must have settings as PATH=VALUE behind a name, or a name in quotes; a list in a setting"
        f" needs brackets, such as also=[TASK,TASK] (got {entry!r})",
    )
    words: list[str] = []
    for setting in settings:
        path, equals, value = setting.partition("=")
        check(bool(equals), "conditions", f"must have settings as PATH=VALUE (got {setting!r})")
        instead = by_path(RunConfig, OWN_SETTINGS).get(path.replace("-", "_"))
        check(instead is None, "conditions", f"must not set {path}; {instead} (got {setting!r})")
        words += [f"--{path}", value]
    return name, tuple(words)


def cells(config: SuiteConfig, folder: Path) -> list[Cell]:
    """Return every cell, the seeds of one condition together.

    Raises:
        UserError: a preset or setting that does not exist, or tables of a method that no condition
            trains.
    """
    planned = []
    for entry in config.conditions:
        name, words = parse_condition(entry)
        slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        for seed in config.seeds:
            place = folder / slug / f"seed-{seed}"
            options = {"--config": config.preset}
            if config.compare:
                options["--compare"] = ",".join(config.compare)
            # Later words win: a condition may compare other methods than the suite.
            options |= dict(zip(words[::2], words[1::2], strict=True))
            options |= {"--seed": str(seed), "--run-dir": str(place)}
            argv = tuple(word for pair in options.items() for word in pair)
            run = _run_config(argv, f"condition {name!r}, seed {seed}")
            if not run.compare:
                raise UserError(
                    f"suite: condition {name!r} compares no methods; name them with compare (in the"
                    " suite, in the condition as compare=sft,cols, or in the preset)"
                )
            planned.append(Cell(name, seed, run, place, argv))
    if len({cell.folder for cell in planned}) < len(planned):
        raise UserError("suite: two conditions would have one folder; give them other names")
    _require_methods(config, planned)
    return planned


def _run_config(argv: Sequence[str], cell: str) -> RunConfig:
    try:
        config = load_config(RunConfig, argv, prog="", description="").config
        run_folder.refuse_choice_of_rule(config.option_score, "a suite")
        return config
    except UserError as error:
        reason = str(error).removeprefix(f"{SOURCE}: ")  # nobody typed these words
        raise UserError(f"suite: {cell}: {reason}") from error


def _require_methods(config: SuiteConfig, planned: Sequence[Cell]) -> None:
    losses = dict.fromkeys(key for cell in planned for key in cell.config.resolved_methods())
    baselines = dict.fromkeys(key for cell in planned for key in cell.config.baselines)
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


def listing(planned: Sequence[Cell]) -> str:
    """Return a table of the cells with their state."""
    rows = tuple(
        (cell.condition, str(cell.seed), ", ".join(cell.config.compare), cell.state)
        for cell in planned
    )
    note = f"{count(len(rows), 'cell')}, {sum(not cell.finished for cell in planned)} still to run."
    return as_text(Table(("condition", "seed", "methods", "state"), rows, note))


Work = Callable[[Cell, RunConfig, Path | None], None]
"""The work of a cell: with its config, resumed if it was begun, and the folder of an equal finished
style phase, if there is one."""


def train_cell(cell: Cell, config: RunConfig, style: Path | None) -> None:
    """Train a comparison and write its report, or the report alone if that is all that lacks."""
    if cell.trained:
        require_same_config(cell.folder, with_own_lora(cell.config))
    else:
        train_run(config, cell.condition, list(cell.argv), style)
    write_report(cell.folder)


def run_cells(planned: Sequence[Cell], folder: Path, work: Work = train_cell) -> list[Cell]:
    """Do what is not finished. Return the cells that failed, each with its `failure.txt`.

    Raises:
        Preempted: SIGTERM came. No cell failed, and the same suite continues from there.
    """
    failed = []
    styles: dict[str, Path] = {}
    with run_folder.holding_locks():
        run_folder.lock_folder(folder)
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
                    file = cell.folder / "failure.txt"
                    write_whole(file, without_person(traceback.format_exc()))
                    say(f"== {cell.title} failed: {error} (details: {file})")
                else:
                    styles.setdefault(style_key, cell.folder / "style")
                bar.update()
                # Compiled functions of finished cells would stay in memory.
                jax.clear_caches()
    return failed


def _run(cell: Cell, style: Path | None, work: Work) -> None:
    if cell.finished:
        require_same_config(cell.folder, with_own_lora(cell.config))
        return
    say(f"== {cell.title}, in {cell.folder}")
    (cell.folder / "failure.txt").unlink(missing_ok=True)
    resume = (cell.folder / "config.yaml").is_file()
    work(cell, replace(cell.config, resume=resume), style)
