"""The frontier of a suite: three populations, fits on two others, paths, tables and the picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from cogcalib_jax.cli.method_run import KNOWN_FILE
from cogcalib_jax.report.load_run import Method, RunResults
from cogcalib_jax.studies.frontier import (
    OWN,
    RAW,
    RETAINED,
    TAUGHT,
    TEMPERED,
    UNSEEN,
    frontier_rows,
    labels_of,
    nondominated,
)
from cogcalib_jax.studies.frontier_report import BLIND, population_table, write_frontier
from cogcalib_jax.studies.suite_results import Condition, Study

GROUPS = {"world": 60, "world:taught_form_b": 40, "world:taught_fit": 40, "world:unseen_fit": 25}
CONFIG = "evaluation: {bins: 15}\ntraining: {style_steps: 60}\nmethod: {weight: 0.5}\n"


def write_method(folder, seed, sharp, groups=GROUPS):
    """Predictions of a model whose log-probabilities are `sharp` times those that are right."""
    for place, (group, n) in enumerate(groups.items()):
        # Every model is asked the same questions; it differs by its noise.
        rng, own = np.random.default_rng([seed, place]), np.random.default_rng([seed, place, sharp])
        logits = rng.normal(0, 1.5, (n, 4))
        answers = [rng.choice(4, p=np.exp(z) / np.exp(z).sum()) for z in logits]
        scores = sharp * (logits + own.normal(0, 0.3, (n, 4)))
        rows = [
            {
                "id": f"{i}",
                "option_scores": s.tolist(),
                "answer": int(a),
                "extra": {"known": i % 3 == 0},
            }
            for i, (s, a) in enumerate(zip(scores, answers, strict=True))
        ]
        file = folder / "predictions" / f"{group}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(map(json.dumps, rows)))


def write_run(folder, seed, methods, groups=GROUPS):
    metrics = {"world": {"temperature": 2.0}}
    for key, sharp in methods.items():
        write_method(folder / key, seed, sharp, groups)
    for share in ("0.4", "0.8"):
        write_method(folder / "interpolation" / "path" / share, seed, 2, groups)
    found = tuple(Method(key, metrics, {}, (), (), "config.yaml", None) for key in methods)
    return RunResults(folder, found, ("world",), 60, {"config.yaml": CONFIG}, 15, {})


def write_study(folder, groups=GROUPS):
    here = {"start": 1, "sft": 4, "sft_best_epoch": 2, "cols": 3, "sft_temperature": 4, "ls": 2}
    conditions = []
    for name, settings, methods in (
        ("the world", (), here),
        ("weight 2", ("method.weight=2", "compare=ls"), {"ls": 2}),
        ("anchors", ("anchor.path=a.jsonl",), {"sft": 3}),
    ):
        runs = {s: write_run(folder / name / f"{s}", s, methods, groups) for s in range(3)}
        conditions.append(Condition(name, settings, runs))
    return Study("tiny", "Why?", folder, "world", "cogcalib", "", (), tuple(conditions))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("frontier"))


@pytest.fixture(scope="module")
def rows(study):
    return {(row.name, row.how): row for row in frontier_rows(study)}


def read(study, key, group, condition="the world", seed=0):
    file = study.folder / condition / str(seed) / key / "predictions" / f"{group}.jsonl"
    lines = [json.loads(line) for line in file.open()]
    return np.array([x["option_scores"] for x in lines]), np.array([x["answer"] for x in lines])


def nll(scores, answers):
    log_p = scores - np.logaddexp.reduce(scores, -1, keepdims=True)
    return -log_p[np.arange(len(answers)), answers].mean()


def test_populations_are_taught_unseen_and_what_the_base_knows(study, rows):
    found = rows["SFT", RAW].seeds[0]
    scores, answers = read(study, "sft", "world")
    np.testing.assert_allclose(found[UNSEEN]["nll"], nll(scores, answers))
    known = slice(None, None, 3)
    np.testing.assert_allclose(found[RETAINED]["nll"], nll(scores[known], answers[known]))
    assert found[RETAINED]["n"] == 20
    scores, answers = read(study, "sft", "world:taught_form_b")
    np.testing.assert_allclose(found[TAUGHT]["accuracy"], (scores.argmax(1) == answers).mean())
    both = (found[TAUGHT]["nll"] + found[UNSEEN]["nll"]) / 2
    np.testing.assert_allclose(rows["SFT", RAW].score[0], both)


def test_what_the_start_knows_by_another_form_is_retained(tmp_path):
    """In place of the world's record; a question that was not asked in that form is not known."""
    study = write_study(tmp_path)
    lines = [{"data": "test", "id": f"{i}", "correct": i % 4 == 0} for i in range(50)]
    lines.append({"data": "train", "id": "1", "correct": True})
    for condition in study.conditions:
        for run in condition.runs.values():
            (run.folder / KNOWN_FILE).write_text("\n".join(map(json.dumps, lines)))
    found = {(row.name, row.how): row for row in frontier_rows(study)}
    for name, key in (("SFT", "sft"), ("Interpolation, 0.8", "interpolation/path/0.8")):
        scores, answers = read(study, key, "world")
        retained = found[name, RAW].seeds[0][RETAINED]
        assert retained["n"] == 13
        np.testing.assert_allclose(retained["nll"], nll(scores[:50:4], answers[:50:4]))


