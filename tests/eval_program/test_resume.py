"""eval.py --resume: what is finished is not done again, and nothing else is taken for it."""

import shutil
from pathlib import Path

import pytest

from cogcalib_jax.cli import results
from tests.eval_program.programs import run_eval


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module", autouse=True)
def one_commit():
    """Results name the source tree's commit, which may change while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cogcalib_jax.inference.evaluate._commit", lambda: "0123abc")
        yield


@pytest.fixture(scope="module")
def whole(trained, other, tmp_path_factory):
    """Arguments for two models and two tasks, into a folder `e`; and all that ends up in it."""
    _, run = trained
    argv = ["--run", run, other, "--task", "world", "world:taught_form_b", "--run-dir", "e"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        assert run_eval(*argv) == 0
        return argv, contents(Path("e"))


@pytest.mark.parametrize(
    ("broken", "call"),
    [
        ("_score", 1),
        pytest.param("_score", 2, marks=pytest.mark.slow),
        pytest.param("write_predictions", 3, marks=pytest.mark.slow),
        pytest.param("write_json", 6, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(
    whole, trained, other, tmp_path, monkeypatch, capsys, broken, call
):
    """Interrupted at the start, between tasks, between predictions and numbers, at the end."""
    argv, files = whole
    monkeypatch.chdir(tmp_path)
    calls = []
    original = getattr(results, broken)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(results, broken, interrupted)
        assert run_eval(*argv) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "python eval.py --resume --run-dir e"
    assert not (tmp_path / "e" / "comparison.json").exists()
    scored = []
    score = results._score
    monkeypatch.setattr(
        results,
        "_score",
        lambda folder, task, *rest: scored.append(task) or score(folder, task, *rest),
    )
    assert run_eval("--resume", "--run-dir", "e") == 0
    finished = {"_score": call - 1, "write_predictions": call - 1, "write_json": 4}[broken]
    assert len(scored) == 4 - finished
    assert contents(tmp_path / "e") == files


def test_a_resumed_evaluation_is_the_one_that_was_started(trained, other, tmp_path, capsys):
    _, run = trained
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    argv = ["--run", copy, "--task", "world", "--run-dir", tmp_path / "e"]
    assert run_eval(*argv) == 0
    assert run_eval(*argv, "--resume") == 0  # finished: nothing to do
    shutil.copytree(trained[0], tmp_path / "moved")
    moved = ["--run-dir", tmp_path / "e", "--resume", "--model.path", tmp_path / "moved"]
    assert run_eval(*moved) == 0  # the same weights elsewhere
    assert f"path: {tmp_path / 'moved'}" in (tmp_path / "e" / "config.yaml").read_text()
    capsys.readouterr()
    assert run_eval(*argv, "--resume", "--evaluation.bins", "10") == 2
    assert "evaluation.bins is 10 but it was started with 15" in capsys.readouterr().err
    shutil.copytree(other / "adapter", copy / "adapter", dirs_exist_ok=True)
    assert run_eval(*argv, "--resume") == 2
    assert "weights.adapter is " in capsys.readouterr().err
