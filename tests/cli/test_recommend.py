"""The recommended adapter: chosen by validation NLL, the simplest of equals."""

import json

import numpy as np
import pytest

from cogcalib_jax.cli.train import choose_adapter, simplest_first
from cogcalib_jax.errors import UserError

RNG = np.random.default_rng(0)
HARD = RNG.exponential(size=300)
"""nats: what makes a question hard is the same for all methods"""


def write(run, **shifts):
    """`validation.jsonl` of folders whose mean NLL differs by `shifts`, with noise of .05."""
    for key, shift in shifts.items():
        (run / key).mkdir()
        noise = RNG.normal(0, 0.05, len(HARD))
        rows = HARD + shift + noise - noise.mean()
        (run / key / "validation.jsonl").write_text(
            "".join(json.dumps({"id": str(i), "nll": x}) + "\n" for i, x in enumerate(rows))
        )


def test_the_lowest_validation_nll_is_recommended(tmp_path):
    write(tmp_path, base=1.0, commonest_answer=2.0, sft=0.3, cols=0.1, ls=0.2)
    chosen = choose_adapter(tmp_path, ["sft", "ls", "cols"])
    assert (chosen["method"], chosen["equal_to_best"], chosen["n"]) == ("cols", ["cols"], 300)
    assert chosen["not_better_than"] == []
    expected = {"sft": 0.3, "ls": 0.2, "cols": 0.1, "base": 1.0, "commonest_answer": 2.0}
    means = {key: value - HARD.mean() for key, value in chosen["validation_nll"].items()}
    assert means == pytest.approx(expected)


def test_of_those_that_cannot_be_told_apart_the_simplest_is_taken(tmp_path):
    write(tmp_path, base=1.0, commonest_answer=2.0, sft_best_epoch=0.001, sft=0.2, cols=0.0)
    chosen = choose_adapter(tmp_path, ["sft_best_epoch", "sft", "cols"])
    assert chosen["method"] == "sft_best_epoch"
    assert chosen["equal_to_best"] == ["sft_best_epoch", "cols"]


def test_a_reference_that_is_not_beaten_is_named(tmp_path):
    write(tmp_path, base=0.001, commonest_answer=-0.5, sft=0.0)
    assert choose_adapter(tmp_path, ["sft"])["not_better_than"] == ["base", "commonest_answer"]


def test_a_run_of_one_method_has_itself_alone(tmp_path):
    write(tmp_path, base=1.0)
    (tmp_path / "base" / "validation.jsonl").replace(tmp_path / "validation.jsonl")
    assert choose_adapter(tmp_path, ["."])["method"] == "."


def test_ties_are_decided_for_the_best_epoch_then_sft_then_as_they_were_named():
    rows = ["base", "commonest_answer", "ls", "ls_temperature", "sft", "sft_temperature"]
    rows += ["sft_best_epoch", "sft_best_epoch_temperature", "cols", "cols_temperature"]
    assert simplest_first(rows) == ["sft_best_epoch", "sft", "ls", "cols"]


@pytest.mark.parametrize("line", ["{", "{}", "[1]", '{"nll": "low"}'])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, line):
    write(tmp_path, sft=0.0)
    (tmp_path / "sft" / "validation.jsonl").write_text(line)
    with pytest.raises(UserError, match=r"validation\.jsonl: damaged .*resume the run"):
        choose_adapter(tmp_path, ["sft"])
