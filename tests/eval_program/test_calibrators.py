"""eval.py --calibrator and --predict with calibrators of every kind, on what train.py wrote."""

import json
import shutil

import numpy as np
import pytest

from cogcalib_jax.calibration import CALIBRATORS, Calibrator
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.train import train_run
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.hf.adapter import adapter_hash, base_hash
from cogcalib_jax.world.config import MadeSettings
from tests.cli.small_base import WORLD, arguments, write_base
from tests.eval_program.programs import SCORING, lines, run_eval, small_world
from tests.method.registered import own_names

# A temperature, by whatever rule it was fitted, is written as one.
NAMES = [n for n in own_names(CALIBRATORS) if n not in ("temperature", "daca", "vector")]


def content(path):
    return json.loads(path.read_text())


def padded(rows, field):
    """[n, k] of a field of prediction rows, -inf where a row is shorter; and the mask."""
    values = np.full((len(rows), max(len(row[field]) for row in rows)), -np.inf)
    for i, row in enumerate(rows):
        values[i, : len(row[field])] = row[field]
    return values, np.isfinite(values)


def calibrated(run, folder, calibrator, *more):
    """The rows of an evaluation of `run` with `calibrator`."""
    argv = ("--run", run, "--calibrator", calibrator, "--task", "world", "--run-dir", folder)
    assert run_eval(*argv, *more) == 0
    return lines(folder / "predictions/world.jsonl")


@pytest.fixture(scope="module")
def start_scores(trained, tmp_path_factory):
    """Option scores of the start on the test questions, by an evaluation of its adapter alone."""
    base, run = trained
    folder = tmp_path_factory.mktemp("start") / "e"
    argv = [*small_world(base), *SCORING, "--task", "world", "--run-dir", folder]
    assert run_eval(*argv, "--adapter", run / "start_adapter") == 0
    return padded(lines(folder / "predictions/world.jsonl"), "option_scores")[0]


def test_a_run_keeps_its_start_once_with_the_hash_of_its_base(trained):
    base, run = trained
    stored, start = content(run / "adapter/calibration.json"), run / "start_adapter"
    kept = content(start / "calibration.json")
    assert kept["base"]["hash"] == base_hash(base) and kept["prompt"] == stored["prompt"]
    assert kept["calibrator"] is None and "start of a run" in kept["temperature"]["why_none"]
    assert stored["adapter_sha256"] == adapter_hash(run / "adapter") != adapter_hash(start)
    assert stored["start_adapter_sha256"] == kept["adapter_sha256"] == adapter_hash(start)
    temperature = stored["temperature"]["value"]
    assert stored["calibrator"] == {
        "calibrator": "temperature",
        "temperature_": temperature,
        "converged_": temperature < 99,
        "n_rows_": WORLD.calibration,
    }


def test_the_temperature_is_the_one_that_training_stored(trained, tmp_path):
    _, run = trained
    rows = calibrated(run, tmp_path / "e", "temperature")
    assert rows == lines(run / "temperature/predictions/world.jsonl")
    assert calibrated(run, tmp_path / "s", "stored") == rows
    stored = content(run / "adapter/calibration.json")["calibrator"]
    fitted = content(tmp_path / "e/calibrator.json")
    assert fitted.pop("temperature_") == pytest.approx(stored.pop("temperature_"), rel=1e-6)
    assert fitted == stored


@pytest.mark.parametrize("name", NAMES)
def test_rows_hold_the_probabilities_of_the_calibrator_that_the_folder_keeps(
    name, trained, start_scores, tmp_path, capsys
):
    _, run = trained
    rows = calibrated(run, tmp_path / "e", name)
    said = capsys.readouterr()
    assert f"calibrated by {name} fitted on {WORLD.calibration} calibration questions" in said.out
    assert f"confidences by calibrator {name}" in said.err
    kept = Calibrator.from_json(content(tmp_path / "e/calibrator.json"))
    assert kept.n_rows_ == WORLD.calibration
    scores, mask = padded(rows, "option_scores")
    probs = kept(scores, mask=mask, start_scores=start_scores)
    raw = lines(run / "predictions/world.jsonl")
    for row, plain, expected in zip(rows, raw, probs, strict=True):
        assert row["calibrator"] == name and row["option_scores"] == plain["option_scores"]
        np.testing.assert_allclose(
            row["option_probs"], expected[: len(row["option_probs"])], atol=1e-6
        )
        assert row["prediction"] == int(np.argmax(row["option_probs"]))
        assert row["confidence"] == max(row["option_probs"])
    assert content(tmp_path / "e/eval.json")["world"]["calibrator"] == name


