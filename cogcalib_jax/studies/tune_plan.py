"""What a tuning would train, and about how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.runs.workload import METHOD_SECONDS, RUN_SECONDS
from cogcalib_jax.studies.suite_plan import (
    BASIS,
    SLOWER,
    but_seed,
    minutes,
    operations,
)
from cogcalib_jax.studies.trying import Trial


def trials_text(trials: Sequence[Trial]) -> str:
    """A table of all trainings and a sum: seeds take equally long, and so do weights of one term
    and gate."""
    rows, total = [], 0.0
    built = set()
    for trial in trials:
        seed, epochs = trial.config.seed, trial.config.training.epochs
        methods = {entry: trial.method(entry) for entry in trial.entries}
        kinds = {f"{m.term}@{m.gate}" for m in methods.values() if m.term != "none"}
        like = replace(but_seed(trial.config), compare=("sft", *sorted(kinds)))
        estimate = operations(replace(like, seed=trials[0].config.seed))
        missing = trial.missing
        if missing:
            before = estimate.style + (0 if seed in built else estimate.pretraining)
            total += RUN_SECONDS + SLOWER * before
            built.add(seed)
        for entry, method in methods.items():
            seconds = SLOWER * estimate.methods[method.label] + METHOD_SECONDS
            total += seconds if entry in missing else 0
            state = "to do" if entry in missing else "finished"
            rows.append((str(seed), f"{epochs:g}", entry, state, minutes(seconds)))
    note = (
        f"{len(rows)} trainings, about {minutes(total)} still to run; the best epoch of sft and a"
        f" temperature for it need none of their own. {BASIS}"
    )
    return as_text(Table(("seed", "epochs", "method", "state", "time"), tuple(rows), note))
