"""The numbers of the parity tests and of docs/results/parity.md: one family against torch."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from transformers import AutoModelForCausalLM

from cogcalib_jax.hf import merge
from cogcalib_jax.hf.adapter import load_adapter
from cogcalib_jax.hf.weights import host_tensors, load_decoder
from cogcalib_jax.models.config import LORA_TARGETS
from cogcalib_jax.models.generate import SamplingConfig, generate
from cogcalib_jax.models.lora import LoraConfig
from tests.golden.families import LORA_ALPHA, LORA_RANK, lora_targets
from tests.golden.make_golden import SMALLEST_GAP, greedy, lora_gradients, torch_peft_model
from tests.models.small import forward, one_device

TOKENS = np.random.RandomState(5).randint(0, 64, (3, 40))
NEW_TOKENS = 64
PROMPT_LENGTHS = (3, 11, 18)
EVERYWHERE = tuple(name for name in LORA_TARGETS if name != "all-linear")


@torch.no_grad()
def torch_logits(model: torch.nn.Module, ids: np.ndarray = TOKENS) -> np.ndarray:
    return model.eval()(torch.from_numpy(ids)).logits.numpy()


def our_logits(decoder, ids: np.ndarray = TOKENS) -> np.ndarray:
    return np.asarray(forward(decoder, ids.astype(np.int32))[1])


def logits_difference(model: torch.nn.Module, folder: Path) -> float:
    """The largest difference of logits, ours of the checkpoint `folder` less torch's `model`."""
    decoder = load_decoder(folder, mesh=one_device())
    return float(np.abs(our_logits(decoder) - torch_logits(model)).max())


def gradient_differences(raw: dict, folder: Path, scratch: Path) -> dict[str, float]:
    """For A and B of an adapter on every linear layer, all away from zero: the largest difference
    of gradients as a share of the largest gradient."""
    targets = lora_targets(raw, EVERYWHERE)
    peft_model = torch_peft_model(raw, targets)
    peft_model.save_pretrained(scratch)
    reference = lora_gradients(peft_model, TOKENS)
    lora = LoraConfig(LORA_RANK, LORA_ALPHA, targets)
    decoder = load_decoder(folder, lora=lora, mesh=one_device())
    load_adapter(scratch, decoder)
    graphdef, adapter, base = nnx.split(decoder, nnx.LoRAParam, ...)
    tokens = jnp.asarray(TOKENS, jnp.int32)

    def loss(adapter):
        model = nnx.merge(graphdef, adapter, base)
        logits = model.logits(model.hidden_states(tokens[:, :-1]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    gradient = jax.jit(jax.grad(loss))(adapter)
    ours = dict(host_tensors(gradient, decoder.config))
    assert len(reference) == len(ours) == 2 * ((len(targets) - 1) * decoder.config.num_layers + 1)
    differences = {}
    for name, expected in reference.items():
        mine = ours[name.removeprefix("base_model.model.").removesuffix(".weight")]
        largest = np.abs(expected).max()
        assert largest > 1e-6, name
        differences[name] = float(np.abs(mine - expected).max() / largest)
    return differences


def greedy_continuations(
    model: torch.nn.Module, folder: Path
) -> tuple[list[list[int]], list[list[int]], float]:
    """(torch's tokens, ours, the largest difference of the last row's log-probabilities).

    Unequal prompts in one batch, against transformers one prompt at a time, without padding or
    cache. Prompts are drawn until the two likeliest tokens never come closer than rounding.
    """
    draw = np.random.RandomState(1)
    prompts, expected = [], []
    for length in PROMPT_LENGTHS:
        gap = 0.0
        while gap < SMALLEST_GAP:
            prompt = draw.randint(0, 64, length).tolist()
            continuation, gap = greedy(model, prompt, NEW_TOKENS)
        prompts.append(prompt)
        expected.append(continuation)
    decoder = load_decoder(folder, mesh=one_device())
    generated = generate(decoder, prompts, SamplingConfig(NEW_TOKENS))
    # Log-probabilities are those of the whole text read at once.
    whole = np.array([prompts[-1] + expected[-1]])
    logprobs = torch.log_softmax(torch.from_numpy(torch_logits(model, whole)), -1)[0].numpy()
    positions = np.arange(len(prompts[-1]) - 1, len(prompts[-1]) - 1 + NEW_TOKENS)
    difference = np.abs(generated[-1].logprobs - logprobs[positions, expected[-1]]).max()
    return expected, [list(one.tokens) for one in generated], float(difference)


def merged_difference(raw: dict, folder: Path, scratch: Path) -> float:
    """The largest difference of logits between PEFT's base and adapter and our merge of them, which
    transformers reads back."""
    adapted = torch_peft_model(raw, lora_targets(raw, EVERYWHERE))
    adapted.save_pretrained(scratch / "adapter")
    out = scratch / "merged"
    paths = ["--model.path", str(folder), "--adapter", str(scratch / "adapter"), "--out", str(out)]
    merge.main([*paths, "--max-shard-gb", "3e-5"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as those of weights missing or newly initialised
        merged, report = AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, output_loading_info=True
        )
    assert not any(report.values()), report
    expected = torch_logits(adapted)
    with adapted.disable_adapter():
        assert np.abs(torch_logits(adapted) - expected).max() > 1e-2
    ours = our_logits(load_decoder(out, mesh=one_device()))
    return float(max(np.abs(x - expected).max() for x in (torch_logits(merged), ours)))
