"""Qwen2, Qwen2.5 and Qwen3, dense or with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.models.families.base import (
    BIAS,
    ExpertNames,
    Family,
    layer_types,
    one_window,
    read_windows,
    require_whole,
    widest,
    wrong,
)


def read_qwen_windows(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the sliding window of each layer: none in the first `max_window_layers` layers."""
    layers, kinds = raw["num_hidden_layers"], raw["layer_types"]
    window = raw["sliding_window"] if raw["use_sliding_window"] else 0
    if kinds is None:
        full = max(0, raw["max_window_layers"])
        kinds = ["full_attention"] * min(full, layers) + ["sliding_attention"] * (layers - full)
    return read_windows({**raw, "layer_types": kinds, "sliding_window": window})


def write_qwen_windows(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_qwen_windows` reads."""
    return {
        "use_sliding_window": widest(config) is not None,
        "sliding_window": widest(config),
        "layer_types": layer_types(config),
        "max_window_layers": config.num_layers,
    }


def read_qwen2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2 has biases on queries, keys and values."""
    return {"qkv_bias": True, "sliding_windows": read_qwen_windows(raw)}


def read_qwen3(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen3 normalises each head of queries and keys."""
    return {"qk_norm": "head", "sliding_windows": read_qwen_windows(raw)}


def read_qwen3_moe(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen3 with experts must have them in every layer."""
    # transformers 5 writes num_local_experts, checkpoints of the Hub have num_experts.
    number = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    require_whole(
        raw, number, "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"
    )
    _require_experts_everywhere(raw)
    if raw["norm_topk_prob"] not in (True, False):
        raise wrong("norm_topk_prob", raw["norm_topk_prob"], "true or false")
    return {
        "qk_norm": "head",
        "sliding_windows": one_window(raw, slides=raw["use_sliding_window"]),
        "experts": ExpertsConfig(
            number=raw[number],
            per_token=raw["num_experts_per_tok"],
            width=raw["moe_intermediate_size"],
            renormalise=raw["norm_topk_prob"],
        ),
    }


def _require_experts_everywhere(raw: Mapping[str, Any]) -> None:
    step, dense = raw["decoder_sparse_step"], raw["mlp_only_layers"] or []
    layers = range(raw["num_hidden_layers"])
    plain = [i for i in layers if i in dense or (i + 1) % step]
    if plain:
        raise UserError(
            f"decoder_sparse_step {step} and mlp_only_layers {dense!r:.40} leave {len(plain)}"
            f" layers without experts (the first is {plain[0]}); expected experts in every layer."
            " Use a model with them"
        )


def write_qwen3_moe(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_qwen3_moe` reads."""
    return {
        "use_sliding_window": widest(config) is not None,
        "sliding_window": widest(config),
        "num_experts": config.experts.number,
        "num_experts_per_tok": config.experts.per_token,
        "moe_intermediate_size": config.experts.width,
        "norm_topk_prob": config.experts.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


QWEN2 = Family(
    models="Qwen2 and Qwen2.5",
    architecture="Qwen2ForCausalLM",
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    },
    read=read_qwen2,
    write=write_qwen_windows,
)
QWEN3 = Family(
    models="Qwen3 dense",
    architecture="Qwen3ForCausalLM",
    defaults=QWEN2.defaults | {"head_dim": 128},
    plain=BIAS,
    read=read_qwen3,
    write=write_qwen_windows,
)
QWEN3_MOE = Family(
    models="Qwen3 with experts",
    architecture="Qwen3MoeForCausalLM",
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    },
    plain=BIAS,
    read=read_qwen3_moe,
    write=write_qwen3_moe,
    renamed={"mlp.router": "mlp.gate"},
    experts=ExpertNames("mlp", {name: name for name in ("gate_proj", "up_proj", "down_proj")}),
)
FAMILIES = {"qwen2": QWEN2, "qwen3": QWEN3, "qwen3_moe": QWEN3_MOE}
