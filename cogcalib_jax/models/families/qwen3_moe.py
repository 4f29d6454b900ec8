"""Qwen3 with experts: Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.models.families.base import COMMON, OWN_FILE, Family, require_whole
from cogcalib_jax.models.families.base import ExpertNames as Names


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen3 normalises each head of queries and keys; every layer must have experts."""
    # transformers 5 writes num_local_experts, checkpoints of the Hub have num_experts.
    number = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    require_whole(
        raw, number, "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"
    )
    _require_experts_everywhere(raw)
    if raw["norm_topk_prob"] not in (True, False):
        shown = raw["norm_topk_prob"]
        raise UserError(f"norm_topk_prob is {shown!r:.40}; expected true or false. {OWN_FILE}")
    window = (raw["sliding_window"] or 0) if raw["use_sliding_window"] else 0
    return {
        "qkv_bias": raw["attention_bias"],
        "out_bias": raw["attention_bias"],
        "qk_norm": "head",
        "sliding_windows": (window,) * raw["num_hidden_layers"],
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


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    window = max(config.sliding_windows)
    return {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
        "num_experts": config.experts.number,
        "num_experts_per_tok": config.experts.per_token,
        "moe_intermediate_size": config.experts.width,
        "norm_topk_prob": config.experts.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


FAMILY = Family(
    models="Qwen3 with experts",
    architecture="Qwen3MoeForCausalLM",
    defaults=COMMON
    | {
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
    read=read,
    write=write,
    renamed={"mlp.router": "mlp.gate"},
    experts=Names("mlp", {name: name for name in ("gate_proj", "up_proj", "down_proj")}),
)
