"""The pictures of a study: drawn from its runs, saved, and said in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import yaml

from cogcalib_jax.report.canvas import project_style, save
from cogcalib_jax.report.html import Picture
from cogcalib_jax.report.names import looks, short_name
from cogcalib_jax.report.text import count, dynamics_text
from cogcalib_jax.report.training_plots import dynamics_figure
from cogcalib_jax.studies.captions import dots_text, ratio_text
from cogcalib_jax.studies.dynamics import followed_methods, seed_means
from cogcalib_jax.studies.plots import RatioCurve, SeedDots, dots_figure, ratio_figure
from cogcalib_jax.studies.study_tables import NUMBERS, Condition, Study, methods_of, seeds_of

SHARE = "composition.known_share"
# A condition may name other methods than the next one and still lie on the same curve.
NOT_OF_A_CURVE = (SHARE, "compare")


def study_pictures(study: Study, task: str) -> list[Picture]:
    """Draw and save the pictures of a task; those of the first task have the plain names."""
    suffix = "" if task == study.tasks[0] else "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", task)
    folder = study.folder / "plots"
    pictures = []
    with project_style():
        for settings, shares in _curves_of(study.conditions).items():
            curves = _curves(shares, task)
            if not curves:
                continue
            number = f"_{len(pictures) + 1}" if pictures else ""
            path = folder / f"ratio{suffix}{number}.png"
            save(ratio_figure(curves, task), path)
            pictures.append(Picture(path, ratio_text(curves, task), _caption(settings), NUMBERS))
        rows = _dots(study, task)
        path = folder / f"seeds{suffix}.png"
        save(dots_figure(rows, task), path)
        pictures.append(
            Picture(
                path,
                dots_text(rows, task),
                "An ECE within the grey band cannot be told from that of a calibrated model. What"
                " the seeds of one line spread over is the noise of training and of questions.",
                NUMBERS,
            )
        )
    return pictures


def training_picture(study: Study, condition: Condition) -> Picture | None:
    """Accuracy and confidence over training, means over seeds; None where nothing was followed."""
    lines = {
        key: means
        for key, seeds in followed_methods(condition.runs, study.followed).items()
        if (means := seed_means(seeds)) is not None
    }
    if not lines:
        return None
    drawn = [(short_name(key), means) for key, means in lines.items()]
    number = [c.name for c in study.conditions].index(condition.name)
    path = study.folder / "plots" / f"training{f'_{number + 1}' if number else ''}.png"
    with project_style():
        save(dynamics_figure(drawn, next(iter(condition.runs.values())).style_end), path)
    return Picture(
        path,
        f"Means of {count(len(condition.runs), 'seed')}. {dynamics_text(drawn)}",
        "Known and unknown refer to the model before it was fine-tuned. Lines: means of seeds;"
        " bands: from the lowest seed to the highest.",
        "seed-S/METHOD/dynamics.jsonl",
    )


def _caption(settings: Sequence[str]) -> str:
    also = f" Besides the share, all have {', '.join(settings)}." if settings else ""
    return (
        "Above: ECE, and in grey what a calibrated model would show by chance. Below: where"
        f" confidence (dashed) runs above accuracy (solid), the model is too confident.{also}"
    )


def _curves_of(
    conditions: Sequence[Condition],
) -> dict[tuple[str, ...], list[tuple[float, Condition]]]:
    """Settings -> (known share, condition) of those that differ in nothing but that share."""
    groups: dict[tuple[str, ...], list[tuple[float, Condition]]] = {}
    for condition in conditions:
        share = _known_share(condition)
        if share is not None:
            others = [s for s in condition.settings if s.partition("=")[0] not in NOT_OF_A_CURVE]
            groups.setdefault(tuple(others), []).append((share, condition))
    return {settings: group for settings, group in groups.items() if len(group) > 1}


def _known_share(condition: Condition) -> float | None:
    """From the resolved config of its runs, None where no share was set."""
    run = next(iter(condition.runs.values()))
    config = yaml.safe_load(run.configs["config.yaml"])
    share = (config.get("composition") or {}).get("known_share")
    return None if share in (None, "natural") else float(share)


def _curves(shares: Sequence[tuple[float, Condition]], task: str) -> list[RatioCurve]:
    """Of every method that all conditions have."""
    conditions = [condition for _, condition in shares]
    methods = methods_of(conditions)
    style = looks(methods)
    curves = []
    for method in methods:
        dots = [
            (share, metrics)
            for share, condition in shares
            for metrics in seeds_of(condition, method, task).values()
        ]
        if len({share for share, _ in dots}) < len(shares):
            continue
        floors = [m["ece_noise_floor"] for _, m in dots]
        curves.append(
            RatioCurve(
                short_name(method),
                style[method],
                share=np.array([share for share, _ in dots]),
                ece=np.array([m["ece"] for _, m in dots]),
                confidence=np.array([m["confidence"] for _, m in dots]),
                accuracy=np.array([m["accuracy"] for _, m in dots]),
                floor=np.array([(floor["mean"], floor["p95"]) for floor in floors]),
            )
        )
    return curves


def _dots(study: Study, task: str) -> list[SeedDots]:
    methods = methods_of(study.conditions)
    style = looks(methods)
    rows = []
    for method in methods:
        for condition in study.conditions:
            seeds = list(seeds_of(condition, method, task).values())
            if seeds:
                rows.append(
                    SeedDots(
                        short_name(method),
                        condition.name,
                        style[method],
                        ece=np.array([m["ece"] for m in seeds]),
                        floor_p95=float(np.mean([m["ece_noise_floor"]["p95"] for m in seeds])),
                        nll=np.array([m["nll"] for m in seeds]),
                        accuracy=np.array([m["accuracy"] for m in seeds]),
                    )
                )
    return rows
