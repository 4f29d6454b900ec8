"""Trackers keep what callbacks hear, and it is read back from what their libraries wrote."""

import json
import math
import struct
import time

import pytest

import cogcalib_jax as cc
from cogcalib_jax.training.callbacks import Tracker, announced, import_library
from cogcalib_jax.training.log import step_info

START = cc.StartInfo(
    rows=7,
    style_steps=1,
    steps=2,
    method="cols",
    config={"method": {"term": "ls", "weight": 0.5}, "lora": {"r": 2}, "loss": {"space": None}},
)
LINE = {"ce": 1.5, "cal": 0.25, "gated_fraction": 0.5, "known_fraction": 0.75, "grad_norm": 2.0}
STEPS = [
    LINE | {"step": 1, "phase": "style", "loss": 2.0, "threshold": None, "lr": 1e-3},
    LINE | {"step": 2, "phase": "finetune", "loss": 1.0, "threshold": 0.5, "lr": 2e-3},
    LINE | {"step": 3, "phase": "finetune", "loss": None, "threshold": 0.5, "lr": 1e-3},
]
FIT = cc.ThresholdInfo(1, 0.5, {"threshold": 0.5, "tpr": 0.75, "auroc": None, "n": 8})
NO_FIT = cc.ThresholdInfo(3, -math.inf, {"threshold": None, "n": 8})
VALIDATION = cc.ValidationInfo(3, 1.0, {"accuracy": 0.5, "nll": 1.25, "brier": None}, lora=None)
# What must be kept: name -> step -> number. What is missing or not finite is not.
EXPECTED = {
    "style/loss": {1: 2.0},
    "train/loss": {2: 1.0},
    "train/term": {2: 0.25, 3: 0.25},
    "train/learning_rate": {2: 2e-3, 3: 1e-3},
    "train/threshold": {2: 0.5, 3: 0.5},
    "threshold/value": {1: 0.5},
    "threshold/tpr": {1: 0.75},
    "threshold/n": {1: 8.0, 3: 8.0},
    "validation/accuracy": {3: 0.5},
    "validation/nll": {3: 1.25},
}
ABSENT = {"style/threshold", "threshold/auroc", "validation/brier", "train/step", "train/phase"}
SETTINGS = {"method.term": "ls", "method.weight": 0.5, "lora.r": 2, "rows": 7, "steps": 2}


def tell(tracker: Tracker) -> None:
    with announced([tracker], START):
        tracker.on_step(step_info(STEPS[0]))
        tracker.on_threshold(FIT)
        tracker.on_step(step_info(STEPS[1]))
        tracker.on_step(step_info(STEPS[2]))
        tracker.on_threshold(NO_FIT)
        tracker.on_validation(VALIDATION)
    tracker.on_end(None)


def require_kept(numbers: dict[str, dict[int, float]]) -> None:
    assert not ABSENT & numbers.keys()
    for name, steps in EXPECTED.items():
        assert numbers[name].keys() == steps.keys(), name
        for step, number in steps.items():
            assert numbers[name][step] == pytest.approx(number, abs=1e-6), name


def read_events(folder):
    """The numbers and the hyperparameters of TensorBoard's files, which are TFRecords."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    numbers, settings = {}, {}
    for file in sorted(folder.iterdir()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    for name, one in data.session_start_info.hparams.items():
                        settings[name] = getattr(one, one.WhichOneof("kind"))
                else:
                    numbers.setdefault(value.tag, {})[event.step] = value.simple_value
    return numbers, settings


def read_wandb(folder):
    """The numbers, settings, name and exit code of an offline run: records in LevelDB's format.

    Another process writes the file, and may end after `finish` has returned.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 20
    while file.stat().st_size < 100 and time.monotonic() < until:
        time.sleep(0.05)
    content, place = file.read_bytes(), 7
    numbers, settings, name, code = {}, {}, None, None
    while place + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, place + 4)
        assert kind == 1, "a record in one piece"
        record = Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length
        if record.HasField("run"):
            name = record.run.display_name
            settings |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        elif record.HasField("exit"):
            code = record.exit.exit_code
        elif record.HasField("history"):
            row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
            for key, number in row.items():
                if not key.startswith("_"):
                    numbers.setdefault(key, {})[record.history.step.num] = number
    return numbers, settings, name, code


def read_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("boxes").experiment_id
    (run,) = client.search_runs([experiment])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    numbers = {name: {m.step: m.value for m in found} for name, found in history.items()}
    return numbers, run.data.params, run.info


def test_tensorboard_keeps_numbers_and_hyperparameters(tmp_path):
    pytest.importorskip("tensorboardX")
    tell(cc.TensorBoardTracker(tmp_path / "board"))
    numbers, settings = read_events(tmp_path / "board")
    require_kept(numbers)
    assert settings.items() >= SETTINGS.items() and settings["loss.space"] == "None"


def test_wandb_keeps_them_offline(tmp_path):
    pytest.importorskip("wandb")
    settings = {"console": "off", "silent": True, "disable_git": True}
    tracker = cc.WandbTracker("boxes", mode="offline", dir=str(tmp_path), settings=settings)
    tell(tracker)
    numbers, settings, name, code = read_wandb(tmp_path)
    require_kept(numbers)
    assert settings.items() >= SETTINGS.items() and (name, code) == ("cols", 0)


def test_mlflow_keeps_them_in_a_local_folder(tmp_path):
    pytest.importorskip("mlflow")
    tell(cc.MlflowTracker("boxes", tracking_uri=tmp_path / "store"))
    numbers, params, info = read_mlflow(tmp_path / "store")
    require_kept(numbers)
    assert params.items() >= {name: str(value) for name, value in SETTINGS.items()}.items()
    assert (info.run_name, info.status) == ("cols", "FINISHED")


class Noted(Tracker):
    """Keeps what a library would be told."""

    def __init__(self):
        self.calls = []

    def _begin(self, name, settings):
        self.calls.append(("begin", name))

    def _log(self, numbers, step):
        self.calls.append(("log", step))

    def _finish(self, failed):
        self.calls.append(("finish", failed))


def test_a_run_is_begun_with_its_first_number_and_ended_once():
    tracker = Noted()
    with announced([tracker], START):
        pass
    tracker.on_end(None)
    assert tracker.calls == []
    tell(tracker)
    assert tracker.calls[0] == ("begin", "cols") and tracker.calls.count(("finish", False)) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_fine_tuning_that_fails_ends_the_run_as_failed(error):
    tracker = Noted()

    with pytest.raises(error), announced([tracker], START):
        tracker.on_validation(VALIDATION)
        raise error
    assert tracker.calls == [("begin", "cols"), ("log", 3), ("finish", True)]


def test_a_missing_library_is_told_with_the_line_that_installs_it():
    with pytest.raises(cc.UserError, match="a-library is not installed.*`pip install a-library`"):
        import_library("a_library_that_is_not_there", "a-library")
