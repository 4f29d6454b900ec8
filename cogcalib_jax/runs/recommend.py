"""Which adapter of a run to take, chosen on its validation questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.metrics.significance import paired_difference
from cogcalib_jax.report.names import BASE, COMMONEST, best_epoch_of, is_tempered
from cogcalib_jax.report.recommendation import (
    RECOMMENDED_FILE,
    VALIDATION_FILE,
    read_validation_nll,
)
from cogcalib_jax.runs.method_run import Run


def recommend(run: Run, candidates: Sequence[str]) -> None:
    """Write `recommended.json` of a finished run.

    The choice looks at validation questions alone, and at the NLL of what `--predict` gives: scores
    with the temperature of `calibration.json`. The candidates whose difference from the lowest NLL
    has a paired 95 % interval that holds 0 are equal to it; of these the simplest is taken, which
    is the first of `candidates`. The averages over several models (MC-dropout and the like) are no
    candidates, for `--predict` answers with one adapter alone.

    Args:
        candidates: folders in the run's folder that hold an adapter, the simplest first.
    """
    validation = run.trainer.splits["validation"]
    if not validation:
        return
    chosen = from_main(lambda: choose(run.folder, candidates))
    write_json(run.folder / RECOMMENDED_FILE, chosen | {"question": _example(validation)})


def simplest_first(folders: Sequence[str]) -> list[str]:
    """Return the folders of a comparison that hold an adapter, in the order in which ties are
    decided: the best epoch of sft, sft, and the others as they were named."""
    kept = [key for key in folders if key not in (BASE, COMMONEST) and not is_tempered(key)]
    order = [best_epoch_of("sft"), "sft"]
    return sorted(kept, key=lambda key: order.index(key) if key in order else len(order))


def choose(run: Path, candidates: Sequence[str]) -> dict[str, Any]:
    """Choose among `candidates` (the simplest first) by the files in their folders.

    Returns:
        What `recommended.json` holds, but for its example of a question: `method`, the folder;
        `chosen_on`, `n` questions; `validation_nll` of every candidate and reference, in nats;
        `equal_to_best`, whose differences from the lowest NLL may be noise; `not_better_than`,
        the references that the chosen one does not beat beyond its paired interval.
    """
    nll = {key: read_validation_nll(run / key) for key in candidates}
    best = min(nll, key=lambda key: nll[key].mean())
    equal = [key for key in nll if key == best or _low(nll[key], nll[best]) <= 0]
    method = equal[0]
    references = {
        key: read_validation_nll(run / key)
        for key in (BASE, COMMONEST)
        if (run / key / VALIDATION_FILE).is_file()
    }
    return {
        "method": method,
        "chosen_on": "validation",
        "n": len(nll[method]),
        "validation_nll": {key: float(values.mean()) for key, values in (nll | references).items()},
        "equal_to_best": equal,
        "not_better_than": [
            key for key, values in references.items() if _low(values, nll[method]) <= 0
        ],
    }


def _low(values: np.ndarray, others: np.ndarray) -> float:
    """The lower end of the paired 95 % interval of the mean difference."""
    return paired_difference([values], [others]).low


def _example(validation: EncodedSplit) -> Mapping[str, Any] | None:
    """A question in the shape that `--predict` reads; None for open ones, which it does not."""
    if validation.is_open:
        return None
    example = validation[0].example
    passage = {"passage": example.passage} if example.passage else {}
    return passage | {"question": example.question, "choices": list(example.choices)}
