"""`train.py` and `eval.py` on one's own questions without choices, from their command lines."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eval as eval_program
import train
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.inference.evaluate import Calibrators
from cogcalib_jax.inference.open_ended import exact_match
from tests.inference.open_rows import NAMES, VOCAB, save
from tests.inference.tiny import TINY, tiny_decoder
from tests.training.small_trainer import lines

PRESET = Path(__file__).resolve().parents[1] / "configs" / "own_questions.yaml"
RAW = {"sequence", "length_normalised", "agreement", "p_true"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    shape = replace(TINY, vocab_size=VOCAB, max_position_embeddings=256)
    save_decoder(tiny_decoder(config=shape, lora=None), folder)
    save(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Few answers to many questions, so that a few updates get some right."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    questions = [
        {"question": f"who is the {a} {b} ?", "answer": [NAMES[i % 2], f"the {NAMES[2 + i % 2]}"]}
        for i, a in enumerate(NAMES)
        for b in NAMES[:9]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return file


def arguments(base: Path, rows: Path, folder: Path, **more: object) -> list[str]:
    options = {
        "model.path": base,
        "data.task": "custom",
        "data.path": rows,
        "run-dir": folder,
        "config": PRESET,
        "lora.r": 4,
        "lora.target_modules": "all-linear",
        "training.epochs": 4,
        "training.batch-size": 8,
        "training.learning-rate": 0.02,
        "training.style-steps": 2,
        "training.log-every": 1,
        "evaluation.resamples": 100,
        "evaluation.open.max-new-tokens": 4,
        "evaluation.open.samples": 2,
        **more,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def comparison(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "run"
    assert run_main(train.main, arguments(base, rows, folder, compare="sft,cols")) == 0
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_comparison_ends_in_answers_confidences_and_a_report(comparison):
    table = read(comparison / "comparison.json")
    assert list(table) == ["base", "sft", "sft_best_epoch", "cols"]
    for method, tasks in table.items():
        metrics = tasks["custom"]
        assert metrics["accuracy"] == metrics["exact_match"] <= metrics["f1"]
        assert method == "base" or 0 < metrics["exact_match"] < 1
        # Of the base nothing is right on the calibration split: nothing can be fitted.
        fitted = set() if method == "base" else {"platt", "isotonic"}
        assert set(metrics["confidences"]) == {*RAW, *fitted}
        answered = lines(comparison / method, "predictions/custom.jsonl")
        assert np.mean([row["exact_match"] for row in answered]) == pytest.approx(
            metrics["exact_match"]
        )
        for row in answered:
            assert row["exact_match"] == exact_match(row["text"], row["answers"])
    page = (comparison / "report.html").read_text()
    assert "exact match" in page and "length-normalised" in page and "isotonic" in page


def test_no_temperature_is_fitted_where_there_are_no_options(comparison):
    calibration = read(comparison / "cols" / "adapter" / "calibration.json")
    assert calibration["temperature"]["value"] is None
    assert "open questions have no options" in calibration["temperature"]["why_none"]
    assert calibration["prompt"]["stop"] == "\n"


def test_the_adapter_carries_the_maps_that_its_numbers_used(comparison):
    stored = read(comparison / "cols" / "adapter" / "calibration.json")["open_answers"]
    maps = Calibrators.from_json(stored["calibrators"]).maps
    assert list(maps) == ["platt", "isotonic"]
    for row in lines(comparison / "cols", "predictions/custom.jsonl"):
        logprob = np.log([row["confidences"]["sequence"]])
        for name, one in maps.items():
            assert row["confidences"][name] == pytest.approx(one(logprob)[0], abs=1e-5)


def test_eval_gives_what_train_measured(comparison, tmp_path, capsys):
    argv = ["--run", str(comparison / "cols"), "--run-dir", str(tmp_path / "eval")]
    assert run_main(eval_program.main, argv) == 0
    shown = capsys.readouterr().out
    assert "exact match" in shown and "F1" in shown
    again, first = (
        read(d / "eval.json")["custom"] for d in (tmp_path / "eval", comparison / "cols")
    )
    assert again == first


def test_a_single_method_with_thresholds_from_generated_answers(base, rows, tmp_path):
    argv = arguments(base, rows, tmp_path / "run", **{"loss.correct": "exact_match"})
    argv += ["--method.name", "cols"]
    argv += ["--training.max-steps", "6", "--evaluation.open.samples", "0"]
    argv += ["--evaluation.open.p-true", "false"]
    assert run_main(train.main, argv) == 0
    metrics = read(tmp_path / "run" / "eval.json")["custom"]
    assert not {"agreement", "p_true"} & set(metrics["confidences"])
    assert lines(tmp_path / "run", phase="refit")


REFUSED = {
    "options space": (
        {"loss.space": "options"},
        "loss.space = options: questions of custom are open",
    ),
    "baselines over options": ({"compare": "sft,ensemble"}, "compare = ensemble: averages"),
    "answers that do not fit": (
        {"evaluation.open.max-new-tokens": 250},
        "exceed the model's context of 256; set --data.max-length to at most 6, which cuts long"
        " passages, or lower --evaluation.open.max-new-tokens",
    ),
    "a prompt with options": ({"data.prompt": "letters"}, "--data.prompt qa"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_meaning_for_open_questions_is_refused(why, base, rows, tmp_path, capsys):
    options, says = REFUSED[why]
    assert run_main(train.main, arguments(base, rows, tmp_path / "run", **options)) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ") and says in told[-1]
    assert not (tmp_path / "run").exists()
