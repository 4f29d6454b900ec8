"""The rows start and interpolation of a comparison, from the command line."""

import json

import numpy as np
import pytest

import train
from cogcalib_jax.cli.references import SHARES
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.adapter_config import read_lora_config
from tests.cli.small_base import WORLD, arguments, write_base
from tests.eval_program.programs import SCORING, lines, run_eval, small_world

OPTIONS = ("--compare", "sft,start,interpolation", "--lora.lora-dropout", "0", *SCORING)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("between")
    base = write_base(folder / "base")
    assert run_main(train.main, arguments(base, folder / "run", *OPTIONS)) == 0
    return base, folder / "run"


def probs(folder, task="world"):
    rows = lines(folder / "predictions" / f"{task}.jsonl")
    return np.array([row["option_probs"] for row in rows])


def test_the_rows_are_what_their_adapters_answer(run, tmp_path):
    base, folder = run
    table = json.loads((folder / "comparison.json").read_text())
    assert list(table)[-2:] == ["start", "interpolation"]
    assert len(probs(folder / "start")) == WORLD.test
    alone = [*small_world(base), *SCORING, "--task", "world"]
    adapters = {"start": "start_adapter", "interpolation": "interpolation/adapter"}
    for name, place in adapters.items():
        found = ("--adapter", folder / place, "--run-dir", tmp_path / name)
        assert run_eval(*alone, *found) == 0
        np.testing.assert_allclose(probs(tmp_path / name), probs(folder / name), atol=1e-5)
    assert read_lora_config(folder / "interpolation/adapter").r == 2 * 2


def test_the_share_has_the_lowest_nll_on_both_populations(run):
    _, folder = run
    choice = json.loads((folder / "interpolation/interpolation.json").read_text())
    assert choice["fitted_on"] == ["calibration", "taught_fit"]
    assert set(choice["nll"]) == {f"{share:g}" for share in SHARES}
    best = min(choice["nll"], key=choice["nll"].get)
    assert choice["share"] == float(best)
    tried = folder / "interpolation/path" / best
    np.testing.assert_array_equal(probs(tried), probs(folder / "interpolation"))
    assert np.abs(probs(folder / "start") - probs(folder / "sft")).max() > 1e-3


@pytest.mark.slow
def test_a_quantised_base_can_be_interpolated_on(run, tmp_path):
    base, _ = run
    argv = arguments(base, tmp_path / "run", *OPTIONS, "--model.quantise", "int8")
    assert run_main(train.main, argv) == 0
    assert len(probs(tmp_path / "run" / "interpolation")) == WORLD.test


def test_interpolation_without_sft_is_refused(run, tmp_path, capsys):
    base, _ = run
    argv = arguments(base, tmp_path / "run", "--compare", "ls,interpolation")
    assert run_main(train.main, argv) == 2
    assert "must name sft beside interpolation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
