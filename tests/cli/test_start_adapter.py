"""A run that starts from an adapter, whoever made it."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import eval as eval_program
import train
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.train import open_run
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.adapter import base_hash, save_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.weights import read_config
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.placement import Placement
from tests.cli.small_base import arguments, write_base
from tests.models.small import small_decoder

LORA = LoraConfig(r=3, lora_alpha=5.0, target_modules=("k_proj", "lm_head"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base, tmp_path):
    decoder = small_decoder(read_config(base), lora=LORA)
    save_adapter(tmp_path / "adapter", decoder, base)
    return tmp_path / "adapter"


def command(base, run_dir, adapter, *more):
    options = arguments(base, run_dir, "--adapter", str(adapter), *more)
    at = options.index("--lora.r")
    return options[:at] + options[at + 2 :]


def test_a_run_starts_from_the_adapters_values_and_settings(base, adapter, tmp_path):
    argv = command(base, tmp_path / "run", adapter)
    run = open_run(load_config(RunConfig, argv, prog="", description="").config, "x", argv)
    assert run.config.lora == LoraConfig(3, 5.0, LORA.target_modules, lora_dropout=0.1)
    decoder = small_decoder(read_config(base), lora=LORA)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(nnx.to_pure_dict(run.assembled.lora)),
        jax.device_get(nnx.to_pure_dict(nnx.state(decoder, nnx.LoRAParam))),
    )
    # What is written repeats the run: the settings are the adapter's there too.
    written = load_config(
        RunConfig, ["--config", str(tmp_path / "run" / "config.yaml")], prog="", description=""
    ).config
    assert (written.lora, written.adapter) == (run.config.lora, str(adapter))


@pytest.mark.slow
def test_a_run_keeps_ranks_by_layer_and_dora(base, tmp_path):
    """Trained with SFT and sampled with dropout, stored, and scored again by another program."""
    where = Placement(("q_proj", "lm_head"), rank_pattern=((r".*layers\.0\..*", 1),))
    lora = LoraConfig(
        *(3, 5.0, ("q_proj", "lm_head")), use_rslora=True, use_dora=True, placement=where
    )
    save_adapter(tmp_path / "first", small_decoder(read_config(base), lora=lora), base)
    run = tmp_path / "run"
    argv = command(base, run, tmp_path / "first", "--compare", "sft,mc_dropout")
    assert run_main(train.main, argv) == 0
    assert read_lora_config(run / "sft" / "adapter") == replace(lora, lora_dropout=0.1)
    before, after = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "first", run / "sft" / "adapter")
    )
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    assert all(np.abs(before[name] - after[name]).max() > 0 for name in before)
    again = ["--run", str(run / "sft"), "--run-dir", str(tmp_path / "again")]
    assert run_main(eval_program.main, again) == 0
    first, second = (
        json.loads((folder / "eval.json").read_text())["world"]
        for folder in (run / "sft", next((tmp_path / "again").glob("**/eval.json")).parent)
    )
    assert second["nll"] == pytest.approx(first["nll"], abs=1e-5)


@pytest.mark.parametrize("retyped", ["r", "lora_alpha", "target_modules", "use_dora"])
def test_its_settings_cannot_be_retyped(base, adapter, tmp_path, retyped, capsys):
    value = {"target_modules": "q_proj", "use_dora": "true"}.get(retyped, "3")
    argv = command(base, tmp_path / "run", adapter, f"--lora.{retyped}", value)
    assert run_main(train.main, argv) == 2
    assert f"--lora.{retyped} cannot be used with --adapter" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base_is_refused_before_anything_is_written(
    base, adapter, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    content = {"base": {"name": "base", "hash": base_hash(base)}}
    (adapter / "calibration.json").write_text(json.dumps(content))
    file = other / "model.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file)
    evaluation = ["--model.path", str(other), "--adapter", str(adapter)]
    for program, argv in (
        (train, command(other, tmp_path / "run", adapter)),
        (eval_program, [*evaluation, "--run-dir", str(tmp_path / "run")]),
    ):
        assert run_main(program.main, argv) == 2
        assert "adapter: was trained on another base (base)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
