from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.models import generate as module
from cogcalib_jax.models.config import RopeConfig
from cogcalib_jax.models.generate import SamplingConfig, generate, keep_top_p
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import SMALL, forward, one_device, small_decoder

PROMPTS = [[5, 9, 30, 4, 22, 8, 17], [11], [7, 7, 3, 21]]
ENDLESS = replace(SMALL, eos_token_id=None)


@pytest.fixture(scope="module")
def decoder():
    return small_decoder(ENDLESS)


@pytest.fixture(scope="module")
def generated(decoder):
    return generate(decoder, PROMPTS, SamplingConfig(10))


def without_cache(decoder, prompt, steps):
    """Greedy tokens and their log-probabilities from full forward passes."""
    ids, logprobs = list(prompt), []
    for _ in range(steps):
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(ids)] = ids
        lengths = np.array([len(ids)], np.int32)
        row = np.asarray(forward(decoder, padded, lengths=lengths)[1][0, len(ids) - 1], np.float64)
        row -= np.log(np.exp(row - row.max()).sum()) + row.max()
        ids.append(int(row.argmax()))
        logprobs.append(row.max())
    return ids[len(prompt) :], logprobs


def test_the_cache_changes_neither_tokens_nor_logprobs(decoder, generated):
    for prompt, one in zip(PROMPTS, generated, strict=True):
        tokens, logprobs = without_cache(decoder, prompt, 10)
        assert list(one.tokens) == tokens
        np.testing.assert_allclose(one.logprobs, logprobs, atol=1e-4)


def test_prompts_do_not_change_each_other(decoder, generated):
    (alone,) = generate(decoder, PROMPTS[2:], SamplingConfig(10))
    assert alone.tokens == generated[2].tokens


def test_generation_is_the_same_on_every_mesh(generated):
    spread = small_decoder(ENDLESS, mesh=make_mesh(MeshConfig(2, 2, 2)))
    for one, many in zip(generated, generate(spread, PROMPTS, SamplingConfig(10)), strict=True):
        assert one.tokens == many.tokens


def test_a_row_ends_with_the_end_of_text_and_the_others_go_on(decoder, generated):
    # Whatever the first row says third becomes the end of text.
    stop = generated[0].tokens[2]
    config = replace(ENDLESS, eos_token_id=(0, stop))
    stopping = generate(small_decoder(config), PROMPTS, SamplingConfig(10))
    for free, stopped in zip(generated, stopping, strict=True):
        ends = [i for i, token in enumerate(free.tokens) if token in (0, stop)]
        assert stopped.tokens == free.tokens[: ends[0] + 1 if ends else 10]
        assert len(stopped.logprobs) == len(stopped.tokens)
    assert len(stopping[0].tokens) <= 3


@pytest.mark.parametrize("absent", [-1, SMALL.vocab_size, (-1, 10**6)])
def test_an_end_of_text_that_is_no_token_ends_nothing(decoder, generated, absent):
    again = generate(
        small_decoder(replace(SMALL, eos_token_id=absent)), PROMPTS, SamplingConfig(10)
    )
    assert [one.tokens for one in again] == [one.tokens for one in generated]


def test_any_token_may_be_named_a_stop_without_compiling_again(decoder, generated):
    compiled = module._generate._cache_size()
    for stop in ({generated[0].tokens[2]}, {generated[0].tokens[1], generated[2].tokens[4]}):
        stopped = generate(decoder, PROMPTS, SamplingConfig(10), stop=stop)
        for free, one in zip(generated, stopped, strict=True):
            ends = [i for i, token in enumerate(free.tokens) if token in stop]
            assert one.tokens == free.tokens[: ends[0] + 1 if ends else 10]
    assert module._generate._cache_size() == compiled


def test_new_lora_parameters_do_not_compile_again():
    """As an evaluation has them: a decoder taken apart, put together again for each adapter."""
    made = small_decoder(ENDLESS, lora=LoraConfig(r=2, target_modules=("q_proj", "lm_head")))
    graphdef, lora, frozen = nnx.split(made, nnx.LoRAParam, ...)

    def tokens(lora):
        merged = nnx.merge(graphdef, lora, frozen)
        return [one.tokens for one in generate(merged, PROMPTS, SamplingConfig(10))]

    first = tokens(lora)
    compiled = module._generate._cache_size()
    # Where a training step leaves them.
    other = jax.tree.map(lambda x: jax.device_put(-2 * np.asarray(x), x.sharding), lora)
    assert tokens(other) != first
    assert tokens(lora) == first
    assert module._generate._cache_size() == compiled


