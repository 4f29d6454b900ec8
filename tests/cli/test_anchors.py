"""Anchor rows of a run: read from a file, apart from what is measured, part of its identity."""

import json
import shutil

import pytest

import train
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import run_main
from cogcalib_jax.settings import identity
from cogcalib_jax.world.corpus import build_splits
from tests.cli.small_base import WORLD, arguments, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def write(file, examples):
    """Questions without answers."""
    rows = [{"question": e.question, "choices": e.choices, "id": e.id} for e in examples]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def splits():
    return build_splits(WORLD, 0)


def command(base, run, file, *more):
    held = ["--anchor.path", str(file), "--method.name", "cols"]
    return arguments(base, run, *held, *more)


def finetuning(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "finetune"]


def test_a_run_is_held_on_them_and_resumed_only_with_them(base, splits, tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "anchors.jsonl"
    measured = [splits.test[0], splits.validation[1], splits.calibration[2]]
    write(file, [*splits.style[:6], *measured])
    assert run_main(train.main, command(base, run, file)) == 0
    told = capsys.readouterr().err
    assert "anchor: 3 of 9 questions are also in the calibration, validation or test" in told
    found = [line["anchor"] for line in finetuning(run)]
    # The model is the start, but for dropout, and then moves.
    assert 0 < found[0] < 1e-3 < found[-1]
    assert "anchor" in json.loads((run / "inputs.json").read_text())["data"]

    moved = tmp_path / "moved.jsonl"
    shutil.move(file, moved)
    again = ["--resume", "--run-dir", str(run)]
    assert run_main(train.main, again) == 2
    assert "give its new place with --anchor.path" in capsys.readouterr().err
    write(file, splits.style[:5])
    assert run_main(train.main, again) == 2
    assert "the anchor rows differ from what the run was started with" in capsys.readouterr().err
    assert run_main(train.main, [*again, "--anchor.path", str(moved)]) == 0
    assert run_main(train.main, [*again, "--anchor.path", "null"]) == 2
    assert "cannot resume: anchor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "in no calibration, validation or test split. Give other questions"),
        (["--anchor.rows-per-step", "3", "--training.accumulation", "2"], "a multiple of training"),
        (["--anchor.rows-per-step", "4"], "cannot be spread over 8 devices"),
        (["--anchor.term", "brier"], "needs no right answer (allowed: ls, mbls, ecp, kl)"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    base, splits, tmp_path, capsys, more, told
):
    run, file = tmp_path / "run", write(tmp_path / "anchors.jsonl", splits.test[:3])
    assert run_main(train.main, command(base, run, file, *more)) == 2
    assert told in capsys.readouterr().err
    assert not run.exists()


def test_a_dry_run_reads_them_and_says_how_many_hold_an_update(base, splits, tmp_path, capsys):
    file = write(tmp_path / "anchors.jsonl", splits.style[:6])
    assert run_main(train.main, command(base, tmp_path / "run", file, "--dry-run")) == 0
    assert "Each update also takes 8 of 6 questions without answers" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_run_without_them_is_identified_as_before_there_were_any(base, tmp_path):
    def identified(*more):
        argv = arguments(base, tmp_path / "run", *more)
        return identity(load_config(RunConfig, argv, prog="", description="").config)

    assert "anchor" not in identified()
    held = identified("--anchor.path", "a.csv")["anchor"]
    assert held == {"rows_per_step": 8, "term": "kl", "weight": None}
    assert held == identified("--anchor.path", "b.csv")["anchor"]
