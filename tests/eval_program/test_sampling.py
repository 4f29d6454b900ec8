"""Several adapters as one model, and one adapter with its dropout on."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.eval_program.programs import SCORING, lines, read, run_eval, small_world

PREDICTIONS = "predictions/world.jsonl"


@pytest.fixture(scope="module")
def stronger(trained):
    """The same run with an adapter that does three times as much."""
    copy = trained[1].parent / "stronger"
    shutil.copytree(trained[1], copy)
    file = copy / "adapter" / "adapter_model.safetensors"
    tensors = {k: 3 * v if "lora_B" in k else v for k, v in load_file(file).items()}
    save_file(tensors, file)
    return copy


@pytest.fixture(scope="module")
def ensemble(trained, stronger, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble") / "e"
    assert run_eval("--run", trained[1], stronger, "--ensemble", "true", "--run-dir", folder) == 0
    return folder


def probs(folder, field="option_probs"):
    return np.array([row[field] for row in lines(folder / PREDICTIONS)])


@pytest.mark.slow
def test_an_ensemble_of_runs_is_one_result_the_mean_of_theirs(
    trained, stronger, ensemble, tmp_path
):
    alone = []
    for name, run in (("one", trained[1]), ("two", stronger)):
        assert run_eval("--run", run, "--task", "world", "--run-dir", tmp_path / name) == 0
        alone.append(tmp_path / name)
    assert np.abs(probs(alone[0]) - probs(alone[1])).max() > 1e-3
    wanted = np.mean([probs(folder) for folder in alone], axis=0)
    np.testing.assert_allclose(probs(ensemble), wanted, atol=1e-6)
    vocab = np.mean([np.exp(probs(folder, "option_logprobs")) for folder in alone], axis=0)
    np.testing.assert_allclose(np.exp(probs(ensemble, "option_logprobs")), vocab, atol=1e-6)
    assert read(ensemble)["world"]["members"] == 2
    assert not (ensemble / "comparison.json").exists()


def test_adapters_on_a_base_are_averaged_alike(trained, stronger, ensemble, tmp_path, capsys):
    base, run = trained
    adapters = [run / "adapter", stronger / "adapter"]
    argv = [*small_world(base), *SCORING, "--task", "world", "--run-dir", tmp_path / "e"]
    assert run_eval(*argv, "--ensemble", "true", "--adapter", *adapters) == 0
    np.testing.assert_allclose(probs(tmp_path / "e"), probs(ensemble), atol=1e-6)
    out = capsys.readouterr().out
    assert out.startswith(f"Ensemble of {adapters[0]}, {adapters[1]}:")
    assert "averaged over 2 members" in out


def test_dropout_stays_on_where_passes_are_asked_for(trained, tmp_path, capsys):
    _, run = trained
    argv = ["--run", run, "--task", "world", "--run-dir", tmp_path / "e", "--mc-passes", "3"]
    assert run_eval(*argv) == 0
    assert read(tmp_path / "e")["world"]["mc_passes"] == 3
    assert np.abs(probs(tmp_path / "e") - probs(run)).max() > 1e-5
    assert "averaged over 3 passes" in capsys.readouterr().out


def without_dropout(run, folder):
    shutil.copytree(run, folder)
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_dropout": 0.0}))
    return folder


def test_what_cannot_be_averaged_is_refused(trained, other, tmp_path, capsys):
    _, run = trained
    plain = without_dropout(run, tmp_path / "plain")
    refusals = [
        (["--run", run, "--ensemble", "true"], "at least two"),
        (["--run", run, other, "--ensemble", "true"], "differ in base, tokenizer, rank"),
        (["--run", plain, "--mc-passes", "3"], "trained without dropout"),
        (["--run", run, "--mc-passes", "0"], "mc_passes"),
        (["--run", run, other, "--ensemble", "true", "--mc-passes", "3"], "mc_passes"),
    ]
    for argv, told in refusals:
        assert run_eval(*argv, "--run-dir", tmp_path / "e") == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "e").exists()


def test_noise_is_added_to_a_run_and_to_a_foreign_adapter(trained, tmp_path, capsys):
    """The adapter's anchors are a file of questions; the run's are its training rows."""
    base, run = trained
    few = ("--tfb", "tfb(anchors=8, steps=2)", "--evaluation.mc-passes", "3", "--task", "world")
    assert run_eval("--run", run, *few, "--run-dir", tmp_path / "run") == 0
    assert "TFB: probabilities averaged over 3 draws of A" in capsys.readouterr().out
    assert read(tmp_path / "run")["world"]["noise_draws"] == 3
    found = json.loads((tmp_path / "run/tfb.json").read_text())
    assert found["anchors"] == 8 and found["trials"]
    anchors = tmp_path / "anchors.jsonl"
    taught = lines(run / "predictions/world:taught_form_b.jsonl")[:5]
    rows = [
        {"question": row["question"], "choices": [text.strip() for text in row["completions"]]}
        for row in taught + lines(run / PREDICTIONS)[:6]
    ]
    anchors.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [*small_world(base), *SCORING, *few, "--adapter", run / "adapter"]
    assert run_eval(*argv, "--tfb-anchors", anchors, "--run-dir", tmp_path / "e") == 0
    # Questions that are evaluated are no anchors.
    assert json.loads((tmp_path / "e/tfb.json").read_text())["anchors"] == 5
    assert np.abs(probs(tmp_path / "run") - probs(run)).max() > 1e-6


@pytest.mark.parametrize(
    ("spec", "more", "words"),
    [
        ("tfb", [], "must name a file of questions for adapters"),
        (
            "tfb",
            ["--tfb-anchors", "x", "--mc-passes", "3"],
            "mc_passes = 3: must be none beside tfb",
        ),
        ("tfb(layers=first)", [], "layers is first; expected all or last"),
        ("tfb(criterion=gold_nll)", ["--tfb-anchors", "x"], "tfb_anchors = x: must be none"),
    ],
)
def test_noise_without_what_it_needs_is_refused(trained, tmp_path, capsys, spec, more, words):
    base, run = trained
    argv = [*small_world(base), "--adapter", run / "adapter", "--run-dir", tmp_path / "e"]
    assert run_eval(*argv, "--tfb", spec, *more) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "e").exists()
