"""A mixture of experts in two processes with two devices each: the run of one process."""

import pytest

import train
from cogcalib_jax.errors import run_main
from cogcalib_jax.models.config import ExpertsConfig
from tests.cli.small_base import arguments, write_base
from tests.multihost import assert_same_run, together


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(tmp_path):
    """Of the two axes with two devices each one lies between processes, the other within them."""
    experts = ExpertsConfig(number=4, per_token=2, width=48)
    base = write_base(tmp_path / "base", model_type="mixtral", experts=experts, num_layers=2)
    cache, runs = tmp_path / "cache", [tmp_path / "alone", tmp_path / "pair"]
    shared = ("--method.name", "cols", "--lora.target-modules", "q_proj,v_proj,lm_head")
    mesh = ("--mesh.data", "1", "--mesh.expert", "2", "--mesh.fsdp")
    assert run_main(train.main, arguments(base, runs[0], *shared, *mesh, "4")) == 0
    command = arguments(base, runs[1], *shared, *mesh, "2")
    for process in together(tmp_path / "plan", cache, {"commands": [["train", *command]]}):
        assert process.returncode == 0, process.stderr[-4000:]
        assert "expert 2" in process.stderr or "==" not in process.stderr
    assert_same_run(runs[1], runs[0], ("style", "finetune", "validation"))
