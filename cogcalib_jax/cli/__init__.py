"""The console command `cogcalib`, and the programs behind it: runs, evaluations and their folders.

`run_config` and `eval_config` hold the options, `train` and `evaluate` the work. Programs are
imported when they are asked for, so that help is fast and rooms above this one are reached by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from cogcalib_jax.compile_cache import HELP, without_option
from cogcalib_jax.errors import UserError, run_main


class Command(NamedTuple):
    """A word of the command line and the function behind it."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "train": Command("cogcalib_jax.cli.programs", "train", "fine-tune, compare methods, report"),
    "eval": Command("cogcalib_jax.cli.programs", "evaluate", "measure calibration of models"),
    "predict": Command("cogcalib_jax.cli.programs", "predict", "answer the questions of a file"),
    "score": Command("cogcalib_jax.cli.programs", "score", "score a file of predictions"),
    "bench": Command("cogcalib_jax.cli.programs", "bench", "time training and evaluation"),
    "plan": Command("cogcalib_jax.cli.programs", "plan", "compile a step for absent devices"),
    "merge": Command("cogcalib_jax.hf.merge", "main", "merge an adapter into its base"),
    "interpolate": Command("cogcalib_jax.hf.stacking", "main", "go between two adapters, as one"),
    "study": Command("cogcalib_jax.studies", "main", "run a suite of runs, or choose settings"),
}
EXAMPLES = """\
  cogcalib train --config world
  cogcalib train --config own_questions --model.path MODEL --data.path questions.csv
  cogcalib predict --run runs/own_questions-0/sft --questions new.csv --out answers.jsonl
  cogcalib eval --run runs/own_questions-0"""


def main(argv: list[str]) -> None:
    """Run the program that the first word names with the words after it (UserError: no such
    one)."""
    if argv[:1] in (["--version"], ["-V"]):
        print(f"cogcalib {version('cogcalib-jax')}")
        return
    if not argv or argv[0] in ("--help", "-h"):
        print(_help())
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"command is {argv[0]!r}; expected one of {', '.join(COMMANDS)}")
    load(argv[0])(argv[1:])


def load(name: str) -> Callable[[list[str]], None]:
    """Return the function behind a command."""
    command = COMMANDS[name]
    return getattr(import_module(command.module), command.function)


def run() -> None:
    """Run `main` as a program: the entry point of the console command."""
    sys.exit(run_program(main))


def run_program(program: Callable[[list[str]], None]) -> int:
    """Return the exit code of `program`, run with the command line of this process.

    `--no-compile-cache` is an option of every program, which it does not see.
    """
    return run_main(program, without_option(sys.argv[1:]))


def _help() -> str:
    rows = "\n".join(f"  {name:11}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: cogcalib COMMAND [OPTIONS]\n\nCalibrated LoRA fine-tuning of language models.\n\n"
        f"commands (each with --help):\n{rows}\n\nof every command:\n"
        f"  {HELP}\n\nexamples:\n{EXAMPLES}"
    )
