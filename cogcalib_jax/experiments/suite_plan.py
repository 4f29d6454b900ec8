"""What a suite would run, and about how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from cogcalib_jax.experiments.suite import Cell
from cogcalib_jax.reporting.tables import Table, as_text
from cogcalib_jax.runs.assemble import say
from cogcalib_jax.runs.dry_run import estimate_seconds


def plan_text(cells: Sequence[Cell]) -> str:
    """A table of the cells and a sum.

    A cell takes as long as finished cells of its condition did; where there are none, as long as
    its operations take at the rate of a matrix product on this machine.
    """
    seconds = {cell: _seconds(cell, cells) for cell in cells}
    rows = [
        (cell.condition, str(cell.seed), ", ".join(cell.config.compare), _state(cell), _minutes(s))
        for cell, s in seconds.items()
    ]
    total = sum(s for cell, s in seconds.items() if not cell.finished)
    note = (
        f"{len(cells)} cells, about {_minutes(total)} still to run. An estimate from operations"
        " leaves out compiling, and is easily off by a factor of three."
    )
    return as_text(Table(("condition", "seed", "methods", "state", "time"), tuple(rows), note))


def _seconds(cell: Cell, cells: Sequence[Cell]) -> float:
    measured = [
        float((other.folder / "seconds.txt").read_text(encoding="utf-8").split()[-1])
        for other in cells
        if other.condition == cell.condition and (other.folder / "seconds.txt").is_file()
    ]
    if measured:
        return median(measured)
    say(f"== {cell.title}")
    return estimate_seconds(cell.config)


def _state(cell: Cell) -> str:
    if cell.finished:
        return "finished"
    if (cell.folder / "failure.txt").is_file():
        return "failed, will be tried again"
    return "begun" if (cell.folder / "config.yaml").is_file() else "to do"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
