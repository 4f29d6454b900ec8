"""Fine-tune with LoRA so that confidences keep their meaning; see README.md."""

from __future__ import annotations

import sys
from pathlib import Path

from cogcalib_jax.configlib import load_config
from cogcalib_jax.distributed import ending_together, from_main, is_main
from cogcalib_jax.errors import plain_text, run_main
from cogcalib_jax.reporting.report import write_report
from cogcalib_jax.runs.config import RunConfig, require_nothing_retyped, settle_comparison
from cogcalib_jax.runs.dry_run import dry_run_training
from cogcalib_jax.runs.train import train_run

DEFAULT_PRESET = Path(__file__).parent / "configs" / "world.yaml"


def main(argv: list[str]) -> None:
    loaded = load_config(
        RunConfig, argv, prog="train.py", description=__doc__, default_preset=DEFAULT_PRESET
    )
    require_nothing_retyped(loaded)
    config = settle_comparison(loaded)
    if config.dry_run:
        print(plain_text(dry_run_training(config, loaded.preset.stem)))
        return
    folder = train_run(config, loaded.preset.stem, argv)
    report = from_main(lambda: write_report(folder))
    if is_main():
        print(plain_text(report))


if __name__ == "__main__":
    sys.exit(run_main(ending_together(main)))
