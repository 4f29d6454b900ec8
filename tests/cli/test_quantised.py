"""A run on a quantised base: what it records, what refuses to go on, and what a merge does."""

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import eval as eval_program
import train
from cogcalib_jax import Model
from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.hf.files import open_folder
from cogcalib_jax.hf.merge import main as merge
from tests.cli.small_base import arguments, write_base

DIFFERS = "was trained on a base with model.quantise nf4"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    command = arguments(base, folder, "--model.quantise", "nf4", "--method.name", "cols")
    assert run_main(train.main, command) == 0
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions/world.jsonl").open()]


@pytest.mark.slow
def test_config_adapter_card_results_and_predictions_say_how_the_base_was_held(run):
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["quantise"] == "nf4"
    stored = json.loads((run / "adapter/calibration.json").read_text())
    assert stored["base"]["quantise"] == "nf4"
    assert "held in nf4" in (run / "adapter/README.md").read_text()
    assert json.loads((run / "eval.json").read_text())["provenance"]["quantise"] == "nf4"
    assert {row["quantise"] for row in rows_of(run)} == {"nf4"}


def test_a_run_is_not_resumed_with_another_quantisation(base, run, capsys):
    # Identities leave out a field that is newer than they are while it has its default.
    for other, shown in (("int8", "'int8'"), ("none", "None")):
        command = arguments(base, run, "--model.quantise", other, "--method.name", "cols")
        assert run_main(train.main, [*command, "--resume"]) == 2
        said = capsys.readouterr().err
        assert f"model.quantise is {shown} but it was started with 'nf4'" in said


def test_an_evaluation_of_the_run_holds_the_base_as_the_run_did(run, tmp_path, capsys):
    again = tmp_path / "again"
    assert run_main(eval_program.main, ["--run", str(run), "--run-dir", str(again)]) == 0
    assert DIFFERS not in capsys.readouterr().out
    for ours, wanted in zip(rows_of(again), rows_of(run), strict=True):
        np.testing.assert_allclose(ours["option_probs"], wanted["option_probs"], atol=1e-5)
    whole = tmp_path / "whole"
    command = ["--run", str(run), "--run-dir", str(whole), "--model.quantise", "none"]
    assert run_main(eval_program.main, command) == 0
    said = capsys.readouterr()
    assert f"{DIFFERS}, which is none here" in " ".join((said.out + said.err).split())
    assert not any("quantise" in row for row in rows_of(whole))


def test_the_api_takes_the_runs_quantisation_and_says_it(run, tmp_path):
    model = Model.from_run(run)
    wanted = rows_of(run)[0]
    choices = [text.strip() for text in wanted["completions"]]
    (row,) = model.predict([{"question": wanted["question"], "choices": choices}]).to_rows()
    assert row["quantise"] == "nf4"
    np.testing.assert_allclose(row["option_scores"], wanted["option_scores"], atol=1e-4)
    with pytest.raises(UserError, match="model.quantise is nf4; expected none"):
        model.merge_and_unload()
    model.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter/calibration.json").read_text())
    assert stored["base"]["quantise"] == "nf4"


def test_a_merge_is_into_the_bases_own_weights_and_says_so(base, run, tmp_path, capsys):
    out = tmp_path / "merged"
    assert run_main(merge, ["--run", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert DIFFERS in " ".join((said.out + said.err).split())
    assert "held in nf4" in (out / "README.md").read_text()
    before, after = open_folder(base), open_folder(out)
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    for name, tensor in after.items():
        wanted = before[name].read().astype(np.float64)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in adapter:
            a, b = (adapter[f"{module}.lora_{x}.weight"] for x in "AB")
            wanted += 16 / 2 * b.astype(np.float64) @ a
        np.testing.assert_allclose(tensor.read(), wanted, atol=1e-5, err_msg=name)
