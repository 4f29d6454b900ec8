"""Evaluations: what train.py measured is measured again, and mistakes are told before any work."""

import json
from dataclasses import replace

import pytest

from cogcalib_jax.cli.eval_config import EvalConfig, load_evaluation, read_trained_run
from cogcalib_jax.cli.evaluate import evaluate_run
from cogcalib_jax.cli.questions import note_trained_questions
from cogcalib_jax.cli.questions import test_questions as read_questions
from cogcalib_jax.cli.results import read_results
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import from_yaml, load_config
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.errors import UserError
from tests.cli.small_base import WORLD, arguments, write_base

BASE = ("--model.path", "base")
ROWS = [
    {"question": f"What is {i} plus one?", "choices": ["no", str(i + 1), "yes"], "answer": 1}
    for i in range(40)
]


def load(*argv: str) -> EvalConfig:
    return load_evaluation(argv, prog="eval.py", description="")


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*argv)
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    """A run folder as train.py leaves it, as far as a config can tell."""

    def make(name: str = "run", *, adapter: bool = True, **config: str):
        argv = [part for key, value in config.items() for part in (f"--{key}", value)]
        loaded = load_config(RunConfig, argv, prog="", description="")
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(loaded.config))
        if adapter:
            (folder / "adapter").mkdir()
        return folder

    return make


OPENBOOKQA = {"data.task": "openbookqa", "data.path": "rows", "model.path": "base"}


def test_a_run_gives_base_data_scoring_and_seed_and_explicit_fields_win(run):
    folder = run(**OPENBOOKQA, **{"evaluation.bins": "10", "seed": "7", "data.max_length": "99"})
    config = load("--run", str(folder))
    # Every run keeps its own base, so that is no default of the evaluation.
    assert (config.seed, config.model.path, config.evaluation.bins) == (7, None, 10)
    assert (config.data.task, config.data.path, config.data.max_length) == (
        "openbookqa",
        "rows",
        99,
    )
    changed = load("--run", str(folder), "--evaluation.bins", "20", "--model.path", "elsewhere")
    assert changed == replace(
        config,
        evaluation=replace(config.evaluation, bins=20),
        model=replace(config.model, path="elsewhere"),
    )


def test_the_rows_of_a_run_are_not_taken_for_those_of_another_task(run):
    folder = str(run(**OPENBOOKQA))
    same = load("--run", folder, "--task", "openbookqa")
    assert (same.data.task, same.data.path) == ("openbookqa", "rows")
    other = load("--run", folder, "--task", "boolq")
    assert (other.data.task, other.data.path) == ("boolq", None)
    given = load("--run", folder, "--task", "boolq", "--data.path", "elsewhere")
    assert (given.data.task, given.data.path) == ("boolq", "elsewhere")
    several = load("--run", folder, "--task", "openbookqa", "boolq")
    assert several.task == ("openbookqa", "boolq")
    assert (several.data.task, several.data.path) == ("openbookqa", "rows")


def test_a_task_without_a_run_is_read_from_the_given_path():
    config = load(*BASE, "--task", "custom", "--data.path", "mine.jsonl")
    assert (config.data.task, config.data.path) == ("custom", "mine.jsonl")


def test_the_written_config_repeats_the_evaluation(run, tmp_path):
    config = load("--run", str(run(**OPENBOOKQA)), "--task", "boolq", "--data.path", "x")
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(config))
    assert load("--config", str(file)) == config
    assert from_yaml(EvalConfig, file.read_text(), file) == config


def test_a_comparison_means_its_methods_which_must_be_finished(run):
    folder = run(adapter=False, compare="sft,cols")
    (folder / "sft" / "adapter").mkdir(parents=True)
    message = refusal("--run", str(folder))
    assert message.startswith(f"{folder}: cols not finished; continue with python train.py")
    (folder / "cols" / "adapter").mkdir(parents=True)
    for method in ("sft", "cols"):
        (folder / method / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert load("--run", str(folder)).run == (str(folder / "sft"), str(folder / "cols"))


def test_runs_that_were_asked_differently_are_not_evaluated_together(run):
    first = str(run("a", **OPENBOOKQA))
    cloze = str(run("b", **OPENBOOKQA, **{"data.prompt": "cloze"}))
    message = refusal("--run", first, cloze)
    assert message.startswith(f"{cloze}: data.prompt is 'cloze', and 'auto' in {first}: they would")
    assert "give --data.prompt for both" in message
    assert load("--run", first, cloze, "--data.prompt", "letters").data.prompt == "letters"


def test_runs_may_differ_in_what_they_trained_on_and_in_seed(run):
    first = str(run("a", **OPENBOOKQA))
    less = str(run("b", **OPENBOOKQA, **{"data.train_rows": "99", "seed": "1", "lora.r": "2"}))
    assert load("--run", first, less).run == (first, less)


def test_worlds_of_two_seeds_ask_different_questions(run):
    runs = [str(run(name, seed=name)) for name in ("3", "4")]
    assert "seed is 4, and 3 in " in refusal("--run", *runs)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "must name the folder of a run (--run runs/NAME-N), or --model.path a base model"),
        (["--run", "nowhere"], "nowhere: no config.yaml, so it is not a run of train.py"),
        ([*BASE, "--task", "obqa"], "must name tasks, each NAME or NAME:GROUP (got 'obqa'"),
        ([*BASE, "--task", "world", "world"], "must name each task once"),
        (
            [*BASE, "--task", "boolq", "openbookqa", "--data.path", "x"],
            "data.path = x: must be none for several tasks (boolq, openbookqa)",
        ),
        ([*BASE, "--task", "custom"], "must name a file or folder for task custom"),
        ([*BASE, "--resume"], "must name the evaluation to resume"),
        ([*BASE, "--adapter", "x", "x"], "must name each adapter once"),
        (["--predictions", "x.jsonl", *BASE], "must be none beside predictions"),
        (["--predictions", "x.jsonl", "--task", "world"], "must be none beside predictions"),
        ([*BASE, "--out", "x"], "must be none unless predict is given"),
        ([*BASE, "--predict", "x.jsonl"], "must name the file for the answers (--out FILE)"),
        (
            [*BASE, "--predict", "x.jsonl", "--out", "y", "--adapter", "a", "b"],
            "must name one model: only one can answer",
        ),
        (
            [*BASE, "--predict", "x.jsonl", "--out", "y", "--target-accuracy", "0.9"],
            "and a base or adapter alone has none",
        ),
    ],
)
def test_mistakes_are_told(argv, message):
    assert message in refusal(*argv)


