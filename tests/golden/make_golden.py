"""Regenerate the golden files from transformers and PEFT (needs torch):

    python -m tests.golden.make_golden              # all, or those named behind it

One small file per family: what torch computes in float32 for weights that follow from their names.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.golden.families import (
    FAMILIES,
    LORA_ALPHA,
    LORA_RANK,
    TOKENS,
    lora_targets,
    weight,
)

FOLDER = Path(__file__).parent
NEW_TOKENS = 24
# The two likeliest tokens differ by at least this in every step that is stored, so that greedy
# decoding cannot turn on a rounding error.
SMALLEST_GAP = 1e-3


def torch_model(raw: dict) -> torch.nn.Module:
    """The family's model in transformers with the agreed weights."""
    raw = dict(raw)
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def torch_peft_model(raw: dict, targets: tuple[str, ...]) -> torch.nn.Module:
    """The same with an adapter on each target, B away from zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied embeddings: merging is not what is done here
        model = get_peft_model(
            torch_model(raw),
            LoraConfig(
                r=LORA_RANK,
                lora_alpha=LORA_ALPHA,
                target_modules=list(targets),
                task_type="CAUSAL_LM",
            ),
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                name = name.replace(".default", "")
                parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model.eval()


def lora_gradients(model: torch.nn.Module, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of the mean next-token cross-entropy, by PEFT's stored names."""
    ids = torch.from_numpy(tokens)
    logits = model(ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].flatten()
    )
    model.zero_grad()
    loss.backward()
    return {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int], new_tokens: int) -> tuple[list[int], float]:
    """The greedy continuation without any cache, and the smallest gap between the two likeliest."""
    ids, gap = list(prompt), np.inf
    for _ in range(new_tokens):
        top = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
        gap = min(gap, float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
    return ids[len(prompt) :], gap


def main(names: list[str]) -> None:
    for family in names or FAMILIES:
        raw = FAMILIES[family]
        model = torch_model(raw)
        with torch.no_grad():
            logits = model(torch.from_numpy(TOKENS)).logits.numpy()
        shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        prompts = [TOKENS[0, :9].tolist(), TOKENS[1, :4].tolist()]
        continuations, gaps = zip(*(greedy(model, p, NEW_TOKENS) for p in prompts), strict=True)
        assert min(gaps) > SMALLEST_GAP, (family, gaps)
        gradients = lora_gradients(torch_peft_model(raw, lora_targets(raw)), TOKENS)
        np.savez_compressed(
            FOLDER / f"{family}.npz",
            shapes=np.array(json.dumps(shapes)),
            logits=logits[:, ::3],
            greedy=np.array(continuations),
            **{f"gradient:{name}": gradient for name, gradient in gradients.items()},
        )
        print(family, f"gap {min(gaps):.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
