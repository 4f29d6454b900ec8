"""Write the golden models and adapters to disk as their own libraries would, without torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.golden.families import LORA_ALPHA, LORA_RANK, LORA_TARGETS, weight

GOLDEN = Path(__file__).parent


def golden(family: str) -> dict[str, np.ndarray]:
    """What torch computed for a family."""
    with np.load(GOLDEN / f"{family}.npz") as stored:
        return dict(stored)


def write_model(folder: Path, raw: dict, shapes: dict[str, list[int]]) -> Path:
    """A checkpoint folder with config.json as given and the agreed weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_adapter(
    folder: Path,
    shapes: dict[str, list[int]],
    vocab: int,
    hidden: int,
    targets_of: tuple[str, ...] = LORA_TARGETS,
) -> Path:
    """An adapter folder on `targets_of`, B away from zero, for a model of these shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = {
        name.removesuffix(".weight"): shape
        for name, shape in (shapes | {"lm_head.weight": [vocab, hidden]}).items()
        if name.endswith(".weight") and name.split(".")[-2] in targets_of
    }
    tensors = {}
    for module, (out_features, in_features) in targets.items():
        for part, shape in (
            ("lora_A", (LORA_RANK, in_features)),
            ("lora_B", (out_features, LORA_RANK)),
        ):
            name = f"base_model.model.{module}.{part}.weight"
            tensors[name] = weight(name, shape)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "target_modules": list(targets_of),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
