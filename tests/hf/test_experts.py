"""Experts in checkpoints: layouts, MXFP4, refusals by name, and memory while they are read."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.experts import unpack
from cogcalib_jax.hf.weights import load_decoder, read_config, save_decoder
from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.golden.checkpoints import golden, write_model
from tests.golden.families import FAMILIES
from tests.models.small import one_device, small_decoder

SPARSE = ("mixtral", "qwen3_moe", "gpt_oss")


def parameters(decoder) -> dict[tuple[str, ...], np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(decoder))
    return {path: np.asarray(leaf.get_value()) for path, leaf in flat}


def checkpoint(folder: Path, family: str, **changes) -> Path:
    """In the layout with one tensor of all experts, as torch holds it."""
    shapes = json.loads(str(golden(family)["shapes"]))
    return write_model(folder, FAMILIES[family] | changes, shapes)


@pytest.mark.parametrize("family", SPARSE)
def test_written_weights_are_read_back_bit_for_bit_on_every_mesh(family, tmp_path):
    """Written with one matrix an expert (gpt-oss: with one tensor); read on one device and cut."""
    decoder = load_decoder(checkpoint(tmp_path / "in", family), mesh=one_device())
    save_decoder(decoder, tmp_path / "out", max_shard_bytes=8_000)
    assert read_config(tmp_path / "out") == decoder.config
    for mesh in (one_device(), make_mesh(MeshConfig(1, 2, 2, 2))):
        back = parameters(load_decoder(tmp_path / "out", mesh=mesh))
        for path, array in parameters(decoder).items():
            np.testing.assert_array_equal(back[path], array, err_msg=str(path))


def test_the_hubs_names_are_written(tmp_path):
    decoder = load_decoder(checkpoint(tmp_path / "in", "mixtral"), mesh=one_device())
    save_decoder(decoder, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    inside = "model.layers.2.block_sparse_moe"
    assert tensors[f"{inside}.gate.weight"].shape == (4, 32)
    up = decoder.layers.mlp.experts.up_proj.weight[...]
    np.testing.assert_array_equal(tensors[f"{inside}.experts.3.w3.weight"], up[2, 3])


def test_mxfp4_is_unpacked_digit_by_digit():
    """Against the format's definition: a sign, two bits of exponent, one of mantissa."""

    def value(code: int) -> float:
        sign, exponent, mantissa = -1 if code & 8 else 1, code >> 1 & 3, code & 1
        return sign * (
            mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        )

    draw = np.random.RandomState(0)
    blocks = draw.randint(0, 256, (2, 3, 2, 16)).astype(np.uint8)
    scales = draw.randint(0, 255, (2, 3, 2)).astype(np.uint8)
    ours = unpack(blocks, scales)
    assert ours.shape == (2, 3, 64)
    for place in np.ndindex(2, 3, 2):
        bits = [digit for byte in blocks[place] for digit in (byte % 16, byte // 16)]
        expected = [np.float32(value(code) * 2.0 ** (int(scales[place]) - 127)) for code in bits]
        group = slice(32 * place[2], 32 * place[2] + 32)
        np.testing.assert_array_equal(ours[(*place[:2], group)], expected)


def packed(folder: Path) -> Path:
    """gpt-oss with MXFP4 in the golden layout, hidden size 32 and experts of 64."""
    raw = FAMILIES["gpt_oss"] | {"intermediate_size": 64}
    shapes = json.loads(str(golden("gpt_oss")["shapes"]))
    sizes = {"gate_up_proj": (4, 128, 1), "down_proj": (4, 32, 2)}
    write_model(
        folder,
        raw | {"quantization_config": {"quant_method": "mxfp4"}},
        {name: [128 if n == 96 else n for n in shape] for name, shape in shapes.items()},
    )
    draw, tensors = np.random.RandomState(0), load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(tuple(sizes))]:
        shape = sizes[name.rsplit(".", 1)[1]]
        del tensors[name]
        tensors[f"{name}_blocks"] = draw.randint(0, 256, (*shape, 16)).astype(np.uint8)
        tensors[f"{name}_scales"] = draw.randint(120, 128, shape).astype(np.uint8)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_devices_unpack_their_own_parts_of_mxfp4(tmp_path):
    """Columns are cut within a group of 32 that shares a scale."""
    folder = packed(tmp_path)
    one = parameters(load_decoder(folder, mesh=one_device()))
    many = parameters(load_decoder(folder, mesh=make_mesh(MeshConfig(1, 2, 2, 2))))
    for path, array in one.items():
        np.testing.assert_array_equal(many[path], array, err_msg=str(path))


def test_missing_experts_are_named_as_the_checkpoint_would(tmp_path):
    decoder = load_decoder(checkpoint(tmp_path / "in", "mixtral"), mesh=one_device())
    save_decoder(decoder, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    lost = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    tensors[lost.replace("w1", "w4")] = tensors.pop(lost)
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"missing: {lost}; unexpected: {lost[:-9]}w4.weight;"):
        load_decoder(tmp_path / "out", mesh=one_device())


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, "leave 1 layers without experts .* is 1"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "leave 2 layers without experts .* is 0"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts is 0; expected a whole number"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "per_token: must be at most .* experts .6."),
        ("qwen3_moe", {"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'; expected true or"),
        ("mixtral", {"hidden_act": "gelu_pytorch_tanh"}, "activation: is gelu_tanh; experts are"),
        ("mixtral", {"num_local_experts": 10**9}, "experts: must be at most 1,000,000 in all"),
        ("mixtral", {"num_local_experts": 2.5}, "num_local_experts is 2.5; expected a whole"),
        ("mixtral", {"quantization_config": {"quant_method": "mxfp4"}}, "quantised by mxfp4"),
        ("gpt_oss", {"quantization_config": {"quant_method": "awq"}}, "quantised by awq"),
        ("gpt_oss", {"swiglu_limit": None}, "swiglu_limit is None; expected a number above 0"),
        ("gpt_oss", {"layer_types": ["linear"] * 3}, "layer_types names linear; expected"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(family, changes, reason, tmp_path):
    folder = checkpoint(tmp_path, family, **changes)
    with pytest.raises(UserError, match=reason) as refused:
        load_decoder(folder, mesh=one_device())
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_an_expert_stack_is_not_held_twice_while_it_is_read(tmp_path):
    """Three projections of 64 MB. At most 16 MB (READ_BYTES) and a matrix are beside them."""
    config = DecoderConfig(
        model_type="mixtral",
        vocab_size=16,
        hidden_size=1024,
        intermediate_size=1024,
        num_layers=1,
        num_heads=4,
        kv_heads=1,
        head_dim=8,
        experts=ExpertsConfig(number=16, per_token=2, width=1024),
    )
    decoder = small_decoder(config)
    total = sum(x.nbytes for x in jax.tree.leaves(nnx.state(decoder)))
    save_decoder(decoder, tmp_path / "out")
    del decoder
    tracemalloc.start()
    loaded = load_decoder(tmp_path / "out", mesh=one_device())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.dtype == jnp.float32
    assert peak < total + 40e6
    assert replace(config, sliding_windows=(0,)) == loaded.config
