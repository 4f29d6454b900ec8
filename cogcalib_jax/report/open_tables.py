"""The confidences in generated answers, side by side."""

from __future__ import annotations

from collections.abc import Mapping

from cogcalib_jax.report.names import short_name
from cogcalib_jax.report.tables import Metrics, Table, cell, floor_cell

CONFIDENCES = {
    "sequence": "probability",
    "length_normalised": "length-normalised",
    "agreement": "agreement of samples",
    "p_true": "P(True)",
    "platt": "Platt-scaled",
    "isotonic": "isotonic",
}


def confidence_table(results: Mapping[str, Metrics]) -> Table | None:
    """A line for each method and each of its confidences; None where questions have options.

    results: method -> numbers of one task.
    """
    if not all("confidences" in metrics for metrics in results.values()):
        return None
    rows = []
    for key, metrics in results.items():
        for name, m in metrics["confidences"].items():
            rows.append(
                (
                    f"{short_name(key)}: {CONFIDENCES[name]}",
                    cell([m["confidence"]], percent=True),
                    f"{cell([m['ece']])} ({floor_cell([m])})",
                    *(cell([m[score]]) for score in ("brier", "nll", "auroc")),
                    cell([m["coverage_at_90"]], percent=True),
                )
            )
    header = (
        "confidence",
        "mean",
        "ECE\n(floor: mean / 95 %)",
        "Brier",
        "NLL\n(nats)",
        "AUROC",
        "answered at\n90 % accuracy",
    )
    notes = [
        "Of the same answers, right where they match exactly. Probability: of the whole answer and"
        " its end.",
        "Only the Platt-scaled and the isotonic one, fitted on the calibration split, are meant to"
        " be the probability of being right.",
    ]
    for key, metrics in results.items():
        notes += [f"{short_name(key)}: {note}." for note in metrics.get("notes", ())]
    return Table(header, tuple(rows), "\n".join(notes))
