"""Every family equals what transformers and PEFT computed in torch, from stored results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cogcalib_jax.hf.adapter import load_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.weights import host_tensors, load_decoder
from cogcalib_jax.models.generate import SamplingConfig, generate
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.golden.checkpoints import golden, write_adapter, write_model
from tests.golden.families import FAMILIES, TOKENS


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
    adapter = write_adapter(tmp_path / "adapter", shapes, vocab, hidden)
    decoder = load_decoder(folder, lora=read_lora_config(adapter), mesh=mesh)
    graphdef, fresh, base = nnx.split(decoder, nnx.LoRAParam, ...)
    tokens = jnp.asarray(TOKENS, jnp.int32)

    def loss(lora):
        model = nnx.merge(graphdef, lora, base)
        logits = model.logits(model.hidden_states(tokens))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return nll.mean(), logits

    # Compiling is all of this test's time; optimised code would not pay for itself.
    options = {"xla_backend_optimization_level": 0}
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)
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


# Those in which generation takes a way of its own: cached positions meet windows and stretched
# rotations. tests/parity generates with all of them.
@pytest.mark.parametrize(
    "family", ["llama3.2", "mistral_v0.1", "qwen2.5_windows", "qwen3_yarn_biases"]
)
def test_greedy_generation_equals_torch_token_for_token(family, mesh, tmp_path):
    folder, _, stored = checkpoint(family, tmp_path)
    decoder = load_decoder(folder, mesh=mesh)
    prompts = [TOKENS[0, :9].tolist(), TOKENS[1, :4].tolist()]
    generated = generate(decoder, prompts, SamplingConfig(stored["greedy"].shape[1]))
    np.testing.assert_array_equal([one.tokens for one in generated], stored["greedy"])
