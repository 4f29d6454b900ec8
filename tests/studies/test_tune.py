"""Tuning: every candidate is trained once, whatever interrupts it, and a preset is written."""

import shutil

import pytest

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.errors import UserError
from cogcalib_jax.studies import main
from cogcalib_jax.studies import tune as tune_module
from tests.cli.small_base import arguments, write_base


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    words = arguments(write_base(folder / "base"), folder / "unused")
    place = words.index("--run-dir")
    del words[place : place + 2]
    more = ["--seeds", "0,1", "--terms", "ls", "--gates", "adaptive", "--weights", "0.5"]
    return ["tune", *words, *more]


@pytest.fixture(scope="module")
def tuned(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    main([*command, "--out", str(folder / "out")])
    return folder / "out"


def contents(folder, pattern):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.glob(pattern)}


@pytest.mark.slow
def test_the_command_writes_what_was_tried_and_a_preset_that_runs(tuned):
    text = (tuned / "tune.md").read_text()
    for name in ("sft, 2 epochs", "sft, best epoch", "cols, weight 0.5"):
        assert name in text
    (preset,) = tuned.glob("*.yaml")
    config = from_yaml(RunConfig, preset.read_text(), preset)
    assert config.compare == () and config.resolved_methods() and config.run_dir is None
    assert "# Recommended on validation questions" in preset.read_text()
    assert len((tuned / "tune.jsonl").read_text().splitlines()) % 2 == 0
    assert not list(tuned.glob("seed-*/*/*@*")), "weights of candidates are not kept"


def test_what_is_finished_is_not_trained_again(command, tuned, monkeypatch):
    monkeypatch.setattr(tune_module, "open_run", lambda *_: pytest.fail("trained again"))
    before = contents(tuned, "tune*") | contents(tuned, "*.yaml")
    main([*command, "--out", str(tuned)])
    assert contents(tuned, "tune*") | contents(tuned, "*.yaml") == before


def test_an_interrupted_tuning_goes_on_and_finds_the_same_bits(
    command, tuned, tmp_path, monkeypatch
):
    trained = []

    def finetune(*words):
        trained.append(words[-1].name)
        result = real_finetune(*words)
        if len(trained) == 2:
            raise KeyboardInterrupt  # before what it believes was written down
        return result

    real_finetune = tune_module.finetune
    monkeypatch.setattr(tune_module, "finetune", finetune)
    again = [*command, "--seeds", "0", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        main(again)
    main(again)
    assert trained == ["sft", "ls@adaptive=0.5", "ls@adaptive=0.5"]
    kept = contents(tmp_path, "seed-0/*/tried/*.json")
    assert len(kept) == 2
    assert kept == contents(tuned, "seed-0/*/tried/*.json")
    ours = (tuned / "tune.jsonl").read_text().splitlines()
    assert (tmp_path / "tune.jsonl").read_text().splitlines() == ours[: len(ours) // 2]


def test_more_candidates_cost_only_their_own_training(command, tuned, capsys):
    more = [*command, "--weights", "0.5,1", "--epochs", "2", "--out", str(tuned)]
    main([*more, "--dry-run"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    rows = [row for row in rows if row and row[0].isdigit() and len(row) < 6]
    states = {(row[0], row[2]): row[3] for row in rows}
    for seed in ("0", "1"):
        assert states[seed, "sft"] == states[seed, "ls@adaptive=0.5"] == "finished"
        assert states[seed, "ls@adaptive=1.0"] == "to"


def test_a_folder_of_another_config_is_refused(command, tuned):
    with pytest.raises(UserError, match="lora.r is 4"):
        main([*command, "--lora.r", "4", "--out", str(tuned)])


def test_a_damaged_belief_is_named(command, tuned, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tuned, out)
    file = next(out.glob("seed-1/*/tried/sft.json"))
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match="sft.json: damaged"):
        main([*command, "--out", str(out)])


def test_a_dry_run_lists_what_is_tried_and_writes_nothing(command, tmp_path, capsys):
    main([*command, "--dry-run", "--out", str(tmp_path / "new")])
    text = capsys.readouterr().out
    assert text.count("to do") == 4 and "ls@adaptive=0.5" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seeds", "100", "seeds = 100"),
        ("--seeds", "0,0", "seeds = 0,0: must name each once"),
        ("--weights", "0", "weights = 0: must be finite numbers above 0"),
        ("--weights", "inf", "weights = inf: must be finite numbers above 0"),
        ("--epochs", "0", "epochs = 0: must be finite numbers above 0"),
        ("--gates", "oracle", "gates = oracle: cannot be oracle"),
        ("--gates", "nosuch", "gate is .nosuch.; expected one of all, "),
        ("--compare", "sft", "--compare has no meaning for tuning"),
        ("--run-dir", "x", "--run-dir has no meaning for tuning; everything lies in the folder"),
    ],
)
def test_what_must_not_be_tuned_is_refused(option, value, message):
    with pytest.raises(UserError, match=message):
        main(["tune", option, value])


def test_an_out_that_is_a_file_is_refused_before_anything_is_trained(command, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        main([*command, "--out", str(tmp_path / "file")])


def test_candidates_are_trained_on_the_rows_that_a_run_would_take(command, tmp_path, monkeypatch):
    rows = []

    def finetune(trainer, *_):
        rows.append(trainer.splits["train"])
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_module, "finetune", finetune)
    known = ["--composition.known-share", "1", "--composition.by", "world"]
    with pytest.raises(KeyboardInterrupt):
        main([*command, *known, "--out", str(tmp_path)])
    assert all(row.example.extra["known"] for row in rows[0])
