"""What a suite would run, and about how long that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.dry_report import FACTOR
from cogcalib_jax.runs.dry_run import Estimate, Estimator
from cogcalib_jax.runs.workload import METHOD_SECONDS, RUN_SECONDS
from cogcalib_jax.studies.suite import Cell

# Operations take this many times as long as at the rate of a matrix product: the middle of what a
# dry run of train.py tells.
SLOWER = math.sqrt(math.prod(FACTOR))
BASIS = (
    f"An estimate is {SLOWER:g} times the operations' time at this machine's matrix products, with"
    f" {RUN_SECONDS} s for each cell and {METHOD_SECONDS} s for each method (measured with the"
    " world on two CPU cores): within a factor of two on a machine that does nothing else. Steps"
    " that are compiled anew add seconds (small models) to minutes (large ones)."
)


def plan_text(cells: Sequence[Cell]) -> str:
    """A table of the cells and a sum.

    A cell takes as long as finished cells of its condition did; where there are none, what is
    estimated for the first cell that differs in nothing but the seed.
    """
    seconds = {cell: _seconds(cell, cells) for cell in cells}
    rows = [
        (cell.condition, str(cell.seed), ", ".join(cell.config.compare), _state(cell), minutes(s))
        for cell, s in seconds.items()
    ]
    total = sum(s for cell, s in seconds.items() if not cell.finished)
    note = f"{len(cells)} cells, about {minutes(total)} still to run. {BASIS}"
    return as_text(Table(("condition", "seed", "methods", "state", "time"), tuple(rows), note))


def _seconds(cell: Cell, cells: Sequence[Cell]) -> float:
    # A line for every time that it came to an end, be it of its report alone.
    measured = [
        sum(map(float, (other.folder / "seconds.txt").read_text(encoding="utf-8").split()))
        for other in cells
        if other.condition == cell.condition and (other.folder / "seconds.txt").is_file()
    ]
    if measured:
        return median(measured)
    return _estimated(cell, cells)


def _estimated(cell: Cell, cells: Sequence[Cell]) -> float:
    like = [other for other in cells if but_seed(other.config) == but_seed(cell.config)]
    of_operations = operations(like[0].config)
    trainings = len(of_operations.methods) + len(cell.config.sampling_baselines)
    seconds = of_operations.style + sum(of_operations.methods.values()) + of_operations.others
    before = cells[: cells.index(cell)]
    if not any(_base(other.config) == _base(cell.config) for other in before):
        seconds += of_operations.pretraining  # the first cell of a world builds its base
    return SLOWER * seconds + RUN_SECONDS + METHOD_SECONDS * trainings


_estimator = Estimator()


@cache
def operations(config: RunConfig) -> Estimate:
    """Estimated once for equal configs."""
    return _estimator(config)


def but_seed(config: RunConfig) -> RunConfig:
    """Equal for runs that differ in nothing but the seed, and so take equally long."""
    return replace(config, seed=0, run_dir=None, resume=False)


def _base(config: RunConfig) -> tuple[Any, ...]:
    return config.seed, config.model, config.world, config.pretrain


def _state(cell: Cell) -> str:
    if cell.finished:
        return "finished"
    if (cell.folder / "failure.txt").is_file():
        return "failed, will be tried again"
    return "begun" if (cell.folder / "config.yaml").is_file() else "to do"


def minutes(seconds: float) -> str:
    """As tables show a time."""
    return f"{seconds / 60:.1f} min"
