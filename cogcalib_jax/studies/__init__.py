"""Studies: suites of runs, tuning on validation questions, the gate's NLL as a detector.

This is the top room: it may import every other, and none imports it. `main` is `cogcalib study`.
"""

from __future__ import annotations

from importlib import import_module

from cogcalib_jax.compile_cache import enable_compile_cache
from cogcalib_jax.configlib.sources import find_preset, preset_names
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import command_line

COMMANDS = {
    "tune": "choose term, gate, weight and epochs on validation questions",
    "frontier": "the suite world_frontier: what was taught against all else",
    "detector": "measure how long the gate's NLL detects what the base knows",
}
SUITES = "suites/"
FRONTIER = "world_frontier"
"""the suite behind the word frontier"""


def main(argv: list[str]) -> None:
    """Run the suite that the first word names, or `tune` or `detector`, with the words after it
    (UserError: no such suite, and whatever a study refuses)."""
    if argv and argv[0] in ("--help", "-h"):
        print(_help())
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(
            f"command line: no study is named; expected a suite or one of {', '.join(COMMANDS)}."
            " `cogcalib study --help` lists the suites"
        )
    enable_compile_cache()
    if argv[0] == "frontier":
        argv = [FRONTIER, *argv[1:]]
    if argv[0] in COMMANDS:
        getattr(import_module(f"cogcalib_jax.studies.{argv[0]}"), argv[0])(argv[1:])
    else:
        suite = find_preset(argv[0], SUITES, what="study", others=list(COMMANDS))
        import_module("cogcalib_jax.studies.suite").run_suite(suite, argv)


def study_command(*argv: str) -> str:
    """Return the line for a shell that runs a study with these words."""
    return command_line("cogcalib", "study", *argv)


def _help() -> str:
    commands = "\n".join(f"  {name:10}{summary}" for name, summary in COMMANDS.items())
    suites = "\n".join(f"  {name}" for name in preset_names(SUITES))
    return (
        "usage: cogcalib study SUITE [OPTIONS]\n"
        f"       cogcalib study {{{','.join(COMMANDS)}}} [OPTIONS]\n\n"
        "SUITE is the name of a suite or a YAML file of your own. `--dry-run true` lists its cells."
        f"\n\nsuites (each with --help):\n{suites}\n\ncommands (each with --help):\n{commands}\n\n"
        "examples:\n  cogcalib study world_quick\n"
        "  cogcalib study tune --config world --seeds 0,1,2"
    )
