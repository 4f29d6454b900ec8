"""Fine-tune with LoRA so that confidences keep their meaning; see README.md."""

from __future__ import annotations

from cogcalib_jax.cli.presets import DEFAULT, find_preset, with_preset_file
from cogcalib_jax.compile_cache import HELP, enable_compile_cache
from cogcalib_jax.errors import plain_text
from cogcalib_jax.runs.config import PROGRAM, RunConfig, load_training
from cogcalib_jax.runs.stored import resume_command

EXAMPLES = """\
  cogcalib train
  cogcalib train --config own_questions --model.path MODEL --data.path questions.csv
  cogcalib train --compare "sft,cols=0.3,focal(gamma=3)" --dry-run true
  cogcalib train --resume --run-dir runs/world-0"""


def main(argv: list[str]) -> None:
    """Train and evaluate what `argv` asks for, write the report and print its text."""
    config, name = load_training(
        with_preset_file(argv),
        prog=PROGRAM,
        description=f"{__doc__}\n\n{EXAMPLES}\n\n{HELP}",
        default_preset=find_preset(DEFAULT),
    )
    _train(config, name, argv)


def _train(config: RunConfig, name: str, argv: list[str]) -> None:
    # Imported here: they bring JAX, which help and a refused option need not wait for.
    from cogcalib_jax.distributed import from_main, is_main
    from cogcalib_jax.report.report import write_report
    from cogcalib_jax.runs.dry_run import dry_run_training
    from cogcalib_jax.runs.folder import resumable
    from cogcalib_jax.runs.train import train_run

    if config.dry_run:
        print(plain_text(dry_run_training(config, name)))
        return
    enable_compile_cache()
    folder = train_run(config, name, argv)
    with resumable(folder, resume_command(PROGRAM, folder)):
        report = from_main(lambda: write_report(folder))
    if is_main():
        print(plain_text(report))
