"""`python train.py` from its command line: a run, a resumed run, a comparison, and refusals."""

import errno
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import train
from cogcalib_jax.engine import checkpoint
from cogcalib_jax.engine.checkpoint import Checkpoints
from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.runs import train as runs
from tests.engine.quick import quick_compilation
from tests.reliability.resumed import differences
from tests.runs.small_base import WORLD, arguments, write_base
from tests.training.small_trainer import Killed, lines


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cols(base, tmp_path_factory):
    """A finished run, started in a folder of its own so that its command can be repeated."""
    here = tmp_path_factory.mktemp("cols")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run_main(train.main, arguments(base, "run", "--method.name", "cols")) == 0
    return here / "run"


@pytest.fixture(scope="module")
def comparison(base, tmp_path_factory):
    here = tmp_path_factory.mktemp("comparison") / "run"
    assert run_main(train.main, arguments(base, here, "--compare", "sft,cols")) == 0
    return here


def results(path):
    return json.loads(path.read_text())


def test_a_run_leaves_what_its_contract_says(cols):
    names = {path.name for path in cols.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "dynamics.jsonl", "eval.json", "style"} <= names
    assert {"predictions", "checkpoints", "adapter", "plots", "report.html"} <= names
    assert not list(cols.rglob("*.partial"))
    world = results(cols / "eval.json")["world"]
    assert (world["split"], world["n"]) == ("test", WORLD.test)
    rows = [json.loads(x) for x in (cols / "predictions/world.jsonl").read_text().splitlines()]
    right = [row["prediction"] == row["answer"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(world["accuracy"])
    assert sum(row["nll"] for row in rows) / len(rows) == pytest.approx(world["nll"])
    for row in rows:
        together = row["prompt_ids"] + row["completion_ids"][row["answer"]]
        assert together[0] == 1 and 1 not in together[1:]


def test_its_config_repeats_it(cols, base, tmp_path):
    command = ["--config", str(cols / "config.yaml"), "--run-dir", str(tmp_path / "again")]
    assert run_main(train.main, command) == 0
    again, first = (results(d / "eval.json") for d in (tmp_path / "again", cols))
    assert again["world"] == first["world"]


def killed_after_an_epoch(command, monkeypatch):
    save = Checkpoints.save

    def killed(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step == 3:  # the end of the first epoch; style adaptation saves after 2 updates
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", killed)
        run_main(train.main, command)


def test_killed_and_resumed_is_the_same_run(cols, base, tmp_path, monkeypatch, capsys):
    """Elsewhere, and told no more than the run's folder: even eval.json has the same bytes."""
    monkeypatch.chdir(tmp_path)
    command = arguments(base, "run", "--method.name", "cols")
    killed_after_an_epoch(command, monkeypatch)
    assert not (tmp_path / "run/eval.json").exists()
    capsys.readouterr()
    assert run_main(train.main, ["--resume", "--run-dir", "run"]) == 0
    told = capsys.readouterr().err
    assert "== Resuming run: cols" in told and "goes on from update 3 of 6" in told
    assert "\r" not in told
    assert differences(tmp_path / "run", cols) == []


def test_a_base_that_moved_is_known_by_its_weights(cols, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cols, "run")
    (tmp_path / "run/eval.json").unlink()
    shutil.copytree(base, "moved")
    file = tmp_path / "run/config.yaml"
    file.write_text(file.read_text().replace(str(base), str(tmp_path / "gone")))
    resume = ["--resume", "--run-dir", "run"]
    refused(resume, "if it was moved, give its new place with --model.path", capsys)
    assert run_main(train.main, [*resume, "--model.path", "moved"]) == 0
    assert results(tmp_path / "run/eval.json")["world"] == results(cols / "eval.json")["world"]
    # From now on it is known where the base lies.
    assert file.read_text() == (cols / "config.yaml").read_text().replace(str(base), "moved")
    (tmp_path / "run/eval.json").unlink()
    assert run_main(train.main, [*resume, "--dry-run"]) == 0

    tensors = load_file("moved/model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, "moved/model.safetensors")
    refused(resume, "model.path = moved: the weights of the base differ", capsys)
    # A run of before hashes were kept beside it has them in its checkpoints.
    (tmp_path / "run/inputs.json").unlink()
    refused(resume, "model.path = moved: the weights of the base differ", capsys)
    assert not (tmp_path / "run/eval.json").exists()


def test_a_method_of_a_comparison_is_not_resumed_by_itself(comparison, capsys):
    command = f"python train.py --resume --run-dir {comparison}"
    refused(["--resume", "--run-dir", str(comparison / "cols")], f"go on with {command}", capsys)


def test_resumed_on_another_mesh_it_agrees(cols, base, tmp_path, monkeypatch):
    """Begun on eight parts of the batch, ended on parameters in four and heads in two."""
    run = tmp_path / "run"
    command = arguments(base, run, "--method.name", "cols")
    killed_after_an_epoch(command, monkeypatch)
    mesh = ["--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2"]
    assert run_main(train.main, [*command, "--resume", *mesh]) == 0
    ours, theirs = lines(run), lines(cols)
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        numbers = {key: value for key, value in their.items() if isinstance(value, float)}
        assert {key: our[key] for key in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5)
        assert {**our, **numbers} == their
    ours, theirs = (load_file(d / "adapter/adapter_model.safetensors") for d in (run, cols))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-5, err_msg=name)
    ours, theirs = (results(d / "eval.json")["world"] for d in (run, cols))
    assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-5)


def test_a_full_disk_is_one_line_and_leaves_what_can_be_resumed(
    cols, base, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = arguments(base, "run", "--method.name", "cols")
    write, calls = checkpoint.ocp.save, []

    def full(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 3:  # style adaptation, and both ends of an epoch
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "save", full)
        refused(command, "No space left on device; make room", capsys)
    assert run_main(train.main, [*command, "--resume"]) == 0
    assert differences(tmp_path / "run", cols) == []


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before_it(
    cols, base, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cols, tmp_path / "run")
    (tmp_path / "run/eval.json").unlink()
    (tmp_path / "run/checkpoints/6/manifest.json").write_text("{")
    command = arguments(base, "run", "--method.name", "cols", "--resume")
    assert run_main(train.main, command) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1 and "moved to 6-damaged, and checkpoint 3 is used" in told[0]
    assert differences(tmp_path / "run", cols) == []


def test_a_comparison_starts_every_method_from_one_style_phase(comparison, cols):
    table = results(comparison / "comparison.json")
    assert list(table) == ["sft", "sft_best_epoch", "sft_temperature", "cols"]
    assert table["sft_temperature"]["world"]["temperature"] > 0
    assert table["sft_temperature"]["world"]["accuracy"] == table["sft"]["world"]["accuracy"]
    # The method alone is the method within the comparison.
    assert table["cols"]["world"] == results(cols / "eval.json")["world"]
    assert lines(comparison / "sft", phase="style") == lines(comparison / "cols", phase="style")
    sft = lines(comparison / "sft", phase="finetune")
    assert all(line["loss"] == line["ce"] and line["cal"] == 0 for line in sft)


def test_without_a_mistake_only_the_temperatures_row_is_left_out(
    comparison, base, tmp_path, monkeypatch, capsys
):
    """The finished comparison, resumed: nothing is trained again."""
    run = tmp_path / "run"
    shutil.copytree(comparison, run)
    shutil.rmtree(run / "sft_temperature")
    before = results(run / "comparison.json")
    (run / "comparison.json").unlink()

    def refuse(predictions):
        raise UserError("temperature: all 40 calibration questions are answered correctly")

    monkeypatch.setattr(runs, "fit_temperature", refuse)
    # The checkpoints belong to the config they were made with, which the run folder is not in.
    command = arguments(base, run, "--compare", "sft,cols", "--resume")
    assert run_main(train.main, command) == 0
    # A method's config repeats its run, however often that was resumed.
    assert "resume: false" in (run / "sft" / "config.yaml").read_text()
    del before["sft_temperature"]
    assert results(run / "comparison.json") == before
    assert "no row sft_temperature: temperature: all 40" in capsys.readouterr().err


def several_tokens(tmp_path):
    file = tmp_path / "rows.jsonl"
    words = ["acme", "hooli", "globex", "wonka"]
    rows = [
        {
            "question": f"where does row {n} work ?",
            "choices": [f"{w} law" for w in words],
            "answer": n % 4,
        }
        for n in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data.task", "custom", "--data.path", str(file), "--data.prompt", "cloze"]


REFUSED = {
    "unknown key": (["--training.epoch", "3"], "training.epoch"),
    "wrong type": (["--lora.rank", "two"], "lora.rank"),
    "out of range": (["--lora.rank", "0"], "lora.rank"),
    "method and comparison": (
        ["--compare", "sft,cols", "--method.weight", "0.5"],
        "--compare and --method.weight",
    ),
    "method named twice": (["--method.name", "cols", "--method.term", "ecp"], "method.term"),
    "unknown method in a comparison": (["--compare", "sft,colz"], "colz"),
    "no such base": (["--model.path", "/nowhere/at/all"], "/nowhere/at/all"),
    "nothing to resume": (["--resume"], "nothing to resume"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(why, base, tmp_path, capsys):
    options, named = REFUSED[why]
    command = arguments(base, tmp_path / "run")
    if "--model.path" in options:
        del command[:2]
    refused(command + options, named, capsys)
    assert not (tmp_path / "run").exists()


def refused(command, named, capsys):
    assert run_main(train.main, command) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    assert named in told[-1]


def test_options_space_is_refused_where_options_have_several_tokens(base, tmp_path, capsys):
    for field in ("--loss.space", "--method.space"):
        command = arguments(base, tmp_path / "run", *several_tokens(tmp_path), field, "options")
        refused([*command, "--method.name", "cols"], f"{field[2:]} = options", capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_refused_and_left_alone(base, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    refused(arguments(base, tmp_path), "exists and is not empty", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_needs_a_folder_and_the_same_config(cols, base, tmp_path, capsys):
    refused(["--resume"], "run_dir", capsys)
    shutil.copytree(cols, tmp_path / "run")
    command = arguments(base, tmp_path / "run", "--resume", "--method.name", "cols")
    refused([*command, "--training.learning-rate", "0.5"], "training.learning_rate", capsys)
    # Also when it was killed before its first checkpoint.
    shutil.rmtree(tmp_path / "run/checkpoints")
    shutil.rmtree(tmp_path / "run/style")
    refused([*command, "--seed", "7"], "seed is 7 but it was started with", capsys)
    assert (tmp_path / "run/eval.json").read_bytes() == (cols / "eval.json").read_bytes()


def test_the_adapter_says_which_temperature_the_comparison_used(comparison):
    rescaled = results(comparison / "comparison.json")["sft_temperature"]["world"]
    calibration = results(comparison / "sft" / "adapter" / "calibration.json")
    assert calibration["temperature"]["value"] == rescaled["temperature"]
