"""The transformers example, which imports nothing of ours, gives our option probabilities."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.examples.scored import example, scored  # noqa: E402

score_with_transformers = example("score_with_transformers")


@pytest.mark.parametrize(
    ("prompt", "option_score", "few_shot"),
    [("letters", "sum", 1), ("cloze", "sum", 0), ("cloze", "mean", 0), ("chat", "sum", 1)],
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
        assert line["prediction"] == row.example.choices[int(np.argmax(expected))]


def test_the_example_needs_nothing_of_ours():
    tree = ast.parse(Path(score_with_transformers.__file__).read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"argparse", "json", "pathlib", "string", "torch", "peft", "transformers"}
