"""Finished runs for the tests of eval.py: one that was trained, and one made from it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.train import train_run
from cogcalib_jax.configlib.loading import load_config
from tests.cli.small_base import arguments, write_base
from tests.eval_program.programs import SCORING


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def other(trained):
    """A second finished run: the same with an adapter of three times the strength and rank 3."""
    _, run = trained
    copy = run.parent / "other"
    shutil.copytree(run, copy)
    file = copy / "adapter" / "adapter_model.safetensors"
    tensors = {}
    for name, array in load_file(file).items():
        widened = [(0, 1), (0, 0)] if "lora_A" in name else [(0, 0), (0, 1)]
        tensors[name] = np.pad(3 * array if "lora_B" in name else array, widened)
    save_file(tensors, file)
    settings = copy / "adapter" / "adapter_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"r": 3, "lora_alpha": 1.5 * content["lora_alpha"]}))
    return copy
