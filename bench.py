"""What runs cost: `train` times each method's training step, `eval` scores questions, `load` reads
a checkpoint, `plan` compiles a step for accelerators that are not here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cogcalib_jax.errors import UserError, plain_text, run_main
from cogcalib_jax.experiments.bench_eval import bench_eval
from cogcalib_jax.experiments.bench_load import bench_load
from cogcalib_jax.experiments.bench_plan import bench_plan
from cogcalib_jax.experiments.bench_train import bench_train

DEFAULT_PRESET = Path(__file__).parent / "configs" / "world.yaml"
COMMANDS: dict[str, Callable[[list[str]], str]] = {
    "train": partial(bench_train, default_preset=DEFAULT_PRESET),
    "eval": partial(bench_eval, default_preset=DEFAULT_PRESET),
    "load": bench_load,
    "plan": partial(bench_plan, default_preset=DEFAULT_PRESET),
}


def main(argv: list[str]) -> None:
    names = ", ".join(COMMANDS)
    if argv[:1] in (["--help"], ["-h"]):
        print(
            f"usage: bench.py COMMAND [OPTIONS]\n\n{__doc__}\n\nCommands, each with --help: {names}"
        )
        return
    if not argv or argv[0] not in COMMANDS:
        found = f"{argv[0]!r} is no command" if argv else "a command is missing"
        raise UserError(f"bench.py: {found}; write python bench.py COMMAND (allowed: {names})")
    print(plain_text(COMMANDS[argv[0]](argv[1:])))


if __name__ == "__main__":
    sys.exit(run_main(main))
