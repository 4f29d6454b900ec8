"""`--track` keeps the numbers of each method in its own folder, and changes nothing of the run."""

import json
import sys
from typing import get_args, get_type_hints

import pytest

import train
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.tracking import TRACKERS, make_trackers
from cogcalib_jax.errors import run_main
from tests.cli.small_base import arguments, write_base
from tests.training.test_trackers import read_events


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return write_base(folder / "base")


def journal(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] in ("style", "finetune", "validation")]


@pytest.mark.slow
def test_every_method_of_a_comparison_is_tracked_from_its_first_update(base, tmp_path):
    pytest.importorskip("tensorboardX")
    shown = tmp_path / "tracked"
    argv = arguments(base, shown, "--compare", "sft,cols", "--track", "tensorboard")
    assert run_main(train.main, argv) == 0
    for method in ("sft", "cols"):
        board = shown / method / "tracking" / "tensorboard"
        numbers, settings = read_events(board)
        for line in journal(shown / method):
            prefix = {"finetune": "train"}.get(line["phase"], line["phase"])
            kept = numbers[f"{prefix}/{'nll' if prefix == 'validation' else 'loss'}"]
            number = line["nll"] if prefix == "validation" else line["loss"]
            assert kept[line["step"]] == pytest.approx(number, abs=1e-6)
        assert settings["method.term"] == {"sft": "none", "cols": "ls"}[method]
        assert settings["base"] == base.name
        assert str(tmp_path) not in repr(settings)
    files = sorted(shown.rglob("*tfevents*"))
    assert run_main(train.main, ["--resume", "--run-dir", str(shown)]) == 0
    assert sorted(shown.rglob("*tfevents*")) == files, "what is finished begins no run again"
    plain = tmp_path / "plain"
    assert run_main(train.main, arguments(base, plain, "--compare", "cols")) == 0
    for file in ("adapter/adapter_model.safetensors", "predictions/world.jsonl"):
        assert (plain / "cols" / file).read_bytes() == (shown / "cols" / file).read_bytes()


def test_the_users_environment_decides_where_numbers_go(tmp_path):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")

    def made(env):
        return make_trackers(("wandb", "mlflow"), tmp_path, "run/cols", env)

    wandb, mlflow = made({})
    assert wandb._init["mode"] == "offline" and mlflow._uri == (tmp_path / "mlflow").as_uri()
    env = {"WANDB_MODE": "online", "WANDB_PROJECT": "mine", "MLFLOW_TRACKING_URI": "http://there"}
    wandb, mlflow = made(env)
    assert (wandb._init["mode"], wandb._init["project"]) == ("online", "mine")
    assert mlflow._uri is None, "MLflow reads it itself"


def test_the_config_names_every_tracker():
    (kind, _) = get_args(get_type_hints(RunConfig)["track"])
    assert get_args(kind) == tuple(TRACKERS)


def test_a_missing_library_is_told_before_anything_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    argv = ["--model.path", "nowhere", "--track", "tensorboard", "--run-dir", str(tmp_path / "r")]
    assert run_main(train.main, argv) == 2
    assert "pip install tensorboardX" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