@pytest.fixture(scope="module")
def mixing(tmp_path_factory):
    """A run whose adapter stores a mixture, as training wrote it."""
    folder = tmp_path_factory.mktemp("mixing")
    argv = arguments(write_base(folder / "base"), folder / "run", *SCORING, "--method.name", "sft")
    argv += ["--training.probe-rows", "0", "--training.max-steps", "2"]
    argv += ["--training.style-steps", "2", "--evaluation.calibrator", "mixture"]
    train_run(load_config(RunConfig, argv, prog="", description="").config, "", argv)
    return folder / "run"


def asked(path):
    rows = load_splits(DataConfig(), seed=0, made=MadeSettings(WORLD)).test
    texts = [{"question": e.question, "choices": e.choices, "id": e.id} for e in rows]
    path.write_text("\n".join(map(json.dumps, texts)))
    return path


def test_training_stores_a_mixture_and_everyone_applies_it(mixing, tmp_path, capsys):
    stored = content(mixing / "adapter/calibration.json")
    assert stored["calibrator"]["calibrator"] == "mixture"
    assert stored["calibrator_options"] is None
    rows = calibrated(mixing, tmp_path / "e", "stored")
    assert content(tmp_path / "e/calibrator.json") == stored["calibrator"]
    again = calibrated(mixing, tmp_path / "f", "mixture")
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_allclose(one["option_probs"], other["option_probs"], atol=1e-4)
    capsys.readouterr()
    out = tmp_path / "a.jsonl"
    assert run_eval("--run", mixing, "--predict", asked(tmp_path / "q.jsonl"), "--out", out) == 0
    assert "confidences by calibrator mixture, fitted on" in capsys.readouterr().err
    for answer, row in zip(lines(out), rows, strict=True):
        np.testing.assert_allclose(answer["option_probs"], row["option_probs"], atol=1e-5)
        assert answer["index"] == row["prediction"]
    # What the recommendation is chosen by is what --predict gives.
    validation = lines(mixing / "validation.jsonl")
    assert len(validation) == WORLD.validation
    splits = load_splits(DataConfig(), seed=0, made=MadeSettings(WORLD))
    texts = [{"question": e.question, "choices": e.choices, "id": e.id} for e in splits.validation]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, texts)))
    out = tmp_path / "v.out"
    assert run_eval("--run", mixing, "--predict", tmp_path / "v.jsonl", "--out", out) == 0
    for answer, row in zip(lines(out), validation, strict=True):
        assert answer["confidence"] == pytest.approx(row["confidence"], abs=1e-5)


def test_a_mixture_without_its_very_own_adapters_is_refused(mixing, tmp_path, capsys):
    def refused(run, calibrator, message):
        argv = ("--run", run, "--calibrator", calibrator, "--task", "world")
        assert run_eval(*argv, "--run-dir", tmp_path / "e") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "e").exists()

    lost = shutil.copytree(mixing, tmp_path / "lost")
    shutil.rmtree(lost / "start_adapter")
    refused(lost, "stored", "calibrator is mixture, which mixes the model with its start")
    refused(lost, "linear_mixture", "Runs of earlier releases kept none")
    swapped = shutil.copytree(mixing, tmp_path / "swapped")
    for file in (swapped / "adapter").glob("*.safetensors"):
        shutil.copyfile(swapped / "start_adapter" / file.name, file)
    refused(swapped, "stored", "its weights are not those that its calibrator mixture was fitted")


