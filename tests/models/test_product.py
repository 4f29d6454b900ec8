"""A bfloat16 base on a CPU: rounded products, float32 activations, no float32 copy of the base."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.hf.files import open_folder
from cogcalib_jax.hf.weights import load_decoder, save_decoder
from cogcalib_jax.models.config import (
    DecoderConfig,
    LoraConfig,
    ModelConfig,
    cpu_multiplies_bfloat16,
)
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import merge_lora, random_decoder
from cogcalib_jax.models.product import from_bits, held_as_bits, product, to_bits
from cogcalib_jax.sharding import MeshConfig, make_mesh

CONFIG = DecoderConfig(
    model_type="llama",
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    kv_heads=2,
    head_dim=6,
)


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("in_bits", [False, True])
def test_a_product_rounds_its_operands_and_nothing_else(in_bits):
    rng = np.random.default_rng(0)
    x, slope = rng.normal(size=(2, 3, 24)), rng.normal(size=(2, 3, 40))
    weight = rng.normal(size=(40, 24)).astype(ml_dtypes.bfloat16)
    given = to_bits(jnp.asarray(weight)) if in_bits else jnp.asarray(weight)
    y, transpose = jax.vjp(lambda x: product(x, given), jnp.asarray(x, jnp.float32))
    assert y.dtype == jnp.float32
    exact = weight.astype(np.float64)
    np.testing.assert_allclose(y, rounded(x) @ exact.T, rtol=1e-5, atol=1e-5)
    (of_x,) = transpose(jnp.asarray(slope, jnp.float32))
    assert of_x.dtype == jnp.float32
    np.testing.assert_allclose(of_x, rounded(slope) @ exact, rtol=1e-5, atol=1e-5)


def test_bits_are_read_back_as_the_same_numbers():
    weight = jax.random.normal(jax.random.key(0), (5, 7), jnp.bfloat16)
    assert np.array_equal(from_bits(to_bits(weight)), weight)
    assert to_bits(weight).dtype == jnp.uint16


def decoder(dtype, seed: int = 0) -> Decoder:
    lora = LoraConfig(target_modules=("q_proj", "lm_head"))
    return Decoder(CONFIG, lora=lora, dtype=dtype, rngs=nnx.Rngs(seed))


def test_a_bfloat16_decoder_has_float32_activations_and_is_close_to_float32():
    wide, narrow = decoder(jnp.float32), decoder(jnp.bfloat16)
    # The same weights, which bfloat16 holds exactly.
    state = jax.tree.map(lambda x: from_bits(x).astype(jnp.float32), nnx.state(narrow))
    nnx.update(wide, state)
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 61)
    hidden, expected = narrow.hidden_states(ids), wide.hidden_states(ids)
    assert hidden.dtype == narrow.empty_cache(1, 4).keys.dtype == jnp.float32
    # Rounding to 8 bits at each product: 2^-9 relative, in three layers.
    np.testing.assert_allclose(hidden, expected, atol=0.05)
    assert np.abs(hidden - expected).max() > 0


def test_a_function_of_held_arrays_has_its_gradient_where_they_are_rounded():
    rng = np.random.default_rng(0)
    x, y, slope = (jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in range(3))

    def function(x, y):
        return jnp.sin(x) * y

    value, transpose = jax.vjp(lambda *given: held_as_bits(function, *given), x, y)
    assert np.array_equal(value, function(x, y))
    near = [jnp.asarray(rounded(np.asarray(given)), jnp.float32) for given in (x, y)]
    expected = jax.vjp(function, *near)[1](slope)
    for found, wanted in zip(transpose(slope), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def gradient(model: Decoder, ids: jax.Array) -> tuple[nnx.State, str]:
    """The gradient of the adapter, and the program that made it."""
    graphdef, adapter, frozen = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapter, frozen):
        return jnp.sum(nnx.merge(graphdef, adapter, frozen).hidden_states(ids) ** 3)

    compiled = jax.jit(jax.grad(loss)).lower(adapter, frozen).compile()
    return compiled(adapter, frozen), compiled.as_text()


def test_the_layers_hold_little_for_the_backward_pass_and_only_in_bfloat16():
    wide, narrow = decoder(jnp.float32), decoder(jnp.bfloat16)
    nnx.update(wide, jax.tree.map(lambda x: from_bits(x).astype(jnp.float32), nnx.state(narrow)))
    for model in (wide, narrow):
        model.layers.self_attn.q_proj.lora_B[...] += 0.1
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 61)
    (expected, before), (found, text) = gradient(wide, ids), gradient(narrow, ids)
    gate, held, scores = "f32[3,2,9,40]", "u16[3,2,9,40]", "f32[3,2,2,2,9,9]"
    assert gate in before and scores in before and held not in before
    assert held in text and gate not in text and scores not in text
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        # Three layers of products with 8 bits.
        assert np.linalg.norm(one - other) <= 0.02 * np.linalg.norm(other)


def test_logits_of_options_equal_those_of_the_vocabulary():
    head = decoder(jnp.bfloat16).head()
    hidden = jax.random.normal(jax.random.key(2), (2, 24))
    options = jnp.array([[3, 60, 7], [0, 1, 2]])
    expected = jnp.take_along_axis(head.logits(hidden), options, -1)
    np.testing.assert_allclose(head.option_logits(hidden, options), expected, rtol=1e-5, atol=1e-6)


def test_a_step_makes_no_float32_copy_of_the_base():
    graphdef, adapter, frozen = nnx.split(decoder(jnp.bfloat16), nnx.LoRAParam, ...)
    ids = jnp.zeros((2, 9), jnp.int32)

    def loss(adapter, frozen):
        return jnp.sum(nnx.merge(graphdef, adapter, frozen).hidden_states(ids) ** 2)

    text = jax.jit(jax.grad(loss)).lower(adapter, frozen).compile().as_text()
    assert "u16[3,40,24]" in text
    assert "f32[3,40,24]" not in text
    assert "f32[61,24]" not in text


def test_weights_are_written_read_and_merged_as_bfloat16(tmp_path):
    mesh = make_mesh(MeshConfig())
    lora = LoraConfig(target_modules=("q_proj", "lm_head"))
    made = random_decoder(CONFIG, lora=lora, dtype=jnp.bfloat16, mesh=mesh, seed=0)
    assert made.layers.mlp.up_proj.weight.dtype == jnp.uint16
    made.layers.self_attn.q_proj.lora_B[...] += 1.0
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 61)
    save_decoder(made, tmp_path / "base")
    stored = open_folder(tmp_path / "base").values()
    assert {tensor.dtype for tensor in stored} == {"BF16"}
    read = load_decoder(tmp_path / "base", dtype=jnp.bfloat16, mesh=mesh)
    wide = load_decoder(tmp_path / "base", dtype=jnp.float32, mesh=mesh)
    up = from_bits(read.layers.mlp.up_proj.weight[...])
    assert np.array_equal(up, wide.layers.mlp.up_proj.weight[...])
    merged = merge_lora(made)
    assert merged.layers.self_attn.q_proj.weight.dtype == jnp.uint16
    # The merged weights are rounded once more: 2^-9 of each.
    np.testing.assert_allclose(merged.hidden_states(ids), made.hidden_states(ids), atol=0.05)
    assert np.abs(merged.hidden_states(ids) - read.hidden_states(ids)).max() > 0.1


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("flags : fma amx_bf16", True),
        ("flags : fma avx512_bf16", True),
        ("flags : fma avx512f", False),
    ],
)
def test_a_cpu_says_whether_it_multiplies_bfloat16(tmp_path, flags, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(flags)
    assert cpu_multiplies_bfloat16(str(path)) is expected
    assert cpu_multiplies_bfloat16(str(tmp_path / "absent")) is False


@pytest.mark.parametrize("stored", ["float32", "float16", None])
def test_a_checkpoint_that_is_not_bfloat16_stays_float32_on_a_cpu(stored):
    assert ModelConfig("x").jax_dtype(make_mesh(MeshConfig()), stored) == jnp.float32


def test_a_bfloat16_checkpoint_stays_so_where_the_cpu_multiplies_it():
    expected = jnp.bfloat16 if cpu_multiplies_bfloat16() else jnp.float32
    assert ModelConfig("x").jax_dtype(make_mesh(MeshConfig()), "bfloat16") == expected
