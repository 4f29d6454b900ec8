"""The console command: its words, presets by name, and help that needs no file."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from cogcalib_jax.cli import COMMANDS, load, main
from cogcalib_jax.cli.programs import predict, score
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.sources import (
    find_preset,
    preset_folder,
    preset_names,
    split_arguments,
)
from cogcalib_jax.errors import UserError, run_main

REPOSITORY = Path(__file__).parents[2]


def show(program, option):
    with contextlib.suppress(SystemExit):  # as the help of a config ends
        program([option])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_function_that_shows_help(name, capsys):
    show(load(name), "--help")
    text = capsys.readouterr().out
    assert "usage:" in text.lower()


def test_help_and_version_name_the_commands(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS) and text.count("\n  cogcalib ") == 4
    main(["--version"])
    assert capsys.readouterr().out.startswith("cogcalib 0.")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "command is 'trian'; expected one of train, eval, predict"),
        (["train", "--config", "wrld"], "config is 'wrld'; did you mean world?"),
        (["train", "--config", "no_such_thing"], "expected a file or one of llama3"),
        (["train", "--config", "nosuch.yaml"], "nosuch.yaml: cannot be read"),
        (["predict", "--run", "runs/x", "--out", "a"], "expected --questions FILE"),
    ],
)
def test_a_mistake_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_main(main, argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_preset_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset_folder() == REPOSITORY / "configs"
    assert {"world", "own_questions", "suites/world_quick"} <= set(preset_names())
    assert Path(find_preset("own_questions")) == REPOSITORY / "configs" / "own_questions.yaml"
    # A file of one's own comes first.
    Path("world").write_text("seed: 3\n")
    assert find_preset("world") == "world"
    given = split_arguments(RunConfig, ["--seed", "1", "--config=own_questions"])
    assert given.preset == str(REPOSITORY / "configs" / "own_questions.yaml")


def test_the_help_of_training_is_short_and_all_of_it_is_one_word_away(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    show(load("train"), "--help")
    text = capsys.readouterr().out
    assert text.count("\n") <= 120 and text.count("cogcalib train") == 4
    for field in ("--model.path", "--data.path", "--compare", "--training.epochs", "--help-all"):
        assert field in text
    assert "--mesh.fsdp" not in text
    show(load("train"), "--help-all")
    assert "--mesh.fsdp" in capsys.readouterr().out


def test_predicting_and_scoring_are_evaluations_in_other_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"option_probs": [0.9, 0.1], "answer": 0}\n' * 30)
    assert run_main(score, ["p.jsonl"]) == 0
    assert "100.0 %" in capsys.readouterr().out
    with pytest.raises(UserError, match="runs/x"):
        predict(["--run", "runs/x", "--questions", "p.jsonl", "--out", "a.jsonl"])


def test_a_benchmark_is_named_as_the_person_started_the_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/env/bin/cogcalib", "bench"])
    with pytest.raises(UserError, match="write cogcalib bench COMMAND"):
        main(["bench"])


def test_the_programs_at_the_top_are_the_same_commands():
    for program in ("train.py", "eval.py", "bench.py"):
        lines = (REPOSITORY / program).read_text().splitlines()
        assert len(lines) <= 10 and any("cogcalib_jax.cli" in line for line in lines)


def test_the_module_is_the_console_command():
    done = subprocess.run(
        [sys.executable, "-m", "cogcalib_jax", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("cogcalib ")
