"""Measure what runs cost.

`train` times each method's training step, `eval` scores questions, `load` reads a checkpoint, and
`plan` compiles a step for accelerators that are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from cogcalib_jax.cli.presets import DEFAULT, find_preset, with_preset_file
from cogcalib_jax.errors import UserError, plain_text

# Loaded by name: benchmarks lie above this room.
MODULES = {
    "train": "train_step",
    "eval": "evaluation",
    "load": "loading",
    "plan": "compile_plan",
}


def main(argv: list[str]) -> None:
    """Run the benchmark that the first word names."""
    names = ", ".join(MODULES)
    if argv[:1] in (["--help"], ["-h"]):
        print(
            f"usage: bench.py COMMAND [OPTIONS]\n\n{__doc__}\nCommands, each with --help: {names}"
        )
        return
    if not argv or argv[0] not in MODULES:
        found = f"{argv[0]!r} is no command" if argv else "a command is missing"
        raise UserError(f"bench.py: {found}; write python bench.py COMMAND (allowed: {names})")
    _measure(argv[0], argv[1:])


def plan(argv: list[str]) -> None:
    """Compile a step for a described topology."""
    _measure("plan", argv)


def _measure(name: str, argv: list[str]) -> None:
    function: Callable[..., str] = getattr(
        import_module(f"cogcalib_jax.bench.{MODULES[name]}"), f"bench_{name}"
    )
    default = {} if name == "load" else {"default_preset": find_preset(DEFAULT)}
    print(plain_text(function(with_preset_file(argv), **default)))
