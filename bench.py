"""Measure the speed and memory of runs."""

import sys
from importlib import import_module

from cogcalib_jax.cli import run_program
from cogcalib_jax.errors import UserError, plain_text

COMMANDS = {
    "train": "benchmarks.train_step",
    "eval": "benchmarks.evaluation",
    "load": "benchmarks.loading",
    "plan": "cogcalib_jax.bench.plan",
}
HELP = """\
usage: bench.py COMMAND [OPTIONS]

Measure the speed and memory of runs.

`train` times each method's training step, `eval` scores questions, `load` reads a checkpoint, and
`plan`, which is `cogcalib plan`, compiles a step for accelerators that this machine lacks.

Commands, each with --help: """


def main(argv: list[str]) -> None:
    """Run the benchmark that the first word names."""
    names = ", ".join(COMMANDS)
    if argv[:1] in (["--help"], ["-h"]):
        print(f"{HELP}{names}")
        return
    if not argv or argv[0] not in COMMANDS:
        found = f"{argv[0]!r} is no command" if argv else "a command is missing"
        raise UserError(f"bench.py: {found}; write python bench.py COMMAND (allowed: {names})")
    module = import_module(COMMANDS[argv[0]])
    print(plain_text(getattr(module, f"bench_{argv[0]}")(argv[1:])))


if __name__ == "__main__":
    sys.exit(run_program(main))
