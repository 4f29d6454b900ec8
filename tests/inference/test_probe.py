"""The stored question: the one that shows best what a server leaves out."""

import jax
import numpy as np
from flax import nnx

from cogcalib_jax.inference.posthoc import TOLERANCES, choose_probe, reduced_adapter
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.lora import LoraConfig
from tests.inference.encoded_rows import encoded_rows
from tests.models.small import small_decoder


def predictions(logprobs, tokens):
    return Predictions(np.array(logprobs), np.array(tokens), np.zeros(len(tokens), int), "sum")


def lora_of(targets):
    decoder = small_decoder(lora=LoraConfig(r=2, target_modules=targets))
    return nnx.state(decoder, nnx.LoRAParam)


def parts_that_are_zero(state):
    return {path[-2] for path, leaf in nnx.to_flat_state(state) if not np.any(leaf.get_value())}


def test_only_the_heads_part_is_switched_off_where_there_is_one():
    lora = lora_of(("q_proj", "lm_head"))
    assert parts_that_are_zero(reduced_adapter(lora, touches_head=True)) == {"lm_head"}
    assert parts_that_are_zero(lora) == set()


def test_without_a_head_the_whole_adapter_is_switched_off():
    lora = lora_of(("q_proj", "v_proj"))
    assert parts_that_are_zero(reduced_adapter(lora, touches_head=False)) == {"q_proj", "v_proj"}
    shapes = jax.tree.map(lambda leaf: leaf.shape, lora)
    assert (
        jax.tree.map(lambda leaf: leaf.shape, reduced_adapter(lora, touches_head=False)) == shapes
    )


def test_the_question_with_the_largest_difference_a_token_is_chosen():
    rows = encoded_rows([{"question": text} for text in "abc"])
    tokens = [[1, 4], [1, 2], [1, 1]]
    adapted = predictions([[-1.0, -4.0], [-1.0, -2.0], [-3.0, -1.0]], tokens)
    reduced = predictions([[-1.1, -5.2], [-1.0, -1.2], [-3.1, -1.0]], tokens)
    probe = choose_probe(rows, adapted, reduced)
    assert probe["prompt"] == rows[1].prompt
    assert probe["option_logprobs"] == [-1.0, -2.0]
    np.testing.assert_allclose(probe["tolerance"], 0.2)
    assert choose_probe(rows, adapted, adapted)["tolerance"] == TOLERANCES[0]


def test_scores_that_are_no_numbers_make_no_probe():
    rows = encoded_rows([{}])
    broken = predictions([[np.nan, -1.0]], [[1, 1]])
    assert choose_probe(rows, broken, broken) is None
