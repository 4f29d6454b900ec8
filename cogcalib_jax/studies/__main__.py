"""Run a study: python -m cogcalib_jax.studies configs/suites/world_quick.yaml [--seeds 0,1]."""

from __future__ import annotations

import sys
from pathlib import Path

from cogcalib_jax.cli import run_program
from cogcalib_jax.cli.presets import find_preset
from cogcalib_jax.compile_cache import enable_compile_cache
from cogcalib_jax.configlib import command_line, load_config
from cogcalib_jax.errors import UserError, plain_text
from cogcalib_jax.files import write_whole
from cogcalib_jax.runs.before_work import goes_on, require_folder, require_writable
from cogcalib_jax.studies.detector import detector
from cogcalib_jax.studies.suite import SuiteConfig, cells, run_cells
from cogcalib_jax.studies.suite_plan import plan_text
from cogcalib_jax.studies.suite_results import read_study, write_results
from cogcalib_jax.studies.tune import tune


def _suite_file(word: str) -> str:
    """Return the file of a suite: as it stands, or by its name, as in world_quick."""
    return word if Path(word).suffix else find_preset(f"suites/{word.removeprefix('suites/')}")


def main(argv: list[str]) -> None:
    commands = {"tune": tune, "detector": detector}
    if argv and argv[0] in commands:
        enable_compile_cache()
        print(plain_text(commands[argv[0]](argv[1:])))
        return
    if not argv or (argv[0].startswith("-") and argv[0] not in ("--help", "-h")):
        raise UserError(
            "experiments: name a suite's YAML file first, as in python -m cogcalib_jax.studies"
            " configs/suites/world_quick.yaml; or one of the commands tune, detector"
        )
    suite = None if argv[0] in ("--help", "-h") else argv[0]
    rest = argv if suite is None else ["--config", _suite_file(suite), *argv[1:]]
    config = load_config(SuiteConfig, rest, prog="experiments", description=__doc__).config
    name = Path(suite or "").stem
    folder = Path(config.folder) if config.folder else Path("runs") / "suites" / name
    planned = cells(config, folder)
    if config.dry_run:
        print(plain_text(plan_text(planned)))
        return
    enable_compile_cache()
    require_folder(folder, "--folder")
    if config.out is not None:
        require_writable(Path(config.out), "--out")
    with goes_on(folder, argv):
        failed = run_cells(planned, folder)
    done = [cell for cell in planned if cell not in failed]
    if not done:
        raise UserError(f"{folder}: every cell failed; the first: {failed[0].folder}/failure.txt")
    command = command_line("python", "-m", "cogcalib_jax.studies", *argv)
    text = write_results(read_study(config, name, command, done, failed, folder), done)
    if config.out is not None:
        write_whole(Path(config.out), f"    {command}\n\n{text}")
    print(plain_text(text))
    print(f"Tables: {folder / 'results.md'}, {folder / 'results.csv'}, {folder / 'results.jsonl'}")
    print(f"Report: {folder / 'report.html'}")
    if failed:
        listed = ", ".join(cell.title for cell in failed)
        raise UserError(
            f"{len(failed)} of {len(planned)} cells failed: {listed}; see failure.txt in their"
            " folders, then run the same command again"
        )


if __name__ == "__main__":
    sys.exit(run_program(main))
