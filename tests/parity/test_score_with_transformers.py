"""The transformers example, which imports nothing of ours, gives our option probabilities."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from cogcalib_jax.inference.predict import Predictor  # noqa: E402
from cogcalib_jax.models.parameters import split_model  # noqa: E402
from tests.examples.scored import example, scored  # noqa: E402
from tests.models.small import one_device  # noqa: E402

score_with_transformers = example("score_with_transformers")


@pytest.mark.parametrize(
    ("prompt", "option_score", "few_shot"),
    [("letters", "mean", 1), ("cloze", "sum", 0), ("cloze", "mean", 0), ("chat", "chars", 1)],
)
def test_the_example_gives_our_option_probabilities(
    prompt, option_score, few_shot, tmp_path, capsys
):
    run = scored(tmp_path, prompt, option_score, few_shot=few_shot)
    adapter, questions = tmp_path / "adapter", tmp_path / "questions.jsonl"
    score_with_transformers.main(["--adapter", str(adapter), "--questions", str(questions)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    temperature = json.loads((adapter / "calibration.json").read_text())["temperature"]["value"]
    for line, row, expected in zip(lines, run.encoded, run.predictions.probs, strict=True):
        k = len(row.completions)
        np.testing.assert_allclose(line["option_probs"], expected[:k], atol=1e-4)
        powered = expected[:k] ** (1 / temperature)
        np.testing.assert_allclose(line["tempered_probs"], powered / powered.sum(), atol=1e-4)
        np.testing.assert_allclose(line["calibrated_probs"], line["tempered_probs"], atol=1e-9)
        assert line["prediction"] == row.example.choices[int(np.argmax(expected))]


@pytest.mark.parametrize("rule", ["chars", "pmi"])
def test_the_example_scores_by_another_rule_without_its_temperature(rule, tmp_path, capsys):
    run = scored(tmp_path, "cloze", "mean")
    command = ["--adapter", tmp_path / "adapter", "--questions", tmp_path / "questions.jsonl"]
    score_with_transformers.main([*map(str, command), "--option-score", rule])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model, lora = split_model(run.decoder)
    predictor = Predictor(model, one_device(), run.config.evaluation, rule)
    for line, expected in zip(lines, predictor(lora, run.encoded).probs, strict=True):
        k = len(line["option_probs"])
        np.testing.assert_allclose(line["option_probs"], expected[:k], atol=1e-4)
        assert line["tempered_probs"] is None and line["calibrated_probs"] is None


def as_older_runs_wrote_it(adapter):
    file = adapter / "calibration.json"
    content = json.loads(file.read_text())
    assert content.pop("option_score") == "mean"
    del content["pmi_prefix_ids"]
    file.write_text(json.dumps(content | {"normalisation": "token_mean"}))


def test_the_example_reads_the_files_of_older_runs(tmp_path, capsys):
    run = scored(tmp_path, "cloze", "mean")
    as_older_runs_wrote_it(tmp_path / "adapter")
    command = ["--adapter", tmp_path / "adapter", "--questions", tmp_path / "questions.jsonl"]
    score_with_transformers.main([*map(str, command)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, expected in zip(lines, run.predictions.probs, strict=True):
        k = len(line["option_probs"])
        np.testing.assert_allclose(line["option_probs"], expected[:k], atol=1e-4)
    with pytest.raises(SystemExit):
        score_with_transformers.main([*map(str, command), "--option-score", "pmi"])
    assert "has no pmi_prefix_ids" in capsys.readouterr().err


def test_the_example_needs_nothing_of_ours():
    tree = ast.parse(Path(score_with_transformers.__file__).read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    standard = {"argparse", "json", "math", "pathlib", "string"}
    assert imported == standard | {"torch", "peft", "transformers"}
