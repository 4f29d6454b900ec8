"""A preset's comparison over several seeds, and its table with paired differences.

    python -m cogcalib_jax.experiments.seeds --preset configs/world.yaml --seeds 100,101,102,103,104

A seed that is finished in `folder` is not run again, and an interrupted one continues. `--compare`
names other methods than the preset's, such as the sampling baselines:

    python -m cogcalib_jax.experiments.seeds --compare sft,ls,cols,mc_dropout,ensemble
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from cogcalib_jax.configlib import check, load_config
from cogcalib_jax.errors import run_main
from cogcalib_jax.reporting.report import seeds_report, write_report
from cogcalib_jax.runs.assemble import say, with_own_lora
from cogcalib_jax.runs.config import RunConfig, require_same_config
from cogcalib_jax.runs.train import train_run


@dataclass(frozen=True)
class SeedsConfig:
    """Which comparison is run on which seeds."""

    preset: str = "configs/world.yaml"
    """the comparison, with every setting as it is there"""
    compare: tuple[str, ...] = ()
    """methods and sampling baselines in place of the preset's; none: as the preset says"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """0 to 4 for developing; 100 to 104, once, for publishing a frozen preset"""
    folder: str | None = None
    """where the runs lie, one folder a seed; unset: runs/NAME-seeds after the preset's name"""
    out: str | None = None
    """Markdown file for the table; unset: printed only"""

    def __post_init__(self) -> None:
        check(
            len(set(self.seeds)) == len(self.seeds) >= 2,
            "seeds",
            "must name at least two seeds, each once",
        )


def run_seeds(config: SeedsConfig) -> list[Path]:
    """Train what is not finished yet; the run folders, in the order of the seeds."""
    name = Path(config.preset).stem
    root = Path(config.folder) if config.folder else Path("runs") / f"{name}-seeds"
    folders = []
    for number, seed in enumerate(config.seeds, start=1):
        folder = root / f"seed-{seed}"
        folders.append(folder)
        argv = ["--config", config.preset, "--seed", str(seed), "--run-dir", str(folder)]
        if config.compare:
            argv += ["--compare", ",".join(config.compare)]
        run_config = load_config(RunConfig, argv, prog="", description="").config
        started = (folder / "config.yaml").is_file()
        if (folder / "comparison.json").is_file():
            require_same_config(folder, with_own_lora(run_config))
            say(f"== seed {seed}: finished before, in {folder}")
            continue
        say(f"== seed {seed} ({number} of {len(config.seeds)}), in {folder}")
        train_run(replace(run_config, resume=started), name, argv)
        write_report(folder)
    return folders


def main(argv: list[str]) -> None:
    config = load_config(SeedsConfig, argv, prog="seeds", description=__doc__).config
    text = seeds_report(run_seeds(config))
    print(text)
    if config.out is not None:
        out = Path(config.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python -m cogcalib_jax.experiments.seeds", *argv])
        out.write_text(f"    {command}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
