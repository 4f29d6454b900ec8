"""What a run is put together from fits together, or is refused before any weight is read."""

import json
import re

import pytest

from cogcalib_jax.cli.questions import encode_splits, evaluation_sets
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Example
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.tokenizer import load_base_tokenizer, load_tokenizer
from cogcalib_jax.world.config import WorldConfig
from cogcalib_jax.world.corpus import save_tokenizer
from tests.examples.scored import write_tokenizer
from tests.golden.families import FAMILIES


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, True), (-1, False)])
def test_a_tokenizer_larger_than_the_embedding_is_refused(more, fits, tmp_path):
    rows = write_tokenizer(tmp_path).get_vocab_size() + more
    config = FAMILIES["llama3"] | {"vocab_size": rows}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if fits:
        assert len(load_base_tokenizer(tmp_path)) == rows - more
        return
    with pytest.raises(UserError, match=rf"ids up to {rows:,}, its embedding {rows:,} rows"):
        load_base_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("token", "in_chat", "fits"),
    [
        ({"pad_token": "<pad>"}, False, True),
        ({"additional_special_tokens": ["<spare>"]}, False, True),
        ({"additional_special_tokens": ["[PAD]"]}, False, True),
        ({"additional_special_tokens": ["<spare>"]}, True, False),
        ({"eos_token": "<end>"}, False, False),
    ],
)
def test_an_unused_special_token_needs_no_row_of_the_embedding(token, in_chat, fits, tmp_path):
    """transformers loads such a base, and a row that holds the token has no embedding for it."""
    rows = write_tokenizer(tmp_path).get_vocab_size()
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["llama3"] | {"vocab_size": rows}))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.add_special_tokens(token)
    if in_chat:
        tokenizer.chat_template += "<spare>"
    tokenizer.save_pretrained(tmp_path)
    if not fits:
        with pytest.raises(UserError, match=rf"ids up to {rows:,}, its embedding {rows:,} rows"):
            load_base_tokenizer(tmp_path)
        return
    tokenizer = load_base_tokenizer(tmp_path)
    text = tokenizer.added_tokens_decoder[rows].content
    row = Example(id="1", question=f"What is {text}?", choices=("a", "b"), answer=0)
    config = DataConfig(task="custom", path="unused")
    with pytest.raises(UserError, match=f"special token {re.escape(repr(text))}"):
        encode_split("test", [row], tokenizer, config)


def test_a_config_that_names_data_but_no_base_is_refused():
    with pytest.raises(UserError, match="model.path"):
        RunConfig(data=DataConfig(task="openbookqa"))


WORLD = WorldConfig(
    entities=60,
    train=40,
    test=60,
    validation=24,
    calibration=16,
    style=40,
    other_relations=("employer",),
)


def test_what_a_run_also_answers_stands_beside_its_own_questions(tmp_path):
    save_tokenizer(WORLD, tmp_path, max_length=256)
    tokenizer = load_tokenizer(tmp_path)
    groups = ("world:unseen_template", "world:other_relations")
    config = RunConfig(world=WORLD, also=groups)
    splits = encode_splits(config.data, tokenizer, config.seed, made=config.made)
    sets = evaluation_sets(config, tokenizer, splits["test"])
    assert {name: len(rows) for name, rows in sets.items()} == {
        "world": 45,
        "world:taught_form_b": 30,
        "world:unseen_template": 45,
        "world:other_relations": 15,
    }


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (("nothing",), "must name tasks, each NAME or NAME:GROUP .got 'nothing'"),
        (("mmlu", "mmlu"), "must name each task once"),
        (("world",), "must not name world, which is answered anyway"),
        (("world:taught_form_b",), "must not name world:taught_form_b, which"),
        (("mmlu", "custom"), "cannot name custom: data.path: must name a file"),
    ],
)
def test_what_cannot_be_answered_beside_a_run_is_refused(also, message):
    with pytest.raises(UserError, match=f"also: {message}"):
        RunConfig(also=also)
