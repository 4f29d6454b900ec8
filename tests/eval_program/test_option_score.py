"""A comparison with options of several tokens chooses its rule, and every reader follows it."""

import json

import numpy as np
import pytest
import yaml

import train as train_program
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.models.config import DecoderConfig
from tests.eval_program.programs import lines, read, run_eval
from tests.examples.scored import write_tokenizer
from tests.models.small import small_decoder

RULES = ("mean", "sum", "chars")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A base, and a comparison over it whose config says `option_score: auto`."""
    folder = tmp_path_factory.mktemp("chosen")
    base, rows = folder / "base", folder / "rows"
    base.mkdir()
    rows.mkdir()
    shape = DecoderConfig(
        model_type="llama",
        vocab_size=write_tokenizer(base).get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_layers=1,
        num_heads=4,
        kv_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    save_decoder(small_decoder(shape), folder / "w")
    for file in (folder / "w").iterdir():
        file.rename(base / file.name)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), 1 + i % 7)) + str(i) for i in range(120)]
    made = [
        {
            "question": f"Which {i}?",
            "choices": rng.choice(words, 3, False).tolist(),
            "answer": i % 3,
        }
        for i in range(120)
    ]
    for name, part in (("train", made[:90]), ("test", made[90:])):
        (rows / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    (folder / "empty.yaml").write_text("")
    options = {
        "config": folder / "empty.yaml", "model.path": base, "data.path": rows,
        "data.task": "custom", "data.prompt": "cloze", "compare": "sft", "run-dir": folder / "run",
        "option-score": "auto", "lora.r": 2, "training.max-steps": 2,
        "training.style-steps": 0, "training.probe-rows": 0, "training.batch-size": 8,
        "evaluation.resamples": 100,
    }  # fmt: skip
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    assert run_main(train_program.main, argv) == 0
    return base, folder / "run"


def test_all_methods_use_the_rule_that_was_chosen_on_the_start(chosen):
    _, run = chosen
    choice = json.loads((run / "option_score.json").read_text())
    rule = choice["option_score"]
    assert rule in RULES and set(choice["tried"]) == set(RULES)
    assert yaml.safe_load((run / "config.yaml").read_text())["option_score"] == "auto"
    assert yaml.safe_load((run / "sft" / "config.yaml").read_text())["option_score"] == rule
    stored = json.loads((run / "sft" / "adapter" / "calibration.json").read_text())
    assert stored["option_score"] == rule and stored["pmi_prefix_ids"] == [0]
    methods = json.loads((run / "comparison.json").read_text())
    del methods["commonest_answer"]  # a constant prediction has no rule
    for method in methods.values():
        assert method["custom"]["option_score"] == rule
        assert method["custom"]["single_token_options"] is False


def test_an_evaluation_of_the_run_uses_it_and_a_table_names_it(chosen, tmp_path, capsys):
    _, run = chosen
    assert run_eval("--run", run / "sft", "--run-dir", tmp_path / "again") == 0
    told, again = read(run / "sft")["custom"], read(tmp_path / "again")["custom"]
    assert again["option_score"] == told["option_score"]
    assert again["nll"] == pytest.approx(told["nll"], abs=1e-4)
    assert capsys.readouterr().out.count("Options are scored by their") == 1


def test_an_evaluation_by_pmi_can_be_recomputed_from_the_ids_it_stores(chosen, tmp_path):
    base, run = chosen
    asked = ("--run", run / "sft", "--option-score")
    assert run_eval(*asked, "pmi", "--run-dir", tmp_path / "pmi") == 0
    assert run_eval(*asked, "sum", "--run-dir", tmp_path / "sum") == 0
    assert read(tmp_path / "pmi")["custom"]["pmi_prefix_ids"] == [0]
    priors = {}
    rows = lines(tmp_path / "pmi/predictions/custom.jsonl")
    sums = lines(tmp_path / "sum/predictions/custom.jsonl")
    for row, other in zip(rows, sums, strict=True):
        np.testing.assert_allclose(row["option_logprobs"], other["option_scores"], atol=1e-4)
        difference = np.subtract(row["option_logprobs"], row["option_scores"])
        for option, prior in zip(row["completions"], difference, strict=True):
            # What is subtracted depends on the option alone, not on its question.
            assert priors.setdefault(option, prior) == pytest.approx(prior, abs=1e-4)
    assert len(set(np.round(list(priors.values()), 3))) > 10


def test_other_rules_than_the_adapters_find_no_temperature(chosen, tmp_path, capsys):
    base, run = chosen
    rule = read(run / "sft")["custom"]["option_score"]
    other = next(name for name in RULES if name != rule)
    (tmp_path / "mine.jsonl").write_text('{"question": "Which?", "choices": ["a1", "bcd2"]}\n')
    ask = ("--run", run / "sft", "--predict", tmp_path / "mine.jsonl", "--out")
    assert run_eval(*ask, tmp_path / "a", "--option-score", other) == 0
    assert f"no fitted temperature for option_score {other}" in capsys.readouterr().err
    (answer,) = lines(tmp_path / "a")
    assert answer["confidence"] == answer["raw_confidence"]


def test_scores_of_a_predictions_file_name_their_rule(chosen, tmp_path, capsys):
    _, run = chosen
    file = run / "sft" / "predictions" / "custom.jsonl"
    assert run_eval("--predictions", file, "--run-dir", tmp_path / "file") == 0
    found, told = read(tmp_path / "file")["custom"], read(run / "sft")["custom"]
    for name in ("option_score", "single_token_options"):
        assert found[name] == told[name]
    assert found["nll"] == pytest.approx(told["nll"])
    assert "Options are scored by their" in capsys.readouterr().out
