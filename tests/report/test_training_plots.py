"""Training over steps: what stands where."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats

from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.report.plots import wilson
from cogcalib_jax.report.training_plots import dynamics_figure, training_pictures, training_table
from tests.report.synthetic import option_probs, write_config, write_evaluation, write_training


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


def test_the_legend_names_the_groups_that_are_drawn():
    drawn = lines("train")
    unknown = [line for line in drawn if line["group"] == "unknown"]
    for shown, groups in ((drawn, ["known", "unknown"]), (unknown, ["unknown"])):
        (legend,) = dynamics_figure([("SFT", shown)], None).legends
        words = [text.get_text() for text in legend.get_texts()]
        assert words[: len(groups)] == [f"{group} before training" for group in groups]
        assert words[len(groups)] == "accuracy"


def test_losses_have_a_curve_a_best_validation_and_a_line_of_the_table(tmp_path):
    write_config(tmp_path, "ls", "adaptive")
    write_evaluation(tmp_path, "world", *option_probs(30, 1.0))
    write_training(tmp_path, overconfidence=0.5)
    run = read_run(tmp_path)
    picture = training_pictures(run)[0]
    assert picture.path.name == "loss.png" and picture.path.is_file()
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = min((x for x in steps if x["phase"] == "validation"), key=lambda x: x["nll"])
    assert f"lowest {best['nll']:.3f} at step {best['step']}" in picture.alt
    (row,) = training_table(run).rows
    assert row == ("CoLS", "270", f"{best['epoch']:.1f}", f"{best['nll']:.3f}", "0.001", "40")


def test_known_questions_of_a_base_at_chance_come_with_a_caution(tmp_path):
    write_config(tmp_path, "ls", "adaptive")
    write_evaluation(tmp_path, "world", *option_probs(30, 1.0))
    write_training(tmp_path, overconfidence=0.5)

    def caption(low):
        (tmp_path / "base.json").write_text(json.dumps({"low": low, "chance": 0.25}))
        return next(
            p.caption for p in training_pictures(read_run(tmp_path)) if "dyn" in p.path.name
        )

    assert "300 known questions trained on" in caption(0.5) and "Caution" not in caption(0.5)
    assert "Caution: before fine-tuning the model was no better than guessing" in caption(0.2)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (7, 20), (40, 40)])
def test_wilsons_interval_is_scipys(right, n):
    expected = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(np.array(right), np.array(n)) == pytest.approx(tuple(expected), abs=1e-4)
