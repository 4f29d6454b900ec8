"""MC-dropout and an ensemble as rows of a comparison, from the command line."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import train
from cogcalib_jax.cli import method_run
from cogcalib_jax.errors import run_main
from cogcalib_jax.training.checkpoint import Checkpoints
from tests.cli.small_base import arguments, write_base
from tests.training.small_trainer import Killed, lines

COMPARE = (
    "--compare",
    "sft,mc_dropout,ensemble,blob,tfb(anchors=8,steps=2)",
    "--ensemble-members",
    "3",
)
OPTIONS = ("--lora.lora-dropout", "0", "--evaluation.mc-passes", "4", *COMPARE)
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


def test_both_are_rows_with_numbers_predictions_and_pictures(comparison):
    table = read(comparison / "comparison.json")
    averaged = ["mc_dropout", "ensemble", "blob", "tfb"]
    assert list(table)[-4:] == averaged
    assert not {f"{name}_temperature" for name in averaged} & set(table)
    assert read(comparison / "recommended.json")["method"] not in averaged
    assert table["blob"]["world"]["mc_passes"] == 4
    assert table["mc_dropout"]["world"]["mc_passes"] == 4
    assert table["ensemble"]["world"]["members"] == 3
    for name in averaged:
        numbers = read(comparison / name / "eval.json")
        numbers.pop("provenance")
        assert numbers == table[name]
    page = (comparison / "report.html").read_text()
    assert "deep ensemble of SFT" in page and "MC-dropout" in page


def test_noise_is_added_to_the_adapter_of_the_comparison_and_its_search_is_kept(comparison):
    found = read(comparison / "tfb/tfb.json")
    assert found["anchors"] == 8 and found["criterion"] == "pseudo_nll" and found["trials"]
    assert not (comparison / "tfb/adapter").exists()
    assert read(comparison / "comparison.json")["tfb"]["world"]["noise_draws"] == 4
    for name in ("tfb", "ensemble"):
        rows = (comparison / name / "validation.jsonl").read_text().splitlines()
        assert len(rows) == 12


def test_members_differ_in_everything_but_base_and_rows(comparison):
    """Each a run folder: LoRA's first weights, style phase and data order of its own."""
    assert not (comparison / "ensemble/member-0").exists()
    folders = [comparison / "sft", *(comparison / f"ensemble/member-{k}" for k in (1, 2))]
    assert len({(folder / ADAPTER).read_bytes() for folder in folders}) == 3
    for phase in ("style", "finetune"):
        losses = [[line["loss"] for line in lines(folder, phase=phase)] for folder in folders]
        assert len({len(one) for one in losses}) == 1
        assert len({tuple(one) for one in losses}) == 3
    assert all((folder / "adapter/calibration.json").exists() for folder in folders)


def test_a_member_can_be_repeated_alone_and_the_ensemble_is_their_mean(comparison, tmp_path):
    alone = [probs(comparison / "sft")]
    for k in (1, 2):
        member, again = comparison / f"ensemble/member-{k}", tmp_path / f"again-{k}"
        command = ["--config", str(member / "config.yaml"), "--run-dir", str(again)]
        assert run_main(train.main, command) == 0
        assert (again / ADAPTER).read_bytes() == (member / ADAPTER).read_bytes()
        alone.append(probs(again))
    assert np.std(alone, axis=0).max() > 1e-3
    np.testing.assert_allclose(probs(comparison / "ensemble"), np.mean(alone, 0), atol=1e-6)


def test_dropout_is_trained_from_the_shared_start_with_dropout(comparison):
    settings = read(comparison / "mc_dropout/adapter/adapter_config.json")
    assert settings["lora_dropout"] == 0.1
    assert read(comparison / "sft/adapter/adapter_config.json")["lora_dropout"] == 0
    assert "dropout: 0.1" in (comparison / "mc_dropout/config.yaml").read_text()
    sft, dropped = (comparison / name for name in ("sft", "mc_dropout"))
    assert lines(sft, phase="style") == lines(dropped, phase="style")
    first = [lines(folder, phase="finetune")[0]["loss"] for folder in (sft, dropped)]
    assert first[0] != first[1]


def test_blob_trains_a_distribution_from_the_shared_start_and_leaves_its_mean(comparison, base):
    sft, blob = (comparison / name for name in ("sft", "blob"))
    assert lines(sft, phase="style") == lines(blob, phase="style")
    first = [lines(folder, phase="finetune")[0]["loss"] for folder in (sft, blob)]
    assert first[0] != first[1]
    names = [set(load_file(folder / ADAPTER)) for folder in (sft, blob)]
    assert names[0] == names[1]
    assert (sft / ADAPTER).read_bytes() != (blob / ADAPTER).read_bytes()
    assert np.abs(probs(sft) - probs(blob)).max() > 1e-3


@pytest.mark.slow
def test_killed_within_a_member_and_resumed_is_the_same_comparison(
    comparison, base, tmp_path, monkeypatch
):
    """And nothing that was finished is trained or scored again."""
    run = tmp_path / "run"
    shutil.copytree(comparison, run)
    shutil.rmtree(run / "ensemble")
    (run / "comparison.json").unlink()
    resume = arguments(base, run, *OPTIONS, "--resume")
    save = Checkpoints.save

    def killed(self, step, *args, **saved_as):
        save(self, step, *args, **saved_as)
        if self.folder.parent.name == "member-1" and step == 3:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", killed)
        run_main(train.main, resume)
    assert not (run / "ensemble/eval.json").exists()
    saved, scored = [], []
    write = method_run.write_results

    def counted(self, step, *args, **saved_as):
        save(self, step, *args, **saved_as)
        saved.append(self.folder.parent.relative_to(run.absolute()))

    def noted(folder, *args, **model):
        scored.append(folder.name)
        write(folder, *args, **model)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", counted)
        patch.setattr(method_run, "write_results", noted)
        assert run_main(train.main, resume) == 0
    assert {str(folder) for folder in saved} == {
        "ensemble/member-1",
        "ensemble/member-2",
        "ensemble/member-2/style",
    }
    assert scored == ["ensemble"]
    assert read(run / "comparison.json") == read(comparison / "comparison.json")
    for k in (1, 2):
        member = f"ensemble/member-{k}/{ADAPTER}"
        assert (run / member).read_bytes() == (comparison / member).read_bytes()


@pytest.mark.slow
def test_methods_trained_with_dropout_lend_their_sft(base, comparison, tmp_path):
    run = tmp_path / "run"
    options = (
        "--compare",
        "sft,mc_dropout",
        "--lora.lora-dropout",
        "0.3",
        "--evaluation.mc-passes",
        "2",
    )
    assert run_main(train.main, arguments(base, run, *options)) == 0
    assert not (run / "mc_dropout/adapter").exists()
    assert np.abs(probs(run / "mc_dropout") - probs(run / "sft")).max() > 1e-4


@pytest.mark.slow
def test_without_sft_the_first_member_is_trained_as_sft_would_be(base, comparison, tmp_path):
    run = tmp_path / "run"
    options = ("--lora.lora-dropout", "0", "--compare", "ls,ensemble", "--ensemble-members", "2")
    assert run_main(train.main, arguments(base, run, *options)) == 0
    assert list(read(run / "comparison.json")) == [
        *("base", "commonest_answer", "ls", "ls_temperature", "ensemble")
    ]
    assert (run / "ensemble/member-0" / ADAPTER).read_bytes() == (
        comparison / "sft" / ADAPTER
    ).read_bytes()
