"""Estimated memory against what the compiler reports for the very step, within a stated factor."""

import jax.numpy as jnp
import pytest

from cogcalib_jax.bench.compile import BatchShape, compile_step, update_memory
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.step import make_optimizer
from tests.models.small import one_device

# Of the activations, in float32; a CPU computes bfloat16 in float32, so there it says nothing.
FACTOR = 1.5

CONFIG = DecoderConfig(
    model_type="llama",
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=176,
    num_layers=6,
    num_heads=8,
    kv_heads=4,
    head_dim=8,
)
LORA = LoraConfig(r=4, target_modules=("q_proj", "v_proj"))
SHAPE = BatchShape(examples=16, tokens=64)


def both(mesh, remat, quantise="none"):
    estimated = update_memory(
        CONFIG,
        mesh,
        lora=LORA,
        shape=SHAPE,
        dtype=jnp.dtype(jnp.float32),
        classes=CONFIG.vocab_size,
        remat=remat,
        quantise=quantise,
    )
    compiled = compile_step(
        CONFIG,
        mesh,
        lora=LORA,
        method=MethodConfig(name="cols").resolve(),
        loss=LossConfig(),
        optimizer=make_optimizer(TrainingConfig(), lambda step: 1e-3),
        shape=SHAPE,
        dtype=jnp.dtype(jnp.float32),
        remat=remat,
        quantise=quantise,
    )
    return estimated, compiled.program.memory_analysis()


@pytest.mark.parametrize(
    ("remat", "quantise"),
    [
        ("none", "none"),
        *(
            pytest.param(remat, kind, marks=pytest.mark.slow)
            for remat, kind in (("layer", "none"), ("dots", "none"), ("layer", "nf4"))
        ),
    ],
)
def test_an_update_takes_what_was_estimated(remat, quantise):
    estimated, measured = both(one_device(), remat, quantise)
    activations = estimated.stored + estimated.working + estimated.logits + estimated.dequantised
    assert activations == pytest.approx(measured.temp_size_in_bytes, rel=FACTOR - 1)
    # The step is given weights, adapter, two moments and a batch; the gradient is its own.
    given = estimated.base + estimated.adapter * 3 / 4
    assert given == pytest.approx(measured.argument_size_in_bytes, rel=0.02)


@pytest.mark.slow
def test_a_mesh_divides_it():
    """Batch over 4, heads, MLP and vocabulary over 2."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    estimated, measured = both(mesh, "layer")
    given = estimated.base + estimated.adapter * 3 / 4
    assert given == pytest.approx(measured.argument_size_in_bytes, rel=0.1)
    working = sum(estimated) - estimated.base - estimated.adapter
    assert measured.temp_size_in_bytes / 2 < working < 2 * measured.temp_size_in_bytes


def test_a_quantised_base_by_hand():
    """Half a byte a number, and a float32 scale for each row of 64, of which `down` has 3 a row."""
    shape = BatchShape(4, 64, answer_tokens=50)
    settings = {"lora": LORA, "shape": shape, "dtype": jnp.dtype(jnp.float32), "classes": 1000}
    whole = update_memory(CONFIG, one_device(), **settings)
    held = update_memory(CONFIG, one_device(), quantise="nf4", **settings)
    numbers = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 176 * 64
    scales = 64 + 32 + 32 + 64 + 176 + 176 + 3 * 64
    assert whole.base - held.base == 6 * (4 * numbers - numbers // 2 - 4 * scales)
    assert held.dequantised == 4 * (numbers + 2 * 64)
    assert whole._replace(base=0) == held._replace(base=0, dequantised=0)


def test_parts_by_hand():
    """Weights: 6 layers of q and o 64 x 64, k and v 32 x 64, three of 176 x 64, two norms of 64;
    two tables of 1,000 x 64 and a norm. Adapter: A and B of q and v, four times."""
    memory = update_memory(
        CONFIG,
        one_device(),
        lora=LORA,
        shape=BatchShape(4, 64, answer_tokens=50),
        dtype=jnp.dtype(jnp.float32),
        classes=CONFIG.vocab_size,
    )
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 176 * 64 + 2 * 64
    assert memory.base == 4 * (6 * layer + 2 * 1000 * 64 + 64)
    assert memory.adapter == 4 * 6 * 4 * 4 * ((64 + 64) + (64 + 32))
    assert memory.gathered == memory.dequantised == 0
    assert memory.logits == 2 * 4 * 128 * 1000


def test_a_bfloat16_base_is_planned_with_the_activations_of_an_accelerator():
    """A CPU forms the scores of attention again, [heads, time, time] a layer; a GPU holds them."""
    stored = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        stored[dtype] = update_memory(
            CONFIG,
            one_device(),
            lora=LORA,
            shape=BatchShape(examples=1, tokens=1024),
            dtype=jnp.dtype(dtype),
            classes=CONFIG.vocab_size,
        ).stored
    scores = CONFIG.num_layers * CONFIG.num_heads * 1024**2
    assert stored[jnp.bfloat16] > 2 * scores
    assert stored[jnp.bfloat16] < stored[jnp.float32]
