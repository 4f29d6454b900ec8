"""What watched seeds found, as files: results.jsonl, results.md, report.html and plots/."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cogcalib_jax import metrics
from cogcalib_jax.files import write_whole
from cogcalib_jax.report.canvas import project_style, save
from cogcalib_jax.report.html import Making, Picture, Section, Source, page
from cogcalib_jax.report.names import short_name
from cogcalib_jax.report.report import plain
from cogcalib_jax.report.tables import as_markdown
from cogcalib_jax.studies.detector_plots import (
    Course,
    Curves,
    auroc_figure,
    auroc_text,
    roc_figure,
    roc_text,
)
from cogcalib_jax.studies.detector_results import (
    DATA_WORDS,
    EXPOSURES,
    NOW,
    NUMBERS,
    PROVENANCE,
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

TITLE = "NLL as a detector of what the model knows"
RESULTS = "results.jsonl"
GRID = np.linspace(0, 1, 201)
"""false positive rates at which the seeds' curves are averaged"""
NOT_STATED = (
    " These rows do not say how often the base read of them, as only the world's do: nothing is"
    " compared with exposures, and the threshold's rates are against what was right at the start."
)
ROC_CAPTION = (
    "The further a curve bends to the upper left, the better a low NLL tells the known questions"
    " from the unknown. A dot is the gate's threshold, as it was fitted at that time."
)
AUROC_CAPTION = (
    "Above: how well a low NLL tells the two apart; 0.5 is chance. Below: what the gate calls known"
    " with the threshold fitted at that update."
)


class MadeBy(NamedTuple):
    """What made the results."""

    command: str
    preset: str


def write_results(
    folder: Path,
    made_by: MadeBy,
    done: Mapping[int, Path],
    methods: Sequence[str],
    out: Path | None,
) -> str:
    """results.jsonl, results.md, report.html and plots/ of the finished seeds; the Markdown.

    done: seed -> folder. out: for a copy of the text without its pictures.
    """
    numbers = "".join((place / NUMBERS).read_text(encoding="utf-8") for place in done.values())
    write_whole(folder / RESULTS, numbers)
    watched: dict[str, Seeds] = {
        method: {seed: read_watched(place, method) for seed, place in done.items()}
        for method in methods
    }
    first = watched[methods[0]]
    configs = {
        f"{place.name}/config.yaml": (place / "config.yaml").read_text(encoding="utf-8")
        for place in done.values()
    }
    source = Source(RESULTS, "", (made_by.command,), tuple(configs))
    sections = [Section("Before fine-tuning", source, tables=start_tables(first))]
    for method, seeds in watched.items():
        tables = {
            "AUROC of -NLL": auroc_table(seeds),
            "What the threshold calls known": threshold_table(seeds),
        }
        pictures = tuple(_pictures(folder, method, seeds))
        sections.append(Section(short_name(method), source, tables=tables, pictures=pictures))
    listed = ", ".join(map(str, done))
    lead = f"Seeds {listed}.{'' if exposures_stated(first) else NOT_STATED}"
    place = next(iter(done.values()))
    recorded = json.loads((place / PROVENANCE).read_text(encoding="utf-8"))
    facts = {"preset": made_by.preset}
    facts |= {name: plain(value) for name, value in recorded.items() if name != "seed"}
    making = Making((made_by.command,), facts, configs, {})
    write_whole(folder / "report.html", page(TITLE, lead, sections, making))

    head = [f"# {TITLE}", f"    {made_by.command}", lead]
    text = "\n\n".join([*head, *_markdown(sections, pictured=False)]) + "\n"
    pictured = "\n\n".join([*head, *_markdown(sections, pictured=True)]) + "\n"
    write_whole(folder / "results.md", pictured)
    if out is not None:
        write_whole(out, text)
    return text


def _markdown(sections: Sequence[Section], pictured: bool) -> Iterator[str]:
    for section in sections:
        yield f"## {section.title}"
        yield from map(as_markdown, section.tables.values())
        if pictured:
            yield from (f"![{one.alt}](plots/{one.path.name})" for one in section.pictures)


def _pictures(folder: Path, method: str, seeds: Seeds) -> list[Picture]:
    """Drawn, saved and said in words."""
    name = short_name(method)
    stated = exposures_stated(seeds)
    targets = (EXPOSURES if stated else START, SLICK)
    known = "stated often" if stated else "right at the start"
    panels = [c for t in targets for d in DATA_WORDS if (c := _curves(seeds, d, t)) is not None]
    courses = [_course(seeds, data, (*targets, NOW)) for data in DATA_WORDS]
    roc, course = (folder / "plots" / f"{kind}_{method}.png" for kind in ("roc", "auroc"))
    shown = [Picture(course, auroc_text(courses, name, known), AUROC_CAPTION, RESULTS)]
    with project_style():
        save(auroc_figure(courses, name, known), course)
        if panels:
            save(roc_figure(panels, name), roc)
            shown.insert(0, Picture(roc, roc_text(panels, name), ROC_CAPTION, RESULTS))
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
