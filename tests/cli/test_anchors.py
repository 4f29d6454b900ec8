"""Anchor rows of a run: from a file or a split of their own, apart from all others, without
answers, part of its identity."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import train
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import run_main
from cogcalib_jax.method.config import AnchorConfig
from cogcalib_jax.report.report import write_report
from cogcalib_jax.settings import identity
from cogcalib_jax.world.corpus import FORMAT, _ask, _draw_facts, build_splits
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


@pytest.fixture
def others():
    """Questions about the people of no split."""
    return [
        _ask(WORLD, fact, "A")
        for fact in _draw_facts(replace(WORLD, seed=0))
        if fact.split == FORMAT
    ]


def command(base, run, file, *more):
    held = ["--anchor.path", str(file), "--method.name", "cols"]
    return arguments(base, run, *held, *more)


def finetuning(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "finetune"]


@pytest.mark.slow
def test_a_run_is_held_on_them_and_resumed_only_with_them(base, others, tmp_path, capsys):
    run, file = tmp_path / "run", write(tmp_path / "anchors.jsonl", others[:6])
    assert run_main(train.main, command(base, run, file)) == 0
    found = [line["anchor"] for line in finetuning(run)]
    # The model is the start, but for dropout, and then moves.
    assert 0 < found[0] < 1e-3 < found[-1]
    assert "anchor" in json.loads((run / "inputs.json").read_text())["data"]

    moved = tmp_path / "moved.jsonl"
    shutil.move(file, moved)
    again = ["--resume", "--run-dir", str(run)]
    assert run_main(train.main, again) == 2
    assert "give its new place with --anchor.path" in capsys.readouterr().err
    write(file, others[:5])
    assert run_main(train.main, again) == 2
    assert "the anchor rows differ from what the run was started with" in capsys.readouterr().err
    assert run_main(train.main, [*again, "--anchor.path", str(moved)]) == 0
    assert run_main(train.main, [*again, "--anchor.path", "null"]) == 2
    assert "cannot resume: anchor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "3 of 3 questions share question, group or person with test (the first: "),
        (["--anchor.rows-per-step", "3", "--training.accumulation", "2"], "a multiple of training"),
        (["--anchor.rows-per-step", "4"], "cannot be spread over 8 devices"),
        (["--anchor.term", "brier"], "needs no right answer (allowed: ls, mbls, ecp, kl, uniform"),
        (["--anchor.carve", "4"], "anchor.carve = 4: must be unset beside anchor.path"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    base, splits, tmp_path, capsys, more, told
):
    run, file = tmp_path / "run", write(tmp_path / "anchors.jsonl", splits.test[:3])
    assert run_main(train.main, command(base, run, file, *more)) == 2
    assert told in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize("split", ["style", "train", "calibration", "validation"])
def test_they_share_no_person_with_any_split(base, splits, others, tmp_path, capsys, split):
    """Another wording about the same person, in a file that names no groups, is refused, too."""
    fact = next(f for f in _draw_facts(replace(WORLD, seed=0)) if f.split == split)
    file = write(tmp_path / "anchors.jsonl", [*others, _ask(WORLD, fact, "C")])
    assert run_main(train.main, command(base, tmp_path / "run", file)) == 2
    assert f"1 of 21 questions share question, group or person with {split}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["test", "train.jsonl", "Validation.csv.gz"])
def test_a_split_is_not_named_as_anchors(base, tmp_path, capsys, name):
    assert run_main(train.main, command(base, tmp_path / "run", tmp_path / name)) == 2
    assert "must name other questions than style, train, calib" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_of_a_file_are_not_read(base, others, tmp_path):
    """Other answers, and other columns about them, leave every file of the run as it was."""
    adapters = []
    for shift in (0, 1):
        file = tmp_path / "anchors.jsonl"
        rows = [
            {"question": e.question, "choices": e.choices, "answer": (e.answer + shift) % 8}
            | {"known": bool(shift)}
            for e in others
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = tmp_path / str(shift)
        assert run_main(train.main, command(base, run, file)) == 0
        names = ("adapter/adapter_model.safetensors", "predictions/world.jsonl", "inputs.json")
        adapters.append([(run / name).read_bytes() for name in names])
    assert adapters[0] == adapters[1]


def custom(tmp_path, splits, *more):
    """A run on stored rows; all facts of a person are a group."""
    rows = [
        {"question": e.question, "choices": e.choices, "answer": e.answer, "group": e.group}
        for e in (*splits.train, *splits.test, *splits.calibration)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = ("--data.task", "custom", "--data.path", str(tmp_path / "rows.jsonl"))
    return [*made, "--data.prompt", "cloze", *more]


def test_they_are_carved_from_train(base, splits, tmp_path, capsys):
    argv = custom(tmp_path, splits, "--anchor.carve", "8", "--dry-run")
    assert run_main(train.main, arguments(base, tmp_path / "run", *argv)) == 0
    told = capsys.readouterr()
    assert "anchor 8 questions" in told.err
    assert "Each update also takes 8 of 8 questions without answers" in told.out


def test_a_file_of_the_runs_rows_holds_no_anchors(base, splits, tmp_path, capsys):
    more = custom(tmp_path, splits, "--anchor.path", str(tmp_path / "rows.jsonl"))
    assert run_main(train.main, arguments(base, tmp_path / "run", *more)) == 2
    assert "a file of the run's own splits; expected other questions" in capsys.readouterr().err


def test_the_world_has_people_of_their_own_for_them(base, tmp_path, capsys):
    run = tmp_path / "run"
    held = ["--world.anchor", "12", "--anchor.term", "uniform", "--dry-run"]
    assert run_main(train.main, arguments(base, run, *held)) == 0
    assert "8 of 12 questions without answers, under the term uniform" in capsys.readouterr().out
    assert run_main(train.main, arguments(base, run, "--anchor.carve", "8")) == 2
    assert "must be unset: task world has world.anchor, people of" in capsys.readouterr().err
    assert run_main(train.main, arguments(base, run, "--anchor.weight", "0.5")) == 2
    assert "anchor.weight = 0.5: must be None without anchors" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--world.anchor", "12"]])
def test_a_dry_run_says_how_many_of_a_file_hold_an_update(base, others, tmp_path, capsys, more):
    """A file takes the place of the world's own."""
    file = write(tmp_path / "anchors.jsonl", others[:6])
    assert run_main(train.main, command(base, tmp_path / "run", file, "--dry-run", *more)) == 0
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


