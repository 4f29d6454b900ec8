"""The pictures of a study in words: their alternative text, for those who do not see them."""

from __future__ import annotations

from collections.abc import Sequence

from cogcalib_jax.report.text import count, percent
from cogcalib_jax.studies.plots import RatioCurve, SeedDots


def dots_text(rows: Sequence[SeedDots], task: str) -> str:
    """A sentence a line of the picture."""
    parts = [
        f"{row.method}, {row.condition}: ECE {row.ece.mean():.3f} (95th percentile of the floor"
        f" {row.floor_p95:.3f}), NLL {row.nll.mean():.3f} nats, accuracy"
        f" {percent(row.accuracy.mean())}, {count(len(row.ece), 'seed')}."
        for row in rows
    ]
    opening = f"ECE, NLL and accuracy on {task} of every seed; in numbers, the means."
    return " ".join([opening, *parts])


def ratio_text(curves: Sequence[RatioCurve], task: str) -> str:
    """A sentence a method and known share."""
    parts = []
    for curve in curves:
        for share in sorted(set(curve.share.tolist())):
            dots = curve.share == share
            parts.append(
                f"{curve.name}, {100 * share:.0f} % known: ECE {curve.ece[dots].mean():.3f} (floor"
                f" {curve.floor[dots, 0].mean():.3f}), mean confidence"
                f" {percent(curve.confidence[dots].mean())}, accuracy"
                f" {percent(curve.accuracy[dots].mean())}."
            )
    opening = f"ECE, mean confidence and accuracy on {task} over the known share; means of seeds."
    return " ".join([opening, *parts])
