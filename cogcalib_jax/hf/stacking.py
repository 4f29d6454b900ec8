"""Interpolate between two adapters of one base: an ordinary PEFT adapter between start and end.

    cogcalib interpolate --start runs/world-0/start_adapter --adapter runs/world-0/sft/adapter \\
        --share 0.6 --out between

The weights of the result are (1 - share) W_start + share W_end. Its A are those of both adapters on
top of each other, its B those beside each other, times their shares; so its rank is the sum of
theirs, and one pass answers a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError, check
from cogcalib_jax.files import read_object, whole_folder
from cogcalib_jax.hf.adapter import read_calibration
from cogcalib_jax.hf.adapter_config import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    adapter_tensors,
    put_adapter,
    read_lora_config,
)
from cogcalib_jax.hf.tokenizer import tokenizer_files
from cogcalib_jax.models.config import LORA_TARGETS, LoraConfig

A, B = ".lora_A.weight", ".lora_B.weight"
BASE_NAME = "base_model_name_or_path"


@dataclass(frozen=True)
class InterpolateConfig:
    """Two adapters in PEFT layout on one base, and how far from the first one to go."""

    adapter: str
    """folder of the adapter at the end"""
    out: str
    """folder of the adapter between; new or empty"""
    share: float
    """weight of the end, from 0 to 1"""
    start: str | None = None
    """folder of the adapter at the start; unset: the bare base"""

    def __post_init__(self) -> None:
        check(self.out != "", "out", "must name a folder")
        check(0 <= self.share <= 1, "share", "must be a number from 0 to 1")


def stack_adapters(
    start: str | Path | None, end: str | Path, share: float, folder: str | Path
) -> None:
    """Write the adapter whose weights are (1 - share) of `start`'s and `share` of `end`'s.

    It has no calibration.json: what was fitted for either adapter does not hold for it.

    Args:
        start: folder of an adapter; None: the bare base, whose adapter is zero.
        end: folder of an adapter of the same base. Rank, alpha and modules may differ.
        share: from 0 to 1.
        folder: of the result; new or empty. It also gets the tokenizer of `end`, if it has one.

    Raises:
        UserError: a share out of range; adapters of different bases, or of another kind than LoRA.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share is {share:g}; expected a number from 0 to 1")
    end = Path(end)
    weights = [(end, share)] if start is None else [(Path(start), 1 - share), (end, share)]
    _require_one_base([adapter for adapter, _ in weights])
    configs = [_plain_config(adapter) for adapter, _ in weights]
    scale, parts = configs[-1].scale, []
    for (adapter, weight), config in zip(weights, configs, strict=True):
        parts.append(_matrices(adapter, config, weight / scale))
    ranks = [max(len(a) for a, _ in one.values()) for one in parts]
    modules = list(dict.fromkeys(name for one in parts for name in one))
    tensors = {}
    for module in modules:
        for kind, array in zip((A, B), _stacked(module, parts, ranks), strict=True):
            tensors[f"{PREFIX}{module}{kind}"] = array
    alpha = scale * sum(ranks)
    plain = {None if c.placement else c.modules for c in configs}
    same = len(plain) == 1 and None not in plain
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": read_object(end / CONFIG_FILE, "").get(BASE_NAME),
        "r": sum(ranks),
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": [n for n in LORA_TARGETS if n in configs[-1].modules]
        if same
        else modules,
        "bias": "none",
        "inference_mode": True,
    }
    with whole_folder(Path(folder)) as building:
        put_adapter(building, raw, tensors)
        for name, file in tokenizer_files(end).items():
            (building / name).write_bytes(file.read_bytes())


Matrices = dict[str, tuple[np.ndarray, np.ndarray]]
"""module, as the adapter names it -> A `[rank, in]` and B `[out, rank]` float32, B scaled"""


def _plain_config(adapter: Path) -> LoraConfig:
    config = read_lora_config(adapter)
    if config.distributions == ("any",):
        raise UserError(
            f"{adapter}: is {config.kind} or trains embeddings, whose weights are no sum of B A;"
            " expected LoRA. Merge it first, or give an adapter of another kind"
        )
    return config


def _matrices(adapter: Path, config: LoraConfig, weight: float) -> Matrices:
    """Return A and B of every module, B times `weight` and the module's own factor."""
    if not (adapter / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{adapter / WEIGHTS_FILE}: no such file; give a folder that holds a whole adapter"
        )
    tensors, prefix = adapter_tensors(adapter)
    found = {}
    for name in tensors:
        if not name.endswith(".lora_A"):
            continue
        module = name.removesuffix(".lora_A")
        layer = next((int(part) for part in module.split(".") if part.isdigit()), 0)
        _, factor = config.placed(module.rpartition(".")[2], layer)
        a, b = (tensors[f"{module}{k}"].read().astype(np.float32) for k in (".lora_A", ".lora_B"))
        inside = module.removeprefix("model.")
        own = module if inside == module else prefix + inside
        found[own] = (a, np.float32(weight * factor) * b)
    return found


def _stacked(module: str, parts: list[Matrices], ranks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return one A and one B; what an adapter lacks of its rank is zero."""
    wide = next(one[module] for one in parts if module in one)
    upper, beside = [], []
    for one, rank in zip(parts, ranks, strict=True):
        a, b = one.get(module, (np.zeros((0, wide[0].shape[1])), np.zeros((len(wide[1]), 0))))
        upper.append(np.pad(a, ((0, rank - len(a)), (0, 0))))
        beside.append(np.pad(b, ((0, 0), (0, rank - b.shape[1]))))
    return np.concatenate(upper).astype(np.float32), np.concatenate(beside, 1).astype(np.float32)


def _require_one_base(adapters: list[Path]) -> None:
    """Refuse adapters whose calibration.json name different bases; other tools write none."""
    stored = {str(adapter): read_calibration(adapter) for adapter in adapters}
    bases = {place: one["base"]["hash"] for place, one in stored.items() if one}
    if len(set(bases.values())) > 1:
        raise UserError(f"{' and '.join(bases)}: were trained on different bases; expected one")


def main(argv: list[str]) -> None:
    """Run `cogcalib interpolate` with the words after it."""
    loaded = load_config(
        InterpolateConfig, argv, prog="cogcalib interpolate", description=__doc__ or ""
    )
    config = loaded.config
    stack_adapters(config.start, config.adapter, config.share, config.out)
    print(f"Adapter: {config.out}")
