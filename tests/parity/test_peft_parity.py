"""Adapters across the border: ours into PEFT, PEFT's into ours, the same logits on both sides."""

import warnings
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from cogcalib_jax.hf.adapter import load_adapter, save_adapter  # noqa: E402
from cogcalib_jax.hf.adapter_config import read_lora_config  # noqa: E402
from cogcalib_jax.hf.weights import load_decoder  # noqa: E402
from cogcalib_jax.models.lora import LoraConfig  # noqa: E402
from cogcalib_jax.models.parameters import map_parameters  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402
from tests.models.small import forward, one_device  # noqa: E402

TOKENS = np.random.RandomState(5).randint(0, 64, (2, 20))
TARGETS = {
    "attention": ("q_proj", "v_proj"),
    "attention_and_head": ("q_proj", "v_proj", "lm_head"),
    "all-linear": ("all-linear",),
    "all-linear_and_head": ("all-linear", "lm_head"),
}


@pytest.fixture(
    scope="module", params=["llama3", "llama3.2", "qwen3_tied"], ids=["untied", "tied", "qwen3"]
)
def base(request, tmp_path_factory):
    """A family's model in torch, and the folder it is saved in."""
    raw = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("base")
    torch_model(raw).save_pretrained(folder)
    return SimpleNamespace(raw=raw, folder=folder)


def randomised(decoder):
    """B away from zero, so that every adapter shows in the logits. Not far: at 0.3, float32 itself
    was off float64 by 6e-5 in torch and 1.1e-4 here, at one position of 40."""

    def draw(path, leaf):
        old = leaf.get_value()
        values = 0.1 * np.random.RandomState(len("".join(path))).standard_normal(old.shape)
        return leaf.replace(jax.device_put(values.astype(old.dtype), old.sharding))

    nnx.update(decoder, map_parameters(draw, nnx.state(decoder, nnx.LoRAParam)))
    return decoder


def peft_logits(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def our_logits(decoder):
    return np.asarray(forward(decoder, TOKENS.astype(np.int32))[1])


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_peft_gives_our_logits_for_our_adapter(base, targets, tmp_path):
    lora = LoraConfig(r=3, lora_alpha=7.0, target_modules=targets)
    decoder = randomised(load_decoder(base.folder, lora=lora, mesh=one_device()))
    save_adapter(tmp_path / "adapter", decoder, base.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied embeddings: nothing is merged here
        model = peft.PeftModel.from_pretrained(torch_model(base.raw), tmp_path / "adapter")
    assert np.abs(peft_logits(model) - our_logits(decoder)).max() < 1e-4
    with model.disable_adapter():
        assert np.abs(peft_logits(model) - our_logits(decoder)).max() > 1e-2


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_we_give_pefts_logits_for_its_adapter(base, targets, tmp_path):
    names = (
        "all-linear"
        if targets == ("all-linear",)
        else list(LoraConfig(target_modules=targets).modules)
    )
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=names,
        # PEFT's own way to start with B away from zero.
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch_model(base.raw), config)
        model.save_pretrained(tmp_path)
    lora = read_lora_config(tmp_path)
    assert (lora.r, lora.lora_alpha) == (4, 6)
    # PEFT names the layers that the model has.
    expected = LoraConfig(target_modules=targets).modules
    assert lora.modules - {"qkv_proj", "gate_up_proj"} == expected - {"qkv_proj", "gate_up_proj"}
    decoder = load_decoder(base.folder, lora=lora, mesh=one_device())
    before = our_logits(decoder)
    load_adapter(tmp_path, decoder)
    assert np.abs(peft_logits(model) - our_logits(decoder)).max() < 1e-4
    assert np.abs(before - our_logits(decoder)).max() > 1e-2


PARTIAL = {
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "some layers and the head": {
        "target_modules": ["q_proj", "lm_head"],
        "layers_to_transform": [0, 2],
    },
    "without a module": {"target_modules": ["q_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    "paths": {"target_modules": ["model.layers.2.mlp.up_proj", "0.self_attn.q_proj"]},
    "layers it lacks": {"target_modules": ["v_proj", "c_attn", "query_key_value"]},
}


@pytest.mark.parametrize("settings", PARTIAL.values(), ids=PARTIAL)
def test_we_read_what_peft_reads_of_an_adapter_on_some_layers(base, settings, tmp_path):
    config = peft.LoraConfig(
        r=2, lora_alpha=5, init_lora_weights=False, task_type="CAUSAL_LM", **settings
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch_model(base.raw), config)
        model.save_pretrained(tmp_path, save_embedding_layers=True)
    decoder = load_decoder(base.folder, lora=read_lora_config(tmp_path), mesh=one_device())
    load_adapter(tmp_path, decoder)
    assert np.abs(peft_logits(model) - our_logits(decoder)).max() < 1e-4


def test_fresh_adapters_have_pefts_distribution(base):
    lora = LoraConfig(r=64, target_modules=("down_proj",))
    decoder = load_decoder(base.folder, lora=lora, mesh=one_device())
    model = peft.get_peft_model(
        torch_model(base.raw),
        peft.LoraConfig(r=64, target_modules=["down_proj"], task_type="CAUSAL_LM"),
    )
    parameters = dict(model.named_parameters())
    theirs = np.concatenate(
        [p.detach().numpy().ravel() for name, p in parameters.items() if "lora_A" in name]
    )
    ours = np.asarray(decoder.layers.mlp.down_proj.lora_A[...]).ravel()
    assert ours.size == theirs.size
    quantiles = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.01
    )
    assert not np.any(decoder.layers.mlp.down_proj.lora_B[...])
