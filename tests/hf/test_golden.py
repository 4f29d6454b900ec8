"""Every family equals what transformers and PEFT computed in torch, from stored results."""

import json
from dataclasses import MISSING, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cogcalib_jax.hf.adapter import load_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.weights import host_tensors, load_decoder
from cogcalib_jax.models.block import NORMS
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.models.generate import SamplingConfig, generate
from cogcalib_jax.models.parameters import abstract_decoder, map_parameters
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.golden.checkpoints import golden, write_adapter, write_model
from tests.golden.families import FAMILIES, TOKENS, lora_targets
from tests.models.small import forward


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def checkpoint(family, folder):
    """(folder of the family's checkpoint, its tensors' shapes, what torch computed for it)."""
    stored = golden(family)
    shapes = json.loads(str(stored["shapes"]))
    return write_model(folder, FAMILIES[family], shapes), shapes, stored


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_lora_gradients_equal_torch(family, mesh, tmp_path):
    folder, shapes, stored = checkpoint(family, tmp_path / "model")
    vocab, hidden = shapes["model.embed_tokens.weight"]
    targets = lora_targets(FAMILIES[family])
    adapter = write_adapter(tmp_path / "adapter", shapes, vocab, hidden, targets)
    decoder = load_decoder(folder, lora=read_lora_config(adapter), mesh=mesh)
    graphdef, fresh, base = nnx.split(decoder, nnx.LoRAParam, ...)
    tokens = jnp.asarray(TOKENS, jnp.int32)

    def loss(lora):
        model = nnx.merge(graphdef, lora, base)
        logits = model.logits(model.hidden_states(tokens))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return nll.mean(), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    # B is zero in fresh LoRA parameters, so these are the base's logits.
    (_, logits), _ = run(fresh)
    np.testing.assert_allclose(logits[:, ::3], stored["logits"], atol=1e-4, rtol=0)

    load_adapter(adapter, decoder)
    _, gradient = run(nnx.state(decoder, nnx.LoRAParam))
    ours = dict(host_tensors(gradient, decoder.config))
    names = [name for name in stored if name.startswith("gradient:")]
    assert len(names) == len(ours)
    for name in names:
        key = name.removeprefix("gradient:base_model.model.").removesuffix(".weight")
        largest = np.abs(stored[name]).max()
        np.testing.assert_allclose(ours[key], stored[name], atol=1e-4 * largest, rtol=0)


# What no flag is: sizes, ids, names, and what does not show in float32 logits.
NO_FLAGS = {"rms_norm_eps", "wide_norms", "tie_word_embeddings", "max_position_embeddings"}
NO_FLAGS |= {"initializer_range", "bos_token_id", "eos_token_id", "fused"}
NO_FLAGS |= {"experts"}  # without them it has no weights; see tests/parity/test_experts_parity.py


def flags_of_families():
    """(family, flag, the value that switches it off), for all that a family's model sets."""
    found = []
    for family, raw in FAMILIES.items():
        config = from_hf(raw, family)
        for field in fields(DecoderConfig):
            off = field.default
            if field.name == "ropes":
                off *= len(config.ropes)
            if field.name not in NO_FLAGS and off is not MISSING:
                plain = getattr(replace(config, **{field.name: off}), field.name)
                if getattr(config, field.name) != plain:
                    found.append(pytest.param(family, field.name, off, id=f"{family}-{field.name}"))
    return found


def switched(decoder, **change):
    """The model with other settings and the same weights. A norm that is not there takes the
    weights of the one on the other side of attention or MLP."""
    config = replace(decoder.config, **change)
    here = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
    norms = NORMS[decoder.config.norms]
    others = {new: norms[i] or norms[i ^ 1] for i, new in enumerate(NORMS[config.norms])}
    graphdef, abstract = abstract_decoder(config, None, jnp.float32, decoder.mesh)

    def same(path, leaf):
        return leaf.replace(here[*path[:-2], others.get(path[-2], path[-2]), path[-1]])

    return nnx.merge(graphdef, map_parameters(same, abstract))


# Parts of one RoPE, each switched off.
ROPES = {
    "phi4_mini": [
        {"type": "default", "short_factor": (), "long_factor": ()},
        {"attention_factor": 1.0},
        {"fraction": 1.0, "short_factor": (1.0, 2.0, 4.0, 4.0), "long_factor": (1.0,) * 4},
    ],
    "phi3_long": [{"long_factor": (1.0,) * 4}, {"attention_factor": 1.0}],
    "ministral3": [{"query_beta": 0.0}],
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "off"), [(f, off) for f in ROPES for off in ROPES[f]])
def test_every_part_of_a_rope_shows(family, off, mesh, tmp_path):
    folder, _, stored = checkpoint(family, tmp_path)
    decoder = load_decoder(folder, mesh=mesh)
    (rope,) = decoder.config.ropes
    _, logits = forward(switched(decoder, ropes=(replace(rope, **off),)), TOKENS.astype(np.int32))
    assert np.abs(logits[:, ::3] - stored["logits"]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(("family", "flag", "off"), flags_of_families())
def test_every_flag_of_a_family_shows(family, flag, off, mesh, tmp_path):
    folder, _, stored = checkpoint(family, tmp_path)
    model = switched(load_decoder(folder, mesh=mesh), **{flag: off})
    _, logits = forward(model, TOKENS.astype(np.int32))
    assert np.abs(logits[:, ::3] - stored["logits"]).max() > 1e-2


# Those in which generation takes a way of its own: cached positions meet windows and stretched
# rotations. tests/parity generates with all of them.
@pytest.mark.parametrize(
    "family", ["llama3.2", "mistral_v0.1", "qwen2.5_windows", "qwen3_yarn_biases", "gemma3"]
)
def test_greedy_generation_equals_torch_token_for_token(family, mesh, tmp_path):
    folder, _, stored = checkpoint(family, tmp_path)
    decoder = load_decoder(folder, mesh=mesh)
    prompts = [TOKENS[0, :9].tolist(), TOKENS[1, :4].tolist()]
    generated = generate(decoder, prompts, SamplingConfig(stored["greedy"].shape[1]))
    np.testing.assert_array_equal([one.tokens for one in generated], stored["greedy"])
