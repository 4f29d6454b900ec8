"""eval.py from the command line, on what train.py wrote."""

import json
import shutil
from collections import Counter

import pytest

from cogcalib_jax.cli import evaluate
from tests.eval_program.programs import SCORING, lines, read, run_eval, small_world


def test_evaluating_a_run_again_gives_the_numbers_of_its_training(trained, tmp_path, capsys):
    _, run = trained
    assert run_eval("--run", run, "--run-dir", tmp_path / "e") == 0
    before, again = read(run), read(tmp_path / "e")
    assert before.pop("provenance")["data_hash"] == again.pop("provenance")["data_hash"]
    assert again == before
    for task in before:
        name = f"predictions/{task}.jsonl"
        assert lines(tmp_path / "e" / name) == lines(run / name)
    out = capsys.readouterr().out
    assert "CoLS (label smoothing on known data, Wang et al. 2025), from" in out
    accuracy = before["world"]["accuracy"]
    row = next(line for line in out.splitlines() if line.startswith("world "))
    assert f"{100 * accuracy:.1f} %" in row
    assert (tmp_path / "e" / "config.yaml").is_file()


def test_an_adapter_is_evaluated_on_its_base_without_a_run(trained, tmp_path):
    base, run = trained
    for name, more in (("with", ["--adapter", run / "adapter"]), ("bare", [])):
        argv = [*small_world(base), *SCORING, "--task", "world", "--run-dir", tmp_path / name]
        assert run_eval(*argv, *more) == 0
    name = "predictions/world.jsonl"
    assert lines(tmp_path / "with" / name) == lines(run / name)
    bare, adapted = lines(tmp_path / "bare" / name), lines(run / name)
    assert [row["id"] for row in bare] == [row["id"] for row in adapted]
    assert bare[0]["option_logprobs"] != adapted[0]["option_logprobs"]


def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path):
    assert run_eval("--run", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no config.yaml")
    assert error.count("\n") == 1


def test_a_folder_with_results_is_not_written_over(trained, capsys):
    _, run = trained
    assert run_eval("--run", run, "--run-dir", run) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_several_runs_are_evaluated_as_each_alone_and_compared(trained, other, tmp_path, capsys):
    _, run = trained
    both = tmp_path / "both"
    assert run_eval("--run", run, other, "--by", "relation", "--run-dir", both) == 0
    out = capsys.readouterr().out
    assert "other minus run" in out
    assert "Results by relation:" in out
    comparison = json.loads((both / "comparison.json").read_text())
    assert list(comparison) == ["run", "other"]
    alone = tmp_path / "alone"
    assert run_eval("--run", other, "--by", "relation", "--run-dir", alone) == 0
    assert comparison["other"] == {k: m for k, m in read(alone).items() if k != "provenance"}
    for name, folder in (("run", run), ("other", alone)):
        rows = lines(both / name / "predictions" / "world.jsonl")
        assert rows == lines(folder / "predictions" / "world.jsonl")
        by = comparison[name]["world"].pop("by")["relation"]
        expected = read(folder)["world"]
        expected.pop("by", None)  # training gives none
        assert comparison[name]["world"] == expected
        counts = {value: m["n"] for value, m in by.items()}
        assert counts == Counter(row["extra"]["relation"] for row in rows)
    weights = [read(both / name)["provenance"]["weights"] for name in comparison]
    assert weights[0]["base"] == weights[1]["base"]
    assert weights[0]["adapter"] != weights[1]["adapter"]
    assert (both / "comparison.md").is_file()
    assert (both / "comparison.csv").is_file()


def test_runs_of_one_base_and_shape_load_it_once(trained, other, tmp_path, monkeypatch):
    base, run = trained
    third = tmp_path / "third"
    shutil.copytree(run, third)
    loaded = []
    load = evaluate.load_model

    def counting(config, model, *more):
        loaded.append(model.name)
        return load(config, model, *more)

    monkeypatch.setattr(evaluate, "load_model", counting)
    runs = [run, other, third]
    assert run_eval("--run", *runs, "--task", "world", "--run-dir", tmp_path / "e") == 0
    assert loaded == ["run", "other"]


def test_the_bare_base_stands_beside_its_adapters(trained, other, tmp_path):
    base, run = trained
    adapters = ("--adapter", "none", run / "adapter", other / "adapter")
    assert (
        run_eval(*small_world(base), "--task", "world", *adapters, "--run-dir", tmp_path / "e") == 0
    )
    comparison = json.loads((tmp_path / "e" / "comparison.json").read_text())
    assert list(comparison) == ["base", "run", "other"]
    assert comparison["base"]["world"]["nll"] != comparison["run"]["world"]["nll"]


def test_an_unknown_field_is_refused_before_anything_is_written(trained, tmp_path, capsys):
    _, run = trained
    assert run_eval("--run", run, "--by", "subject", "--run-dir", tmp_path / "e") == 2
    error = capsys.readouterr().err
    assert "by = subject: no such field of the questions (there are: group, fact, relation" in error
    assert not (tmp_path / "e").exists()


def test_predictions_of_a_run_scored_as_a_file_give_its_numbers(trained, tmp_path, capsys):
    _, run = trained
    file = run / "predictions" / "world.jsonl"
    same = ("--evaluation.resamples", "100")
    argv = ("--predictions", file, "--by", "relation", *same, "--run-dir", tmp_path / "e")
    assert run_eval(*argv) == 0
    assert capsys.readouterr().out.startswith(f"{file}:\n")
    scored, made = read(tmp_path / "e")["world"], read(run)["world"]
    assert scored.pop("by")["relation"]
    del made["gold_nll"]  # rows of a file need not hold log-probabilities
    assert scored == made | {"split": "file"}
    assert "protocol" not in read(tmp_path / "e")["provenance"]


def test_confidences_from_elsewhere_are_scored_without_a_model(tmp_path, capsys):
    file = tmp_path / "api.jsonl"
    rows = [{"confidence": 0.9, "correct": i % 3 > 0, "lang": "de"} for i in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert run_eval("--predictions", file, "--by", "lang", "--run-dir", tmp_path / "e") == 0
    assert "Brier and NLL of the forecast that an answer is right" in capsys.readouterr().out
    metrics = read(tmp_path / "e")["api"]
    assert metrics["ece"] == pytest.approx(0.9 - 2 / 3)
    assert metrics["by"]["lang"]["de"]["ece"] == metrics["ece"]
    file.write_text(file.read_text() + '\n{"confidence": NaN, "correct": true}')
    assert run_eval("--predictions", file, "--run-dir", tmp_path / "f") == 2
    assert "api.jsonl:31: confidence is nan" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
