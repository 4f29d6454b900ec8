"""Mixtures of experts against transformers and PEFT: predictions, layouts, flags, MXFP4."""

import json
import warnings
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors  # noqa: E402

from cogcalib_jax.hf.adapter import load_adapter, save_adapter  # noqa: E402
from cogcalib_jax.hf.adapter_config import read_lora_config  # noqa: E402
from cogcalib_jax.hf.weights import load_decoder  # noqa: E402
from cogcalib_jax.models.parameters import abstract_decoder, map_parameters  # noqa: E402
from cogcalib_jax.models.product import from_bits  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402
from tests.models.small import one_device  # noqa: E402
from tests.parity.measures import our_logits, torch_logits  # noqa: E402

SPARSE = ("mixtral", "qwen3_moe", "gpt_oss")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]
OPTIONS = [7, 21, 33, 60]


@pytest.fixture(scope="module", params=SPARSE)
def family(request, tmp_path_factory):
    """(contents of config.json, torch model, folder that transformers saved it to)."""
    raw = FAMILIES[request.param]
    model = torch_model(raw)
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    return raw, model, folder


def predictions(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of four options at the end of each text, among the vocabulary."""
    last = torch.tensor(logits[:, -1])
    return torch.log_softmax(last, -1)[:, OPTIONS].numpy()


def test_predictions_with_an_adapter_of_peft_loaded_and_saved_back(family, tmp_path):
    raw, _, folder = family
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(torch_model(raw), config)
    theirs.save_pretrained(tmp_path / "theirs")
    decoder = load_decoder(folder, lora=read_lora_config(tmp_path / "theirs"), mesh=one_device())
    plain = predictions(our_logits(decoder))
    load_adapter(tmp_path / "theirs", decoder)
    ours = predictions(our_logits(decoder))
    np.testing.assert_allclose(ours, predictions(torch_logits(theirs)), atol=1e-4)
    assert np.abs(ours - plain).max() > 1e-2

    save_adapter(tmp_path / "ours", decoder, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = peft.PeftModel.from_pretrained(torch_model(raw), tmp_path / "ours")
    np.testing.assert_allclose(predictions(torch_logits(back)), ours, atol=1e-4)


def test_both_layouts_of_transformers_5_are_the_same_weights(family, tmp_path):
    _, model, folder = family
    model.save_pretrained(tmp_path, save_original_format=False)
    names = [set(load_file(f / "model.safetensors")) for f in (folder, tmp_path)]
    assert "model.layers.0.mlp.experts.gate_up_proj" in names[1]
    one, other = (
        dict(nnx.to_flat_state(nnx.state(load_decoder(f, mesh=one_device()))))
        for f in (folder, tmp_path)
    )
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf.get_value(), other[path].get_value(), str(path))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral", dict(renormalise=False)),
        ("mixtral", dict(per_token=1)),
        ("qwen3_moe", dict(renormalise=False)),
        ("gpt_oss", dict(renormalise=False)),
        ("gpt_oss", dict(limit=None)),
        ("gpt_oss", dict(limit=1e9)),
        ("gpt_oss", dict(alpha=1.0)),
        ("gpt_oss", dict(bias=False)),
    ],
)
def test_without_one_setting_of_its_experts_a_model_has_other_logits(name, changes, tmp_path):
    model = torch_model(FAMILIES[name])
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, mesh=one_device())
    held = dict(nnx.to_flat_state(nnx.state(decoder)))
    config = decoder.config
    config = replace(config, experts=replace(config.experts, **changes))
    graphdef, state = abstract_decoder(config, None, jnp.dtype(jnp.float32), one_device())
    changed = nnx.merge(graphdef, map_parameters(lambda path, _: held[path], state))
    assert np.abs(our_logits(decoder) - torch_logits(model)).max() < 1e-4
    assert np.abs(our_logits(changed) - torch_logits(model)).max() > 1e-2


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A gpt-oss whose experts are MXFP4, in float32 otherwise, as a folder."""
    raw = FAMILIES["gpt_oss"] | {"hidden_size": 64, "intermediate_size": 96}
    folder = tmp_path_factory.mktemp("mxfp4")
    torch_model(raw).save_pretrained(folder)
    draw = np.random.RandomState(0)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, into, out = tensor.shape
            shape = (experts, out, into // 32)
            tensors[f"{name}_blocks"] = draw.randint(0, 256, (*shape, 16)).astype(np.uint8)
            tensors[f"{name}_scales"] = draw.randint(121, 126, shape).astype(np.uint8)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mxfp4_becomes_the_values_of_transformers(packed, dtype):
    folder, tensors = packed
    mlp = load_decoder(folder, dtype=dtype, mesh=one_device()).layers.mlp
    for layer in range(3):
        inside = f"model.layers.{layer}.mlp.experts"
        both, down = (
            _convert_moe_packed_tensors(
                *(torch.from_numpy(tensors[f"{inside}.{name}_{part}"]) for part in parts),
                dtype=getattr(torch, dtype),
            )
            .float()
            .numpy()
            for parts in [("blocks", "scales")]
            for name in ("gate_up_proj", "down_proj")
        )
        for name, expected in (
            ("gate_proj", both[..., ::2]),
            ("up_proj", both[..., 1::2]),
            ("down_proj", down),
        ):
            ours = from_bits(getattr(mlp.experts, name).weight[...][layer]).astype(jnp.float32)
            np.testing.assert_array_equal(ours.swapaxes(1, 2), expected)


def test_a_model_of_mxfp4_has_the_logits_of_transformers(packed):
    folder, _ = packed
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert np.abs(torch_logits(theirs)).std() > 0.1
    decoder = load_decoder(folder, mesh=one_device())
    np.testing.assert_allclose(our_logits(decoder), torch_logits(theirs), atol=1e-4)