def test_one_temperature_is_fitted_to_both_populations_with_the_same_say(study, rows):
    parts = [read(study, "sft", f"world:{group}") for group in ("unseen_fit", "taught_fit")]
    best = minimize_scalar(
        lambda t: np.mean([nll(z / np.exp(t), y) for z, y in parts]), bounds=(-3, 3)
    )
    found = rows["SFT", TEMPERED].seeds[0]
    for population, group in ((UNSEEN, "world"), (TAUGHT, "world:taught_form_b")):
        scores, answers = read(study, "sft", group)
        wanted = nll(scores / np.exp(best.x), answers)
        np.testing.assert_allclose(found[population]["nll"], wanted, atol=1e-4)


def test_mixtures_and_paths_are_rows(study, rows):
    start, answers = read(study, "start", "world")
    end, _ = read(study, "sft", "world")
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (start, end))
    mixed = rows["Linear mixture, 0.4", RAW]
    np.testing.assert_allclose(
        mixed.seeds[0][UNSEEN]["nll"], nll(np.log(0.6 * p + 0.4 * q), answers), rtol=1e-6
    )
    assert mixed.path == ("Linear mixture", 0.4)
    assert rows["Interpolation, 0.8", RAW].path == ("Interpolation", 0.8)
    assert rows["weight 2", RAW].path == ("LS on all data: method.weight", 2.0)
    assert rows["LS on all data, weight 0.5", RAW].path == ("LS on all data: method.weight", 0.5)
    ends = [rows[f"Interpolation, {at}", RAW].seeds[0] for at in (0, 1)]
    assert ends == [rows[name, RAW].seeds[0] for name in ("Start", "SFT")]
    assert rows["anchors", RAW].path is None
    names = {name for name, how in rows if how == OWN}
    assert "SFT + DACA" in names and len(names) == 3


def test_labels_are_those_of_the_splits_that_a_row_reads(study, rows):
    run = study.conditions[0].runs[0]
    assert labels_of(run, "start") == "style"
    assert labels_of(run, "cols") == "style, train, calibration"  # its threshold
    assert labels_of(run, "sft_best_epoch") == "style, train, validation"
    held = replace(run, configs={"config.yaml": "anchor: {tempered: true, methods: [kl]}"})
    assert [labels_of(held, key) for key in ("kl", "sft", "start")] == [
        "train, calibration",
        "train",
        "",
    ]
    assert rows["SFT", RAW].labels == "style, train"
    assert rows["SFT", TEMPERED].labels == "style, train, calibration"
    assert rows["SFT + DACA", OWN].labels == "style, train"
    named = rows["Linear mixture of start and SFT", RAW].labels
    assert named == "style, train, calibration"


def test_the_edge_holds_what_nothing_is_better_than_in_both():
    points = [(1.0, 3.0), (2.0, 1.0), (2.0, 2.0), (3.0, 1.5), (1.5, 2.5)]
    assert nondominated(points) == [(1.0, 3.0), (1.5, 2.5), (2.0, 1.0)]


def test_files_hold_every_row_and_the_picture(study):
    text = write_frontier(study)
    assert "each with equal weight" in text and BLIND not in text
    assert "| SFT | one temperature |" in text and "## Paths" in text
    lines = [json.loads(line) for line in (study.folder / "frontier.jsonl").open()]
    assert {line["population"] for line in lines} == {TAUGHT, UNSEEN, RETAINED}
    assert {line["seed"] for line in lines} == {0, 1, 2}
    assert (study.folder / "plots/frontier.png").stat().st_size > 10_000


def test_a_task_without_a_second_wording_says_so_and_gives_no_number(tmp_path):
    study = write_study(tmp_path, {"world": 60})
    text = write_frontier(study)
    assert BLIND in text and not (tmp_path / "plots/frontier.png").exists()
    found = {(row.name, row.how): row for row in frontier_rows(study)}
    assert population_table(list(found.values()), TAUGHT) is None
    # The temperature that the adapter stores, which is 2, was fitted on calibration alone.
    scores, answers = read(study, "sft", "world")
    tempered = found["SFT", TEMPERED].seeds[0]
    np.testing.assert_allclose(tempered[UNSEEN]["nll"], nll(scores / 2, answers))
    run = replace(study.conditions[0].runs[0])
    assert labels_of(run, "sft") == "style, train"
