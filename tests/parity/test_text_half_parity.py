"""The text half of a multimodal folder against transformers' whole model, on a small random one."""

import json
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import LoraConfig as PeftConfig  # noqa: E402
from peft import PeftModel, get_peft_model  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Mistral3Config,
)

from cogcalib_jax.hf import merge  # noqa: E402
from cogcalib_jax.hf.adapter import load_adapter, save_adapter  # noqa: E402
from cogcalib_jax.hf.adapter_config import read_lora_config  # noqa: E402
from cogcalib_jax.hf.weights import load_decoder, save_decoder  # noqa: E402
from tests.golden.families import FAMILIES, weight  # noqa: E402
from tests.models.small import one_device  # noqa: E402
from tests.parity.measures import our_logits, torch_logits  # noqa: E402

VISION = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
# Gemma 3 4B and Ministral 3 3B have a tied head, Mistral Small has not.
HALVES = {
    "gemma3": (Gemma3Config, SIGLIP, {"mm_tokens_per_image": 4, "tie_word_embeddings": True}),
    "ministral3": (Mistral3Config, VISION, {"tie_word_embeddings": True}),
    "mistral_v0.3": (Mistral3Config, VISION, {"tie_word_embeddings": False}),
}


def whole_model(text):
    config, vision, more = HALVES[text]
    raw = FAMILIES[text] | {"tie_word_embeddings": more["tie_word_embeddings"]}
    config = config(text_config=raw, vision_config=vision, **more)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def read_back(folder, kind=AutoModelForImageTextToText):
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture(scope="module", params=HALVES)
def saved(request, tmp_path_factory):
    """(transformers' model, its folder)."""
    model = whole_model(request.param)
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return model, folder


def test_logits_of_a_text_half(saved):
    model, folder = saved
    decoder = load_decoder(folder, mesh=one_device())
    assert np.abs(our_logits(decoder) - torch_logits(model)).max() < 1e-4


@pytest.mark.slow
def test_names_of_transformers_5_mean_the_same(saved, tmp_path):
    """`model.language_model.` in place of the Hub's `language_model.model.`."""
    model, folder = saved
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    decoder = load_decoder(tmp_path, mesh=one_device())
    assert np.abs(our_logits(decoder) - torch_logits(model)).max() < 1e-4


@pytest.mark.slow
def test_a_saved_text_half_is_a_model_of_its_own(saved, tmp_path):
    model, folder = saved
    save_decoder(load_decoder(folder, mesh=one_device()), tmp_path / "half")
    back = read_back(tmp_path / "half", AutoModelForCausalLM)
    assert np.abs(torch_logits(back) - torch_logits(model)).max() < 1e-5


@pytest.mark.slow
def test_an_adapter_and_its_merge_fit_the_whole_model(saved, tmp_path):
    """PEFT's adapter on the language model is read; what we write loads in PEFT; the merged folder
    holds the vision tower as it was."""
    model, folder = saved
    whole = read_back(folder)
    names = [name for name, _ in whole.named_modules() if "language_model.layers" in name]
    names = [name for name in names if name.endswith(("q_proj", "down_proj"))]
    adapted = get_peft_model(whole, PeftConfig(r=2, lora_alpha=6, target_modules=names))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    adapted.save_pretrained(tmp_path / "peft")
    expected = torch_logits(adapted)
    assert np.abs(expected - torch_logits(model)).max() > 1e-2

    lora = read_lora_config(tmp_path / "peft")
    decoder = load_decoder(folder, lora=lora, mesh=one_device())
    load_adapter(tmp_path / "peft", decoder)
    assert np.abs(our_logits(decoder) - expected).max() < 1e-4

    save_adapter(tmp_path / "ours", decoder, "BASE")
    again = load_decoder(folder, lora=read_lora_config(tmp_path / "ours"), mesh=one_device())
    load_adapter(tmp_path / "ours", again)
    fresh = read_back(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as that of missing tensors
        back = PeftModel.from_pretrained(fresh, tmp_path / "ours")
    assert np.abs(torch_logits(back) - expected).max() < 1e-5
    assert not any("vision" in name for name, _ in back.named_parameters() if "lora_" in name)

    out = tmp_path / "merged"
    merge.main(
        ["--model.path", str(folder), "--adapter", str(tmp_path / "ours"), "--out", str(out)]
    )
    merged = read_back(out)
    assert np.abs(torch_logits(merged) - expected).max() < 1e-4
    before, after = (load_file(path / "model.safetensors") for path in (folder, out))
    assert before.keys() == after.keys()
    for name in before:
        if "language_model" not in name:
            np.testing.assert_array_equal(after[name], before[name])
    kinds = [json.loads((path / "config.json").read_text())["model_type"] for path in (folder, out)]
    assert kinds[0] == kinds[1]