def test_padding_changes_nothing_and_lets_calls_share_a_compilation(decoder, generated):
    padded = [
        generate(decoder, prompts, SamplingConfig(10), pad_to=(4, 24))
        for prompts in (PROMPTS, PROMPTS[:1])
    ]
    compiled = module._generate._cache_size()
    padded.append(generate(decoder, [[9] * 24], SamplingConfig(10), pad_to=(4, 24)))
    assert module._generate._cache_size() == compiled
    assert [one.tokens for one in padded[0]] == [one.tokens for one in generated]
    assert padded[1][0].tokens == generated[0].tokens


def test_a_text_that_would_cross_to_another_rope_is_refused():
    rope = RopeConfig(
        type="longrope",
        original_max_position_embeddings=9,
        short_factor=(1.0,) * 4,
        long_factor=(4.0,) * 4,
    )
    model = small_decoder(replace(ENDLESS, ropes=(rope,)))
    with pytest.raises(UserError, match="prompt of 7 tokens and 4 new ones exceed the 9 tokens"):
        generate(model, PROMPTS, SamplingConfig(4))
    long = [9] * 10
    for prompt, steps in ((PROMPTS[0], 3), (long, 4)):
        (one,) = generate(model, [prompt], SamplingConfig(steps))
        assert list(one.tokens) == without_cache(model, prompt, steps)[0]


def test_sampling_with_a_tiny_nucleus_is_greedy(decoder, generated):
    sampled = generate(decoder, PROMPTS, SamplingConfig(10, temperature=1.5, top_p=1e-6))
    assert [one.tokens for one in sampled] == [one.tokens for one in generated]
    # Log-probabilities are the model's own, whatever the temperature.
    np.testing.assert_allclose(sampled[0].logprobs, generated[0].logprobs, atol=1e-5)


def test_sampling_follows_the_seed_and_temperature_does_not_recompile(decoder):
    def texts(temperature, seed):
        sampling = SamplingConfig(10, temperature=temperature)
        return [one.tokens for one in generate(decoder, PROMPTS, sampling, seed=seed)]

    first = texts(1.0, 0)
    compiled = module._generate._cache_size()
    assert first == texts(1.0, 0)
    assert first != texts(1.0, 1)
    assert first != texts(3.0, 0)
    assert module._generate._cache_size() == compiled


def test_prompts_of_one_bucket_share_a_compilation(decoder, generated):
    compiled = module._generate._cache_size()
    generate(decoder, [[4] * 12, [5] * 3, [6], [7]], SamplingConfig(10))
    assert module._generate._cache_size() == compiled


def test_sampling_draws_from_the_models_own_distribution(decoder):
    """The first token's frequencies over 4,096 draws against the model's probabilities."""
    draws = generate(decoder, [PROMPTS[0]] * 4096, SamplingConfig(1, temperature=1.0), seed=5)
    counts = np.bincount([one.tokens[0] for one in draws], minlength=SMALL.vocab_size)
    padded = np.zeros((1, 24), np.int32)
    padded[0, : len(PROMPTS[0])] = PROMPTS[0]
    logits = np.asarray(forward(decoder, padded)[1][0, len(PROMPTS[0]) - 1], np.float64)
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    # Five standard errors.
    assert (np.abs(counts / 4096 - wanted) < 5 * np.sqrt(wanted / 4096) + 1e-3).all()


def test_the_nucleus_holds_the_likeliest_tokens_that_reach_p():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.25, 0.15]]))
    for top_p, kept in ((0.4, [1]), (0.6, [1, 2]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert np.flatnonzero(np.isfinite(keep_top_p(logits, top_p))[0]).tolist() == kept


def test_no_prompts_give_nothing(decoder):
    assert generate(decoder, [], SamplingConfig(10)) == []


@pytest.mark.parametrize(
    ("prompts", "says"), [([[1], []], "no tokens"), ([[1] * 60], "context of 64")]
)
def test_prompts_that_cannot_be_continued_are_refused(decoder, prompts, says):
    with pytest.raises(UserError, match=says):
        generate(decoder, prompts, SamplingConfig(10))


def test_a_real_model_tells_its_story(realdata):
    tokenizers = pytest.importorskip("tokenizers")
    folder = realdata / "models" / "stories260K"
    (story,) = generate(load_decoder(folder, mesh=one_device()), [[1]], SamplingConfig(32))
    text = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).decode(story.tokens)
    assert text.startswith("Once upon a time, there was a little girl named Lily")
