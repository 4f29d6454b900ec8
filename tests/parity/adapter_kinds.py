"""An adapter of PEFT on both sides of the border: read, trained, written again, merged.

PEFT computes what must come out, in float64. `compare` makes an adapter with given settings on a
small random model, and raises AssertionError by what differs.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
from flax import nnx
from safetensors.numpy import load_file

from cogcalib_jax.hf.adapter import load_adapter, save_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.merge import BaseConfig, MergeConfig, merge
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.models.parameters import merge_lora
from tests.golden.make_golden import torch_model
from tests.models.small import forward, one_device

TOKENS = np.random.RandomState(5).randint(0, 64, (2, 12))
STEPS, RATE = 2, 0.03
# DoRA on many modules has gradients so long that one step moves the logits by themselves, and
# PEFT's own float32 is then 8e-6 from its float64.
LONGEST = 1.0


def peft_adapter(raw: dict, folder: Path, settings: dict[str, Any], seed: int = 0) -> Any:
    """Return PEFT's model with a random adapter of these settings, which is written to `folder`."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(
            **{"init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings
        )
        model = peft.get_peft_model(torch_model(raw), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # larger ones make float32 itself inexact
                    parameter.mul_(0.1)
                elif parameter.requires_grad and "lora_A" not in name:
                    parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return model.double().eval()


def peft_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def our_logits(decoder: Any) -> np.ndarray:
    return np.asarray(forward(decoder, TOKENS.astype(np.int32))[1])


def peft_steps(model: Any) -> None:
    """Some steps of gradient descent on the next tokens' mean NLL, with clipped gradients."""
    ids = torch.from_numpy(TOKENS)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    for _ in range(STEPS):
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 64), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        length = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in trained]))
        for parameter in trained:
            parameter.grad *= min(1.0, LONGEST / length)
        optimizer.step()


def our_steps(decoder: Any) -> Any:
    """Return the decoder after the same."""
    graphdef, lora, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
    ids = TOKENS.astype(np.int32)

    @jax.jit
    def step(lora: nnx.State) -> nnx.State:
        def loss(lora: nnx.State) -> jax.Array:
            model = nnx.merge(graphdef, lora, frozen)
            logits = model.logits(model.hidden_states(ids))[:, :-1]
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
            return nll.mean()

        gradient = jax.grad(loss)(lora)
        rate = RATE * jnp.minimum(1.0, LONGEST / optax.global_norm(gradient))
        return jax.tree.map(lambda x, g: x - rate * g, lora, gradient)

    for _ in range(STEPS):
        lora = step(lora)
    return nnx.merge(graphdef, lora, frozen)


def far(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, by the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(raw: dict, base: Path, folder: Path, settings: dict[str, Any], seed: int = 0) -> None:
    """Read, train, write and merge an adapter of these settings, and compare with PEFT.

    base: folder of the model `raw`. folder: empty.
    """
    theirs = peft_adapter(raw, folder / "theirs", settings, seed)
    decoder = load_decoder(base, lora=read_lora_config(folder / "theirs"), mesh=one_device())
    load_adapter(folder / "theirs", decoder)
    found = far(our_logits(decoder), peft_logits(theirs))
    assert found < 1e-5, f"read: {found}"
    with theirs.disable_adapter():
        assert far(our_logits(decoder), peft_logits(theirs)) > 1e-3, "shows nothing"

    before = our_logits(decoder)
    peft_steps(theirs)
    decoder = our_steps(decoder)
    moved = far(before, our_logits(decoder))
    # One module of one layer moves the logits by as little as 2.6e-4; the tolerance is 1e-5.
    assert moved > 1e-4, f"hardly trained: {moved}"
    found = far(our_logits(decoder), peft_logits(theirs))
    assert found < 1e-5, f"trained: {found}"

    save_adapter(folder / "ours", decoder, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(torch_model(raw), folder / "ours").double()
    found = far(our_logits(decoder), peft_logits(again))
    assert found < 1e-5, f"written: {found}"
    before, after = (peft_tensors(folder / name) for name in ("theirs", "ours"))
    assert before == after, f"written: {sorted(set(before) ^ set(after))}"

    found = far(our_logits(merge_lora(decoder)), peft_logits(theirs))
    assert found < 1e-5, f"merged in memory: {found}"
    config = MergeConfig(
        out=str(folder / "merged"), adapter=str(folder / "ours"), model=BaseConfig(str(base))
    )
    merged = load_decoder(merge(config, []), mesh=one_device())
    found = far(our_logits(merged), peft_logits(theirs))
    assert found < 1e-5, f"merged: {found}"


def peft_tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes in an adapter's file, without copies of the base."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {n: t.shape for n, t in tensors.items() if not n.endswith("base_layer.weight")}