def test_files_of_earlier_releases_keep_working(mixing, trained, tmp_path):
    """They hold a temperature alone, and no start."""
    _, run = trained
    old = shutil.copytree(run, tmp_path / "old")
    shutil.rmtree(old / "start_adapter")
    file = old / "adapter/calibration.json"
    new = ("calibrator", "why_no_calibrator", "calibrator_options")
    new = (*new, "adapter_sha256", "start_adapter_sha256")
    file.write_text(json.dumps({k: v for k, v in content(file).items() if k not in new}))
    config = old / "config.yaml"
    config.write_text(config.read_text().replace("  calibrator: temperature\n", ""))
    rows = calibrated(old, tmp_path / "e", "stored")
    assert rows == lines(run / "temperature/predictions/world.jsonl")


def test_what_cannot_be_calibrated_is_refused_by_name(trained, tmp_path, capsys):
    base, run = trained

    def refused(message, *argv):
        assert run_eval(*argv, "--run-dir", tmp_path / "e") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error, error
        assert not (tmp_path / "e").exists()

    world = ["--run", run, "--task", "world", "--calibrator"]
    refused(
        "calibrator is vector; expected one list of options for all questions", *world, "vector"
    )
    refused("mixture(use_prior=true); expected one list", *world, "mixture(use_prior=true)")
    refused("must be a calibrator: calibrator is 'plat'; expected one of", *world, "plat")
    refused("l2 is -1; expected a number of at least 0", *world, "vector(l2=-1)")
    alone = [*small_world(base), "--task", "world"]
    refused("must be stored or none without a run, or adapters", *alone, "--calibrator", "platt")
    refused("must be none but for adapters", *alone, "--start", run / "start_adapter")
    taught = ("--evaluation.fit-taught", "true")
    refused("platt, which weighs no rows; expected another", *world, "platt", *taught)
    refused("stores none for option_score mean", *alone, "--calibrator", "stored")
    refused(
        "evaluation.calibrator is what training stores", *world[:4], "--evaluation.calibrator=platt"
    )
    together = ["--run", run, run.parent / "run", "--ensemble", "true", "--calibrator", "platt"]
    assert run_eval(*together) == 2
    shown = capsys.readouterr().err
    assert "must be none beside ensemble" in shown or "must name each run once" in shown


def test_an_adapter_without_a_run_is_calibrated_as_in_its_run(trained, tmp_path):
    base, run = trained
    rows = calibrated(run, tmp_path / "run", "mixture")
    alone = [*small_world(base), "--task", "world", "--adapter", run / "adapter"]
    alone += ["--calibrator", "mixture"]
    # The run has no style phase: its start is the bare base.
    for name, start in (("given", ("--start", run / "start_adapter")), ("base", ())):
        assert run_eval(*alone, *start, "--run-dir", tmp_path / name) == 0
        found = lines(tmp_path / name / "predictions/world.jsonl")
        for row, wanted in zip(found, rows, strict=True):
            np.testing.assert_allclose(row["option_probs"], wanted["option_probs"], atol=1e-5)


def test_taught_facts_have_the_same_say_in_a_fit_as_the_calibration_split(trained, tmp_path):
    _, run = trained
    groups = ("world:unseen_fit", "world:taught_fit")
    assert run_eval("--run", run, "--task", *groups, "--run-dir", tmp_path / "e") == 0
    parts = [lines(tmp_path / f"e/predictions/{group}.jsonl") for group in groups]
    scores, mask = padded([row for part in parts for row in part], "option_scores")
    answers = [row["answer"] for part in parts for row in part]
    weights = np.repeat([1 / WORLD.calibration, 1 / WORLD.train], [len(p) for p in parts])
    wanted = CALIBRATORS.make("temperature").fit(scores, answers, mask=mask, weights=weights)
    calibrated(run, tmp_path / "f", "temperature", "--evaluation.fit-taught", "true")
    found = content(tmp_path / "f/calibrator.json")
    assert found["n_rows_"] == WORLD.calibration + WORLD.train
    np.testing.assert_allclose(found["temperature_"], wanted.temperature_, rtol=1e-4)
