"""Programs use the tokenizer that an adapter brings: training, evaluation and merging."""

import json
import shutil

import numpy as np
import pytest

import eval as eval_program
import train
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.merge import main as merge
from cogcalib_jax.hf.tokenizer import tokenizer_files, tokenizer_key
from tests.examples.scored import CHAT, QUESTIONS, scored

OWN = CHAT.replace("<assistant>", "[assistant]").replace(
    "<{{ message.role }}>", "[{{ message.role }}]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, own/ with a chat template of its own, plain/ without, and rows/."""
    made = scored(tmp_path_factory.mktemp("made") / "run", "chat", "sum").folder
    shutil.copytree(made / "adapter", made / "plain")
    shutil.copytree(made / "adapter", made / "own")
    (made / "own" / "chat_template.jinja").write_text(OWN)
    rows = [row | {"answer": i % 2} for i, row in enumerate(QUESTIONS * 12)]
    for i, row in enumerate(rows):
        row["question"] += f" No. {i}"
    (made / "rows").mkdir()
    lines = [json.dumps(row) + "\n" for row in rows]
    (made / "rows" / "train.jsonl").write_text("".join(lines[4:]))
    (made / "rows" / "test.jsonl").write_text("".join(lines[:4]))
    return made


def questions(folder):
    return [
        *("--model.path", str(folder / "base"), "--data.task", "custom"),
        *("--data.path", str(folder / "rows"), "--data.prompt", "chat"),
    ]


def test_an_evaluation_asks_each_adapter_in_its_own_chat_format(folder, tmp_path, capsys):
    adapters = ("none", str(folder / "plain"), str(folder / "own"))
    argv = [*questions(folder), "--adapter", *adapters, "--run-dir", str(tmp_path / "e")]
    assert run_main(eval_program.main, argv) == 0
    assert "note: the chat template is that of the adapter" in capsys.readouterr().err
    prompts = {}
    for name in ("base", "plain", "own"):
        with (tmp_path / "e" / name / "predictions" / "custom.jsonl").open() as file:
            prompts[name] = json.loads(file.readline())["prompt"]
    assert prompts["base"] == prompts["plain"]
    assert prompts["base"].startswith("<s><user>\n") and prompts["base"].endswith("<assistant>\n")
    assert prompts["own"].startswith("<s>[user]\n")
    assert prompts["own"].endswith("[assistant]\n")


def test_a_run_from_it_is_asked_so_and_keeps_the_tokenizer(folder, tmp_path, capsys):
    argv = [
        *questions(folder),
        *("--adapter", str(folder / "own"), "--run-dir", str(tmp_path / "run")),
        *("--method.name", "sft", "--training.max-steps", "1", "--training.style-steps", "0"),
        *("--training.batch-size", "8", "--training.probe-rows", "0"),
    ]
    assert run_main(train.main, [*argv, "--dry-run", "true"]) == 0
    assert "[assistant]" in capsys.readouterr().out
    assert run_main(train.main, argv) == 0
    written = tmp_path / "run" / "adapter"
    assert (written / "chat_template.jinja").read_text() == OWN
    base, own = folder / "base", folder / "own"
    assert tokenizer_files(written).keys() > tokenizer_files(own).keys()
    assert tokenizer_key(base, written) == tokenizer_key(base, own) != ""
    calibration = json.loads((written / "calibration.json").read_text())
    assert calibration["prompt"]["end"].endswith("[assistant]\n")
    assert calibration["probe"]["prompt"].startswith("<s>[user]\n")
    argv = ["--run", str(tmp_path / "run"), "--run-dir", str(tmp_path / "again")]
    assert run_main(eval_program.main, argv) == 0
    name = "predictions/custom.jsonl"
    first, again = (
        [json.loads(line) for line in (tmp_path / run / name).open()] for run in ("run", "again")
    )
    assert [row["prompt"] for row in again] == [row["prompt"] for row in first]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one["option_logprobs"], other["option_logprobs"], atol=1e-4)


def test_a_merged_model_has_it(folder, tmp_path, capsys):
    argv = ["--model.path", str(folder / "base"), "--adapter", str(folder / "own")]
    assert run_main(merge, [*argv, "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == OWN
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert "note: the chat template is that of the adapter" in capsys.readouterr().err


def test_one_that_contradicts_the_bases_is_refused_everywhere(folder, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "plain", adapter)
    content = json.loads((folder / "base" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    before = sorted(tmp_path.iterdir())
    start = ["--adapter", str(adapter)]
    base = ["--model.path", str(folder / "base")]
    for program, argv in (
        (train.main, [*questions(folder), *start, "--run-dir", str(tmp_path / "run")]),
        (eval_program.main, [*questions(folder), *start, "--run-dir", str(tmp_path / "run")]),
        (merge, [*base, *start, "--out", str(tmp_path / "run")]),
    ):
        assert run_main(program, argv) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"error: {adapter}: its tokenizer contradicts the base's (token 'a'")
        assert sorted(tmp_path.iterdir()) == before
