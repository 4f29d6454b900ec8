"""eval.py from the command line, on what train.py wrote."""

import json

import pytest

import eval as eval_program
from cogcalib_jax.configlib import load_config
from cogcalib_jax.errors import run_main
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.train import train_run
from tests.engine.quick import quick_compilation
from tests.runs.small_base import arguments, write_base

# The last digits depend on how many rows are multiplied at once.
SCORING = ("--evaluation.batch-size", "16")


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one method on a small world, over a base with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    base = write_base(folder / "base")
    argv = arguments(base, folder / "run", *SCORING, "--method.name", "cols")
    argv += [
        "--training.probe-rows",
        "0",
        "--training.max-steps",
        "2",
        "--training.style-steps",
        "0",
    ]
    train_run(load_config(RunConfig, argv, prog="", description="").config, "", argv)
    return base, folder / "run"


def read(folder):
    return json.loads((folder / "eval.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_evaluating_a_run_again_gives_the_numbers_of_its_training(trained, tmp_path, capsys):
    _, run = trained
    assert run_main(eval_program.main, ["--run", str(run), "--run-dir", str(tmp_path / "e")]) == 0
    before, again = read(run), read(tmp_path / "e")
    assert before.pop("provenance")["data_hash"] == again.pop("provenance")["data_hash"]
    assert again == before
    for task in before:
        name = f"predictions/{task}.jsonl"
        assert lines(tmp_path / "e" / name) == lines(run / name)
    out = capsys.readouterr().out
    assert "CoLS (ours: LS on known data), from" in out
    accuracy = before["world"]["accuracy"]
    row = next(line for line in out.splitlines() if line.startswith("world "))
    assert f"{100 * accuracy:.1f} %" in row
    assert (tmp_path / "e" / "config.yaml").is_file()


def test_an_adapter_is_evaluated_on_its_base_without_a_run(trained, tmp_path):
    base, run = trained
    world = [
        part
        for option, value in zip(*[iter(arguments(base, tmp_path))] * 2, strict=True)
        if option.startswith(("--model.", "--data.", "--evaluation."))
        for part in (option, value)
    ]
    for name, more in (("with", ["--adapter", str(run / "adapter")]), ("bare", [])):
        argv = [*world, *SCORING, "--task", "world", "--run-dir", str(tmp_path / name), *more]
        assert run_main(eval_program.main, argv) == 0
    name = "predictions/world.jsonl"
    assert lines(tmp_path / "with" / name) == lines(run / name)
    bare, adapted = lines(tmp_path / "bare" / name), lines(run / name)
    assert [row["id"] for row in bare] == [row["id"] for row in adapted]
    assert bare[0]["option_logprobs"] != adapted[0]["option_logprobs"]


def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path):
    assert run_main(eval_program.main, ["--run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no config.yaml")
    assert error.count("\n") == 1


def test_a_folder_with_results_is_not_written_over(trained, capsys):
    _, run = trained
    assert run_main(eval_program.main, ["--run", str(run), "--run-dir", str(run)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