def test_an_unfinished_run_is_refused(run):
    assert "its training is not finished" in refusal("--run", str(run(adapter=False)))


def test_a_run_and_an_adapter_contradict_each_other(run):
    assert "must be none if run is given" in refusal("--run", str(run()), "--adapter", "x")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "base")


def world_arguments(base, folder, *more: str) -> list[str]:
    """The options of `small_base.arguments` that an evaluation has."""
    words = arguments(base, folder)
    pairs = zip(words[::2], words[1::2], strict=True)
    kept = ("--model.", "--run-dir", "--data.", "--world.", "--evaluation.")
    return [*(part for pair in pairs if pair[0].startswith(kept) for part in pair), *more]


def test_a_group_of_a_task_is_scored_beside_the_task(base, tmp_path):
    argv = world_arguments(base, tmp_path / "eval", "--task", "world", "world:taught_form_b")
    folder = evaluate_run(load(*argv), argv)
    results = read_results(folder)
    assert list(results) == ["world", "world:taught_form_b"]
    assert [metrics["n"] for metrics in results.values()] == [WORLD.test, WORLD.train]
    for task, metrics in results.items():
        rows = [json.loads(x) for x in (folder / f"predictions/{task}.jsonl").open()]
        assert metrics["n"] == len(rows)
        assert metrics["accuracy"] == sum(r["prediction"] == r["answer"] for r in rows) / len(rows)


@pytest.mark.parametrize(
    ("entry", "message"),
    [("world:nothing", "no such group of questions"), ("custom:x", "custom has no groups")],
)
def test_an_unknown_group_is_refused_before_anything_is_written(base, tmp_path, entry, message):
    rows = tmp_path / "mine.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    argv = ["--model.path", str(base), "--task", entry, "--run-dir", str(tmp_path / "eval")]
    argv += ["--data.path", str(rows)] if entry.startswith("custom") else []
    with pytest.raises(UserError, match=message):
        evaluate_run(load(*argv), argv)
    assert not (tmp_path / "eval").exists()


def test_the_rows_trained_on_are_not_scored_as_test_rows(run, tmp_path):
    """A file of one's own is split for training; evaluated again, only its test part counts."""
    rows = tmp_path / "mine.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    folder = run(**{"data.task": "custom", "data.path": str(rows), "model.path": "base"})
    trained, config = read_trained_run(str(folder)), load("--run", str(folder))
    test = read_questions(config, [trained])["custom"]
    assert test == load_splits(trained.data, trained.seed, made=trained.made).test
    assert 0 < len(test) < len(ROWS)
    assert len(read_questions(config, [])["custom"]) == len(ROWS)


def test_questions_that_a_run_was_trained_on_are_named(run, tmp_path, capsys):
    """30 of the run's 40 rows stand in the evaluated file; some of them it kept apart."""
    (tmp_path / "rows").mkdir()
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (tmp_path / "rows" / "train.jsonl").write_text("".join(lines))
    new = [json.dumps(row | {"question": f"And {row['question']}"}) + "\n" for row in ROWS]
    (tmp_path / "rows" / "test.jsonl").write_text("".join(new))
    (tmp_path / "other.jsonl").write_text("".join(lines[:30] + new))
    settings = {"data.task": "custom", "data.path": str(tmp_path / "rows"), "model.path": "base"}
    folder = run(**settings)
    trained = read_trained_run(folder)
    splits = load_splits(trained.data, trained.seed)
    asked = {row.question for row in (*splits.style, *splits.train)}
    shared = sum(row["question"] in asked for row in ROWS[:30])
    assert 0 < shared < 30

    def said(*argv: str) -> str:
        config = load("--run", str(folder), *argv)
        questions = read_questions(config, [trained])
        capsys.readouterr()
        note_trained_questions(config, [trained], questions)
        return " ".join(capsys.readouterr().err.split())

    other = ("--task", "custom", "--data.path", str(tmp_path / "other.jsonl"))
    assert f"{shared} of 70 questions of custom are training rows of custom" in said(*other)
    assert said() == ""
    (tmp_path / "rows" / "train.jsonl").unlink()
    assert "not compared with the training rows of custom" in said(*other)
