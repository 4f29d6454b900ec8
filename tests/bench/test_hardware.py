"""Chips, and the formula for operations against published sizes and a model's own arrays."""

import jax.numpy as jnp
import pytest
from flax import nnx

from cogcalib_jax.bench.hardware import (
    CHIPS,
    chip_of,
    forward_flops,
    layer_shapes,
    update_flops,
)
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import abstract_decoder
from tests.models.small import SMALL, one_device

LLAMA3_8B = DecoderConfig(
    model_type="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    kv_heads=8,
    head_dim=128,
)
ATTENTION_ONLY = LoraConfig(r=16, target_modules=("q_proj", "v_proj"))


def test_llama3_8b_by_its_published_size():
    """8,030,261,248 parameters: linears, two tables of V x D, and 65 norms of D."""
    linear = 8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096
    adapters = 32 * 16 * (4096 + 4096 + 4096 + 1024)
    attention = 3 * 2 * 4096 * 32 * 128 * 32
    per_token = 4 * linear + 6 * adapters + attention
    head = 4 * 128_256 * 4096
    assert update_flops(LLAMA3_8B, ATTENTION_ONLY, [4096], 4096, 128_256) == pytest.approx(
        4096 * (per_token + head), rel=1e-12
    )


def test_shapes_are_those_of_the_decoder():
    lora = LoraConfig(r=3, target_modules=("all-linear",))
    _, state = abstract_decoder(SMALL, lora, jnp.float32, one_device())
    shapes = {
        path[-2]: leaf.get_value().shape[1:]
        for path, leaf in nnx.to_flat_state(state)
        if path[0] == "layers" and path[-1] == "weight" and "norm" not in path[-2]
    }
    assert layer_shapes(SMALL) == shapes


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), ("all-linear",), ("o_proj",)])
def test_adapters_are_those_of_the_decoder(targets):
    """One token and one scored position: adapters are all that differs between two ranks."""
    one, two = (LoraConfig(r=rank, target_modules=targets) for rank in (1, 2))
    _, state = abstract_decoder(SMALL, one, jnp.float32, one_device())
    trained = sum(
        leaf.get_value().size
        for _, leaf in nnx.to_flat_state(nnx.filter_state(state, nnx.LoRAParam))
    )
    flops = [update_flops(SMALL, lora, [1], 1, SMALL.vocab_size) for lora in (one, two)]
    assert flops[1] - flops[0] == 6 * trained


def test_only_scored_positions_pay_for_the_head():
    head = 4 * 128_256 * 4096
    answers, all_positions = (
        update_flops(LLAMA3_8B, ATTENTION_ONLY, [100, 60], n, 128_256) for n in (2, 160)
    )
    assert all_positions - answers == 158 * head


def test_an_update_is_two_passes_and_the_adapters_gradient():
    """Forward N, backward N for inputs and as much again as forward for the adapter's weights; the
    backward pass of attention's two products costs twice its forward pass."""
    lengths = [7, 3]
    base = forward_flops(SMALL, None, lengths, 2, 40)
    attention = 2 * SMALL.num_heads * SMALL.head_dim * SMALL.num_layers * (7**2 + 3**2)
    adapted = forward_flops(SMALL, ATTENTION_ONLY, lengths, 2, 40) - base
    update = update_flops(SMALL, ATTENTION_ONLY, lengths, 2, 40)
    assert update == 2 * (base - attention) + 3 * attention + 3 * adapted


def test_chips_are_found_by_the_name_jax_gives_them():
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("NVIDIA H100 PCIe") is None and chip_of("cpu") is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(set(kinds)) == len(kinds)
    assert all("https://" in chip.source for chip in CHIPS.values())
