"""Laplace-LoRA as a row of a comparison, from the command line."""

import json
import shutil

import numpy as np
import pytest

import train
from cogcalib_jax.baselines.kfac import NoPosterior
from cogcalib_jax.cli import sampling
from cogcalib_jax.errors import run_main
from tests.cli.small_base import arguments, write_base

OPTIONS = ("--lora.lora-dropout", "0", "--compare", "sft,laplace_lora")
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def comparison(base, tmp_path_factory):
    here = tmp_path_factory.mktemp("comparison") / "run"
    assert run_main(train.main, arguments(base, here, *OPTIONS)) == 0
    return here


def read(path):
    return json.loads(path.read_text())


def probs(folder):
    text = (folder / "predictions/world.jsonl").read_text()
    return np.array([json.loads(line)["option_probs"] for line in text.splitlines()])


def test_it_is_a_row_derived_from_sft(comparison):
    table = read(comparison / "comparison.json")
    assert list(table)[-1] == "laplace_lora" and "laplace_lora_temperature" not in table
    folder = comparison / "laplace_lora"
    numbers = read(folder / "eval.json")
    numbers.pop("provenance")
    assert numbers == table["laplace_lora"]
    assert numbers["world"]["posterior_samples"] == 10_000
    assert np.abs(probs(folder) - probs(comparison / "sft")).max() > 1e-3
    assert not (folder / "adapter").exists()
    fitted = read(folder / "laplace.json")
    assert fitted["rows"] == 24
    effective = fitted["prior_precision"] * fitted["squared_norm"]
    assert fitted["effective_parameters"] == pytest.approx(effective, rel=1e-4)
    page = (comparison / "report.html").read_text()
    assert "Laplace-LoRA: probabilities averaged over 10,000 draws" in page


@pytest.mark.slow
def test_a_resumed_comparison_fits_again_only_what_is_not_there(
    comparison, base, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(comparison, run)
    resume = arguments(base, run, *OPTIONS, "--resume")

    def unwanted(*args):
        raise NoPosterior("not now")

    monkeypatch.setattr(sampling, "fit", unwanted)
    assert run_main(train.main, resume) == 0
    assert read(run / "comparison.json") == read(comparison / "comparison.json")
    capsys.readouterr()
    shutil.rmtree(run / "laplace_lora")
    assert run_main(train.main, resume) == 0
    assert "note: no row laplace_lora: not now" in capsys.readouterr().err
    assert "laplace_lora" not in read(run / "comparison.json")


@pytest.mark.slow
def test_without_sft_it_is_trained_as_sft_would_be(comparison, base, tmp_path):
    run = tmp_path / "run"
    options = ("--lora.lora-dropout", "0", "--compare", "ls,laplace_lora")
    assert run_main(train.main, arguments(base, run, *options)) == 0
    assert {"ls", "laplace_lora"} <= set(read(run / "comparison.json"))
    alone, beside = run / "laplace_lora", comparison / "laplace_lora"
    assert (alone / ADAPTER).read_bytes() == (comparison / "sft" / ADAPTER).read_bytes()
    np.testing.assert_allclose(probs(alone), probs(beside), atol=1e-6)
