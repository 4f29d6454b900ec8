"""Fine-tune with LoRA so that confidences keep their meaning; see README.md."""

from __future__ import annotations

import sys
from pathlib import Path

from cogcalib_jax.distributed import ending_together, from_main, is_main
from cogcalib_jax.errors import plain_text, run_main
from cogcalib_jax.reporting.report import write_report
from cogcalib_jax.runs.config import load_training
from cogcalib_jax.runs.dry_run import dry_run_training
from cogcalib_jax.runs.folder import resumable, resume_command
from cogcalib_jax.runs.train import PROGRAM, train_run

DEFAULT_PRESET = Path(__file__).parent / "configs" / "world.yaml"


def main(argv: list[str]) -> None:
    config, name = load_training(
        argv, prog=PROGRAM, description=__doc__, default_preset=DEFAULT_PRESET
    )
    if config.dry_run:
        print(plain_text(dry_run_training(config, name)))
        return
    folder = train_run(config, name, argv)
    with resumable(folder, resume_command(PROGRAM, folder)):
        report = from_main(lambda: write_report(folder))
    if is_main():
        print(plain_text(report))


if __name__ == "__main__":
    sys.exit(run_main(ending_together(main)))
