"""Models side by side and subgroups: what is subtracted, what is said, and what is in the files."""

import csv
import json

import pytest

from cogcalib_jax.report.comparison import (
    SMALL,
    compare_evaluations,
    results_text,
    subgroup_table,
    write_comparison,
)
from cogcalib_jax.report.tables import as_text
from tests.report.synthetic import option_probs, write_evaluation

MODELS = {"second": 1.0, "first": 2.0, "third": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models on one task, named against the alphabet; the third was asked other texts."""
    folder = tmp_path_factory.mktemp("evaluation")
    table = {}
    for name, sharpness in MODELS.items():
        probs, answers = option_probs(600, sharpness, noise=0.1)
        table[name] = {"task": write_evaluation(folder / name, "task", probs, answers)}
        content = json.loads((folder / name / "eval.json").read_text())
        content["provenance"]["data_hash"] = {"task": "other" if name == "third" else "same"}
        (folder / name / "eval.json").write_text(json.dumps(content))
    (folder / "comparison.json").write_text(json.dumps(table))
    return folder


def test_differences_are_from_the_first_named_over_the_very_same_questions(folder):
    (task,) = compare_evaluations(folder, bins=15)
    assert [(c.method, c.other) for c in task.comparisons] == [("first", "second")]
    assert list(task.results) == list(MODELS)
    metrics = json.loads((folder / "comparison.json").read_text())
    difference = task.comparisons[0].differences["NLL"]
    expected = metrics["first"]["task"]["nll"] - metrics["second"]["task"]["nll"]
    assert difference.difference == pytest.approx(expected, abs=1e-9)
    assert task.verdict[0].startswith("third: no difference from second, because it was not")


def test_text_markdown_and_csv_tell_the_same(folder):
    text = write_comparison(folder, bins=15)
    assert text.startswith("task:\n")
    assert "first minus second" in text
    assert "third minus" not in text
    markdown = (folder / "comparison.md").read_text()
    assert markdown.startswith("## task\n\n| model | accuracy |")
    assert "| first minus second |" in markdown
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    assert [row["model"] for row in rows] == list(MODELS)
    metrics = json.loads((folder / "comparison.json").read_text())
    for row in rows:
        m = metrics[row["model"]]["task"]
        assert float(row["ece"]) == m["ece"]
        assert float(row["ece_floor_p95"]) == m["ece_noise_floor"]["p95"]
        assert float(row["vocab_ece"]) == m["vocab"]["ece"]
    second, first, third = rows
    assert (second["minus"], first["minus"], third["minus"]) == ("", "second", "")
    nll = float(first["nll_difference"])
    assert float(first["nll_low"]) < nll < float(first["nll_high"])
    assert nll == pytest.approx(float(first["nll"]) - float(second["nll"]), abs=1e-9)
    assert first["nll_beyond_noise"] == "True"


def metrics_of(n, p_value, ece=0.2):
    return {
        "n": n,
        "accuracy": 0.5,
        "confidence": 0.7,
        "ece": ece,
        "ece_noise_floor": {"mean": 0.05, "p95": 0.08},
        "ece_p_value": p_value,
        "nll": 1.0,
        "brier": 0.6,
        "chance": 0.25,
        "ci95": {"accuracy": [0.4, 0.6]},
    }


def test_nothing_is_said_of_the_calibration_of_a_group_at_chance():
    groups = {"art": metrics_of(SMALL, 0.5), "law": metrics_of(SMALL, 0.5) | {"chance": 0.5}}
    table = subgroup_table("subject", {"": groups})
    assert [row[5] for row in table.rows] == ["no", "at chance"]


def test_small_groups_say_so_and_are_no_part_of_the_correction():
    groups = {"art": metrics_of(SMALL, 0.04), "law": metrics_of(SMALL - 1, 0.001)}
    table = subgroup_table("subject", {"": groups})
    assert [(row[0], row[1], row[5]) for row in table.rows] == [
        ("art", "100", "yes"),
        ("law", "99", "small"),
    ]
    assert "over 1 test." in table.note
    assert "Small: fewer than 100 questions" in table.note
    # Two such groups no longer pass Holm's correction.
    groups = {"art": metrics_of(SMALL, 0.04), "law": metrics_of(SMALL, 0.5)}
    table = subgroup_table("subject", {"": groups})
    assert [row[5] for row in table.rows] == ["no", "no"]
    assert "Small" not in table.note


def test_every_group_shows_n_and_floor():
    table = subgroup_table("subject", {"": {"law": metrics_of(1520, 0.5)}})
    assert "1,520" in as_text(table)
    assert "0.200 (0.050 / 0.080)" in as_text(table)


def test_several_models_stand_together_in_each_group():
    models = {
        "sft": {"a": metrics_of(200, 0.001), "b": metrics_of(200, 0.5)},
        "cols": {"a": metrics_of(200, 0.5), "b": metrics_of(200, 0.5)},
    }
    table = subgroup_table("subject", models)
    assert [row[0] for row in table.rows] == ["a: SFT", "a: CoLS", "b: SFT", "b: CoLS"]
    assert [row[5] for row in table.rows] == ["yes", "no", "no", "no"]
    assert "over 2 tests of each model." in table.note


def test_grossly_wrong_groups_lie_beyond_their_floor_however_many_models():
    groups = 57
    smallest = 1 / (1 + 40 * groups)  # of as many draws as there are for so many groups
    worst = {f"s{i}": metrics_of(SMALL, smallest) for i in range(groups)}
    table = subgroup_table("subject", {name: worst for name in ("sft", "ls", "cols")})
    assert {row[5] for row in table.rows} == {"yes"}


def test_the_subgroups_of_every_task_follow_its_line(folder):
    metrics = json.loads((folder / "comparison.json").read_text())["first"]["task"]
    by = {"subject": {"law": metrics_of(200, 0.001)}}
    text = results_text({"mmlu": metrics | {"by": by}, "boolq": metrics})
    lines = text.splitlines()
    assert lines[1].startswith("task ")
    assert "Results by subject:" in lines
    assert lines.index("mmlu:") < lines.index("Results by subject:")
    assert "boolq:" not in lines
