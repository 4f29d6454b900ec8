"""Files of a watched seed, made up: of twenty questions of each kind every other one is known."""

from pathlib import Path

import numpy as np

from cogcalib_jax.inference.predictions import write_rows
from cogcalib_jax.studies.detector_results import (
    HELD_OUT,
    LABELS,
    NUMBERS,
    SCORES,
    TRAINED,
    tidy_rows,
)
from cogcalib_jax.studies.slick_rule import CATEGORIES

THRESHOLD = 1.0


def write_watched(folder: Path, methods: tuple[str, ...]) -> None:
    """The known ones are right and have a low NLL; what is trained on comes to have one, too."""
    rng = np.random.default_rng(0)
    known = np.arange(20) % 2 == 0
    labels = [
        {"data": data, "id": f"{data}-{i}", "known": int(one), "exposure": 40 if one else 0}
        | {"slick": CATEGORIES[0 if one else 2 + i // 2 % 2], "greedy": 1.0, "sampled": 1.0}
        for data in (TRAINED, HELD_OUT)
        for i, one in enumerate(known)
    ]
    write_rows(folder / LABELS, labels)
    for method in methods:
        lines = []
        for step in (4, 8, 12):
            for data in (TRAINED, HELD_OUT):
                nll = np.where(known, 0.3, 2.0) + rng.exponential(0.4, len(known))
                if data == TRAINED:
                    nll *= 4 / step
                called = (nll <= THRESHOLD).astype(int).tolist()
                line = {"step": step, "data": data, "threshold": THRESHOLD, "nll": nll.tolist()}
                lines.append(line | {"correct": called, "called_known": called})
        write_rows(folder / method / SCORES, lines)
    write_rows(folder / NUMBERS, tidy_rows(0, folder, methods))
