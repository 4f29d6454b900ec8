"""A run of a published set-up: eval.json says whose it is."""

import json

import pytest

from cogcalib_jax.cli.results import write_results
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Example
from tests.data.chats import chat_tokenizer
from tests.examples.scored import scored


@pytest.mark.parametrize("protocol", ["clean", "laplace_lora"])
def test_encoded_questions_carry_their_protocol(protocol):
    row = Example("x", "Which?", ("a", "b", "c", "d"), 0)
    config = DataConfig(task="arc_easy", protocol=protocol)
    encoded, _ = encode_split("test", [row], chat_tokenizer(None), config)
    assert encoded.protocol == protocol


def test_provenance_names_the_protocol_of_the_questions(tmp_path):
    run = scored(tmp_path / "run", "letters", "sum")
    run.encoded.protocol = "laplace_lora"
    write_results(
        tmp_path,
        {"custom": run.encoded},
        lambda _: run.predictions,
        run.config.evaluation,
        0,
        "x",
        model="base",
    )
    assert json.loads((tmp_path / "eval.json").read_text())["provenance"]["protocol"] == (
        "laplace_lora"
    )
