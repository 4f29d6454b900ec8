"""Every family and flag against transformers and PEFT in torch, live, on small random models."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from cogcalib_jax.models.generate import SamplingConfig, generate  # noqa: E402
from cogcalib_jax.models.lora import LORA_TARGETS, LoraConfig  # noqa: E402
from cogcalib_jax.weights.hf_weights import (  # noqa: E402
    host_tensors,
    load_decoder,
    save_decoder,
)
from cogcalib_jax.weights.peft_adapter import load_adapter  # noqa: E402
from tests.golden.families import FAMILIES, LORA_ALPHA, LORA_RANK  # noqa: E402
from tests.golden.make_golden import (  # noqa: E402
    SMALLEST_GAP,
    greedy,
    lora_gradients,
    torch_model,
    torch_peft_model,
)
from tests.models.small import QUICK, forward, one_device  # noqa: E402

TOKENS = np.random.RandomState(5).randint(0, 64, (3, 40))
NEW_TOKENS = 64
EVERYWHERE = tuple(name for name in LORA_TARGETS if name != "all-linear")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(contents of config.json, torch model, folder that transformers saved it to)."""
    raw = FAMILIES[request.param]
    model = torch_model(raw)
    folder = tmp_path_factory.mktemp("transformers")
    # Shards of a few kilobytes, so that the index transformers writes is read too.
    model.save_pretrained(folder, max_shard_size="20KB")
    return raw, model, folder


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def test_logits_of_a_checkpoint_from_transformers(family):
    _, model, folder = family
    decoder = load_decoder(folder, mesh=one_device())
    _, logits = forward(decoder, TOKENS.astype(np.int32))
    assert np.abs(logits - torch_logits(model, TOKENS)).max() < 1e-4


def test_transformers_reads_what_we_write(family, tmp_path):
    _, model, folder = family
    decoder = load_decoder(folder, mesh=one_device())
    save_decoder(decoder, tmp_path / "ours", max_shard_bytes=20_000)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert np.abs(torch_logits(back, TOKENS) - torch_logits(model, TOKENS)).max() < 1e-5


def test_lora_gradients_of_an_adapter_from_peft(family, tmp_path):
    raw, _, folder = family
    peft_model = torch_peft_model(raw, EVERYWHERE)
    peft_model.save_pretrained(tmp_path)
    reference = lora_gradients(peft_model, TOKENS)

    lora = LoraConfig(LORA_RANK, LORA_ALPHA, EVERYWHERE)
    decoder = load_decoder(folder, lora=lora, mesh=one_device())
    load_adapter(tmp_path, decoder)
    graphdef, adapter, base = nnx.split(decoder, nnx.LoRAParam, ...)
    tokens = jnp.asarray(TOKENS, jnp.int32)

    def loss(adapter):
        model = nnx.merge(graphdef, adapter, base)
        logits = model.logits(model.hidden_states(tokens[:, :-1]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(adapter)
    ours = dict(host_tensors(gradient, decoder.config.num_layers))
    assert len(reference) == len(ours) == 2 * (7 * decoder.config.num_layers + 1)
    for name, expected in reference.items():
        mine = ours[name.removeprefix("base_model.model.").removesuffix(".weight")]
        largest = np.abs(expected).max()
        assert largest > 1e-6, name
        assert np.abs(mine - expected).max() < 1e-4 * largest, name


def test_greedy_generation_token_for_token(family):
    """Unequal prompts in one batch, against transformers one prompt at a time without padding.

    Prompts are drawn until the two likeliest tokens never come closer than a rounding error."""
    _, model, folder = family
    draw = np.random.RandomState(1)
    prompts, expected = [], []
    for length in (3, 11, 18):
        gap = 0.0
        while gap < SMALLEST_GAP:
            prompt = draw.randint(0, 64, length).tolist()
            continuation, gap = greedy(model, prompt, NEW_TOKENS)
        prompts.append(prompt)
        expected.append(continuation)
    decoder = load_decoder(folder, mesh=one_device())
    generated = generate(decoder, prompts, SamplingConfig(NEW_TOKENS))
    assert [list(one.tokens) for one in generated] == expected
    # Log-probabilities are those of the whole text read at once.
    whole = np.array([prompts[2] + expected[2]])
    logprobs = torch.log_softmax(torch.from_numpy(torch_logits(model, whole)), -1)[0].numpy()
    positions = np.arange(17, 17 + NEW_TOKENS)
    np.testing.assert_allclose(generated[2].logprobs, logprobs[positions, expected[2]], atol=1e-4)
