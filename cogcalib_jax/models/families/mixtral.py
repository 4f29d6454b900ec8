"""Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.models.families.base import COMMON, ExpertNames, Family, require_whole


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every MLP is a mixture of experts whose weights sum to 1 for a token."""
    require_whole(raw, "num_local_experts", "num_experts_per_tok")
    return {
        "sliding_windows": (raw["sliding_window"] or 0,) * raw["num_hidden_layers"],
        "experts": ExpertsConfig(
            number=raw["num_local_experts"],
            per_token=raw["num_experts_per_tok"],
            width=raw["intermediate_size"],
        ),
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return {
        "sliding_window": max(config.sliding_windows) or None,
        "num_local_experts": config.experts.number,
        "num_experts_per_tok": config.experts.per_token,
    }


FAMILY = Family(
    models="Mixtral",
    architecture="MixtralForCausalLM",
    defaults=COMMON
    | {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    read=read,
    write=write,
    renamed={"mlp.router": "block_sparse_moe.gate"},
    experts=ExpertNames(
        module="block_sparse_moe",
        matrices={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ),
)