@pytest.mark.slow
def test_a_comparison_holds_and_recommends_the_methods_that_it_names(base, tmp_path):
    run = tmp_path / "run"
    options = ("--world.anchor", "12", "--anchor.methods", "[kl]", "--anchor.epochs", "3")
    options += ("--anchor.learning-rate", "0.02")
    named = ("--compare", "sft,kl=0", "--recommended", "kl_temperature")
    argv = arguments(base, run, *options, *named)
    assert run_main(train.main, argv) == 0
    plain, held = finetuning(run / "sft"), finetuning(run / "kl")
    assert not any("anchor" in line for line in plain)
    assert all(line["anchor"] >= 0 for line in held)
    assert len(held) == 3 * WORLD.train // 8 == 1.5 * len(plain)

    recommended = json.loads((run / "recommended.json").read_text())
    assert (recommended["method"], recommended["chosen_on"]) == ("kl_temperature", "config")
    folder = run / "kl_temperature"
    for name in ("adapter_model.safetensors", "calibration.json"):
        assert (folder / "adapter" / name).read_bytes() == (run / "kl/adapter" / name).read_bytes()
    value = json.loads((folder / "adapter/calibration.json").read_text())["temperature"]["value"]
    for line in (folder / "predictions/world.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["temperature"] == value
        scaled = np.exp(np.array(row["option_logprobs"]) / value)
        np.testing.assert_allclose(row["option_probs"], scaled / scaled.sum(), atol=1e-6)
    text = " ".join(write_report(run).split())
    told = "KL to the start on all data was held on questions without answers by the term kl"
    assert f"{told}, and only on these: the weight of its own term is 0." in text
    assert f"Adapter: {folder / 'adapter'}" in text
    assert "The config names it" in text or "not recommended" in text
    for key, alone in (("sft", AnchorConfig(methods=())), ("kl", AnchorConfig())):
        argv = ["--config", str(run / key / "config.yaml")]
        config = load_config(RunConfig, argv, prog="", description="").config
        assert (config.anchor, config.holds(key)) == (alone, key == "kl")
        rates = {"sft": (2, 0.01), "kl": (3, 0.02)}
        assert (config.training.epochs, config.training.learning_rate) == rates[key]
    assert max(line["lr"] for line in held) > 1.5 * max(line["lr"] for line in plain)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--anchor.methods", "[ls]"], "must name methods of the run (got 'ls'; allowed: sft, kl)"),
        (["--recommended", "kl"], "must be a method with its temperature (allowed: sft_temper"),
        (["--recommended", "kl_temperature", "--evaluation.calibrator", "platt"], "must be unset"),
    ],
)
def test_only_methods_of_the_comparison_are_held_or_recommended(base, tmp_path, capsys, more, told):
    argv = arguments(base, tmp_path / "run", "--world.anchor", "12", "--compare", "sft,kl", *more)
    assert run_main(train.main, argv) == 2
    assert told in capsys.readouterr().err
