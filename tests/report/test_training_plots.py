"""Training over steps: what stands where."""

from __future__ import annotations

import pytest

from cogcalib_jax.report.training_plots import dynamics_figure


def lines(*kinds: str) -> list[dict]:
    return [
        {"data": data, "group": group, "step": step, "accuracy": 0.5, "confidence": 0.6}
        for data in kinds
        for group in ("known", "unknown")
        for step in (0, 10)
    ]


@pytest.mark.parametrize("kinds", [("train", "validation"), ("validation", "train")])
def test_questions_trained_on_come_first_however_they_were_logged(kinds):
    several = dynamics_figure([("SFT", lines(*kinds)), ("CoLS", lines(*kinds))], None)
    rows = [axes.get_ylabel() for axes in several.axes if axes.get_ylabel()]
    assert [row.splitlines()[0] for row in rows] == [
        "questions trained on",
        "questions not trained on",
    ]
    alone = dynamics_figure([("SFT", lines(*kinds))], None)
    assert [axes.get_title() for axes in alone.axes] == [
        "SFT: questions trained on",
        "SFT: questions not trained on",
    ]
