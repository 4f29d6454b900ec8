"""What is said of rows before training, counted by hand."""

import pytest

from cogcalib_jax.cli.data_report import cut_rows
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Example
from cogcalib_jax.hf.tokenizer import load_tokenizer
from cogcalib_jax.world.corpus import save_tokenizer, tokenizer_in_memory
from tests.cli.small_base import WORLD

PLAYS = ("banjo", "cello", "drums", "flute")


def ask(question, answer=0, choices=PLAYS, **more):
    return Example(id=question, question=question, choices=choices, answer=answer, **more)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_in_memory(WORLD, 64)


def test_the_worlds_tokenizer_without_files_is_the_stored_one(tokenizer, tmp_path):
    save_tokenizer(WORLD, tmp_path, 64)
    stored = load_tokenizer(tmp_path)
    text = "question where was Ada born ? answer lisbon"
    assert tokenizer(text)["input_ids"] == stored(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == stored.decode(
        stored(text)["input_ids"]
    )
    assert tokenizer.get_vocab() == stored.get_vocab()
    assert (tokenizer.model_max_length, tokenizer.padding_side, tokenizer.eos_token) == (
        stored.model_max_length,
        stored.padding_side,
        stored.eos_token,
    )


def encode(rows, tokenizer, **fields):
    config = DataConfig(task="custom", path="rows", prompt="cloze", **fields)
    return encode_split("test", rows, tokenizer, config)[0], config


def test_a_cut_passage_is_found(tokenizer):
    """14 tokens hold BOS, three words of the question, the answer, "..." and eight of passage: with
    four of them on either side, "lisbon" to "lima" and "harp" to "violin"."""
    passage = (
        "lisbon oslo cairo lima kyoto quebec nairobi perth banjo cello drums flute harp piano"
        " trumpet violin"
    )
    split, _ = encode(
        [ask("Ada plays the", passage=passage), ask("Boris plays the", passage="lima")],
        tokenizer,
        max_length=14,
    )
    assert [row.id for row in cut_rows(split)] == ["Ada plays the"]
