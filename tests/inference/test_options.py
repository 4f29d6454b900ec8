"""Packed questions score like every option's own text, whatever the model, the mesh and the row."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.data.batching import eval_batches
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.packing import pack, packed_batches
from cogcalib_jax.inference.forward import completion_logprob
from cogcalib_jax.inference.predict import SplitPass, packed_logprobs
from cogcalib_jax.models.config import RopeConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, batch_parts, make_mesh
from tests.inference.tiny import TINY, VOCAB, option_logprob, questions, tiny_decoder
from tests.models.small import FUSED, OTHER, SMALL, one_device

ROWS = questions(14, tokens=4)
# Three worked examples before every question, longer than the windows below.
SHOTS = tuple(np.random.default_rng(1).integers(3, VOCAB, 9).tolist())
FEW_SHOT = EncodedSplit(replace(e, prompt_ids=SHOTS + e.prompt_ids) for e in ROWS[:6])
EVERYWHERE = LoraConfig(r=2, lora_alpha=3.0, target_modules=("all-linear", "lm_head"))
# Biases, norms of queries and keys, and a window in one layer of two.
FLAGS = replace(SMALL, vocab_size=VOCAB)
MODELS = {
    "llama": (TINY, EVERYWHERE),
    "windows, biases, qk_norm": (FLAGS, EVERYWHERE),
    "norms, factors and caps": (replace(OTHER, vocab_size=VOCAB), EVERYWHERE),
    "tied, windows everywhere": (
        replace(FLAGS, tie_word_embeddings=True, sliding_windows=(4, 4), qk_norm="none"),
        LoraConfig(target_modules=("v_proj",)),
    ),
    "yarn": (
        replace(
            TINY, ropes=(RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=8),)
        ),
        EVERYWHERE,
    ),
    "fused, half of each head rotated, queries scaled": (
        replace(FUSED, vocab_size=VOCAB),
        EVERYWHERE,
    ),
    "RoPE in one layer": (
        replace(TINY, ropes=(RopeConfig(theta=20.0),), layer_ropes=(-1, 0)),
        EVERYWHERE,
    ),
}


def scores(decoder, rows, mesh=None, temperature=1.0, batch_size=4):
    """[question, option], NaN where there is none; a last axis of temperatures if there are
    several."""
    mesh = mesh or one_device()
    model, lora = split_model(decoder)
    run = SplitPass(model, mesh, packed_logprobs)
    order, values = run(lora, packed_batches(rows, batch_size, batch_parts(mesh)), temperature)
    options = max(len(e.completions) for e in rows)
    got = np.full((len(rows), options, *values.shape[2:]), np.nan)
    for row, own in zip(order, values, strict=True):
        n = len(rows[row].completions)
        got[row, :n] = own[:n]
    return got


def expected(decoder, rows, temperature=1.0):
    wanted = np.full((len(rows), max(len(e.completions) for e in rows)), np.nan)
    for i, e in enumerate(rows):
        for k in range(len(e.completions)):
            wanted[i, k] = option_logprob(decoder, e, k, temperature)
    return wanted


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_those_of_every_options_own_text(name):
    config, lora = MODELS[name]
    decoder = tiny_decoder(config=config, lora=lora)
    assert max(map(len, pack(ROWS).rows)) > 1
    np.testing.assert_allclose(scores(decoder, ROWS), expected(decoder, ROWS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "windows, biases, qk_norm"])
def test_a_beginning_of_all_prompts_is_seen_by_all(name):
    config, lora = MODELS[name]
    decoder = tiny_decoder(config=config, lora=lora)
    assert pack(FEW_SHOT).shared >= len(SHOTS)
    wanted = expected(decoder, FEW_SHOT, 1.7)
    np.testing.assert_allclose(scores(decoder, FEW_SHOT, None, 1.7), wanted, rtol=0, atol=1e-4)


def test_single_tokens_and_a_fresh_row_for_each_question_change_nothing():
    single = questions(9)
    decoder = tiny_decoder()
    alone = np.concatenate([scores(decoder, EncodedSplit([e])) for e in single[:3:3]])
    together = scores(decoder, single)
    np.testing.assert_allclose(together, expected(decoder, single), rtol=0, atol=1e-4)
    np.testing.assert_allclose(together[:1, :3], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_scores_do_not_depend_on_the_mesh(mesh):
    config, lora = MODELS["windows, biases, qk_norm"]
    mesh = make_mesh(MeshConfig(*mesh))
    spread = tiny_decoder(config=config, lora=lora, mesh=mesh)
    one = scores(tiny_decoder(config=config, lora=lora), ROWS)
    np.testing.assert_allclose(scores(spread, ROWS, mesh), one, rtol=0, atol=1e-4)


def test_a_split_compiles_once_and_again_only_for_another_shape():
    decoder = tiny_decoder()
    model, lora = split_model(decoder)
    run = SplitPass(model, one_device(), packed_logprobs)
    many = questions(60, tokens=3)
    assert len(list(packed_batches(many, 2))) > 2
    other = jax.tree.map(lambda x: jax.device_put(2 * x, x.sharding), lora)
    for parameters, temperature in [(lora, 1.0), (other, 1.5)]:
        run(parameters, packed_batches(many, 2), temperature)
        assert run.compiled_shapes == 1
    run(lora, packed_batches(questions(3, tokens=3, longest=120), 2), 1.0)
    assert run.compiled_shapes == 2


def test_a_temperature_divides_the_logits_and_not_what_bfloat16_holds_of_them():
    decoder = Decoder(TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    decoder.lm_head.weight[...] = decoder.lm_head.weight[...] * 100
    encoded = questions(8)
    (batch,) = eval_batches(encoded, 8, (encoded.lengths.max(),))
    hidden = decoder.hidden_states(batch.input_ids, lengths=batch.lengths)
    hidden = jnp.take_along_axis(hidden, batch.positions[:, :, None], axis=1)
    logprobs = jax.nn.log_softmax(decoder.logits(hidden) / 1.7)
    wanted = jnp.take_along_axis(logprobs, batch.targets[..., None], -1)[..., 0] * batch.loss_mask
    got = completion_logprob(decoder, batch, 1.7)
    np.testing.assert_allclose(got, wanted.sum(-1), atol=1e-4)


def test_several_temperatures_share_one_pass_and_change_nothing():
    decoder = tiny_decoder()
    together = scores(decoder, ROWS, temperature=np.array([1.0, 1.7, 0.5], np.float32))
    for i, temperature in enumerate((1.0, 1.7, 0.5)):
        alone = expected(decoder, ROWS, temperature)
        np.testing.assert_allclose(together[..., i], alone, rtol=0, atol=1e-4)
