"""Every family and flag against transformers and PEFT in torch, live, on small random models."""

import importlib
import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from transformers import AutoModelForCausalLM  # noqa: E402

from cogcalib_jax.hf.weights import load_decoder, save_decoder  # noqa: E402
from cogcalib_jax.models.block import RMSNorm  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402
from tests.models.small import SMALL, one_device  # noqa: E402
from tests.parity import measures  # noqa: E402

# Further flags of a family that another model stands for.
FURTHER = ("phi4", "phi3_long")
PARAMS = [
    pytest.param(name, marks=pytest.mark.slow if name in FURTHER else ()) for name in FAMILIES
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models are too small to share out; idle threads only get in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=PARAMS)
def family(request, tmp_path_factory):
    """(contents of config.json, torch model, folder that transformers saved it to)."""
    raw = FAMILIES[request.param]
    model = torch_model(raw)
    folder = tmp_path_factory.mktemp("transformers")
    # Shards of a few kilobytes, so that the index transformers writes is read too.
    model.save_pretrained(folder, max_shard_size="20KB")
    return raw, model, folder


def test_logits_of_a_checkpoint_from_transformers(family):
    _, model, folder = family
    assert measures.logits_difference(model, folder) < 1e-4


def test_transformers_reads_what_we_write(family, tmp_path):
    _, model, folder = family
    decoder = load_decoder(folder, mesh=one_device())
    save_decoder(decoder, tmp_path / "ours", max_shard_bytes=20_000)
    back = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
    )
    difference = measures.torch_logits(back) - measures.torch_logits(model)
    assert abs(difference).max() < 1e-5


def test_lora_gradients_of_an_adapter_from_peft(family, tmp_path):
    raw, _, folder = family
    for name, difference in measures.gradient_differences(raw, folder, tmp_path).items():
        assert difference < 1e-4, name


@pytest.mark.slow  # tests/hf/test_golden.py generates with those that take a way of their own
def test_greedy_generation_token_for_token(family):
    _, model, folder = family
    expected, ours, logprob_difference = measures.greedy_continuations(model, folder)
    assert ours == expected
    assert logprob_difference < 1e-4


@pytest.mark.parametrize(
    ("theirs", "flags"),
    [
        ("llama.modeling_llama.LlamaRMSNorm", {}),
        ("olmo2.modeling_olmo2.Olmo2RMSNorm", {"wide_norms": True}),
        ("gemma2.modeling_gemma2.Gemma2RMSNorm", {"wide_norms": True, "norm_offset": 1.0}),
    ],
)
def test_norms_round_to_bfloat16_where_transformers_rounds(theirs, flags):
    """In float32 nobody sees whether the weight is multiplied before or after rounding."""
    draw = np.random.RandomState(0).standard_normal
    x, weight = (draw(shape).astype(jnp.bfloat16) for shape in ((40, 32), (32,)))
    module, _, name = theirs.rpartition(".")
    norm = getattr(importlib.import_module(f"transformers.models.{module}"), name)(32, eps=1e-5)

    def exact(array):  # through float32, which holds every bfloat16
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)

    with torch.no_grad():
        norm.weight.copy_(exact(weight))
        expected = norm.to(torch.bfloat16)(exact(x)).float().numpy()
    ours = RMSNorm((), 32, replace(SMALL, **flags), jnp.bfloat16)
    ours.weight.set_value(jnp.asarray(weight))
    switched = flags | {"wide_norms": not flags}
    others = RMSNorm((), 32, replace(SMALL, **switched), jnp.bfloat16)
    others.weight.set_value(jnp.asarray(weight))
    np.testing.assert_array_equal(np.asarray(ours(x), np.float32), expected)
    assert np.any(np.asarray(others(x), np.float32) != expected)


def test_a_merge_has_the_logits_of_pefts_base_and_adapter(family, tmp_path):
    raw, _, folder = family
    assert measures.merged_difference(raw, folder, tmp_path) < 1e-4
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False  # the head has an adapter of its own
