"""What watched seeds found, as files: results.jsonl, results.md, and the pictures in plots/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.experiments.detector_results import (
    DATA_WORDS,
    EXPOSURES,
    NOW,
    NUMBERS,
    SLICK,
    START,
    TARGET_WORDS,
    Seeds,
    auroc_of,
    auroc_table,
    exposures_stated,
    pairs_of,
    read_watched,
    start_tables,
    threshold_table,
)
from cogcalib_jax.files import write_whole
from cogcalib_jax.reporting.canvas import project_style, save
from cogcalib_jax.reporting.detector_plots import (
    Course,
    Curves,
    auroc_figure,
    auroc_text,
    roc_figure,
    roc_text,
)
from cogcalib_jax.reporting.names import short_name
from cogcalib_jax.reporting.tables import as_markdown

GRID = np.linspace(0, 1, 201)
"""false positive rates at which the seeds' curves are averaged"""
NOT_STATED = (
    " These rows do not say how often the base read of them, as only the world's do: nothing is"
    " compared with exposures, and the threshold's rates are against what was right at the start."
)


def write_results(
    folder: Path,
    command: str,
    done: Mapping[int, Path],
    methods: Sequence[str],
    out: Path | None,
) -> str:
    """results.jsonl, results.md and plots/ of the finished seeds; returns the Markdown.

    done: seed -> folder. out: for a copy of the text without its pictures.
    """
    numbers = "".join((place / NUMBERS).read_text(encoding="utf-8") for place in done.values())
    write_whole(folder / "results.jsonl", numbers)
    watched: dict[str, Seeds] = {
        method: {seed: read_watched(place, method) for seed, place in done.items()}
        for method in methods
    }
    first = watched[methods[0]]
    listed = ", ".join(map(str, done))
    parts = [
        "# NLL as a detector of what the model knows",
        f"    {command}",
        f"Seeds {listed}.{'' if exposures_stated(first) else NOT_STATED}",
        "## Before fine-tuning",
        *(as_markdown(table) for table in start_tables(first)),
    ]
    pictured = list(parts)
    for method, seeds in watched.items():
        tables = [f"## {short_name(method)}", as_markdown(auroc_table(seeds))]
        tables.append(as_markdown(threshold_table(seeds)))
        parts += tables
        pictured += [*tables, *_pictures(folder, method, seeds)]
    text = "\n\n".join(parts) + "\n"
    write_whole(folder / "results.md", "\n\n".join(pictured) + "\n")
    if out is not None:
        write_whole(out, text)
    return text


def _pictures(folder: Path, method: str, seeds: Seeds) -> list[str]:
    """Drawn, saved, and as Markdown with their text."""
    name = short_name(method)
    stated = exposures_stated(seeds)
    targets = (EXPOSURES if stated else START, SLICK)
    known = "stated often" if stated else "right at the start"
    panels = [c for t in targets for d in DATA_WORDS if (c := _curves(seeds, d, t)) is not None]
    courses = [_course(seeds, data, (*targets, NOW)) for data in DATA_WORDS]
    roc, course = (folder / "plots" / f"{kind}_{method}.png" for kind in ("roc", "auroc"))
    shown = [f"![{auroc_text(courses, name, known)}](plots/{course.name})"]
    with project_style():
        save(auroc_figure(courses, name, known), course)
        if panels:
            save(roc_figure(panels, name), roc)
            shown.insert(0, f"![{roc_text(panels, name)}](plots/{roc.name})")
    return shown


def _curves(seeds: Seeds, data: str, target: str) -> Curves | None:
    """At the start and at the end; None where one of them is undefined in a seed."""
    curves, points, areas = [], [], []
    for at in (0, -1):
        pairs = pairs_of(seeds, data, target, at)
        if pairs is None:
            return None
        rocs = [metrics.roc(*pair) for pair in pairs]
        curves.append(np.array([np.interp(GRID, roc.fpr, roc.tpr) for roc in rocs]))
        areas.append(float(np.mean([auroc_of(pair) for pair in pairs])))
        rates = []
        for kinds, (_, truth) in zip(seeds.values(), pairs, strict=True):
            called = kinds[data].moments[at].called
            rates.append((called[~truth].mean(), called[truth].mean()))
        points.append(np.mean(rates, 0))
    return Curves(
        title=f"{TARGET_WORDS[target]}, {DATA_WORDS[data]}",
        fpr=GRID,
        tpr=np.array(curves),
        threshold=np.array(points),
        auroc=tuple(areas),
    )


def _course(seeds: Seeds, data: str, targets: Sequence[str]) -> Course:
    watched = [kinds[data] for kinds in seeds.values()]

    def areas(target: str) -> np.ndarray:
        return np.array(
            [[_area(one.target(target, moment)) for moment in one.moments] for one in watched]
        )

    return Course(
        name=DATA_WORDS[data],
        steps=np.array([moment.step for moment in watched[0].moments]),
        auroc={TARGET_WORDS[target]: areas(target) for target in targets},
        called=np.array([one.rates for one in watched]),
    )


def _area(pair: tuple[np.ndarray, np.ndarray] | None) -> float:
    area = None if pair is None else auroc_of(pair)
    return float("nan") if area is None else area
