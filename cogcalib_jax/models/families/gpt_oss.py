"""gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.models.families.base import (
    BIAS,
    ExpertNames,
    Family,
    read_windows,
    require_whole,
    window_keys,
    wrong,
)


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """gpt-oss has attention sinks, biases, and experts with a clamped SwiGLU."""
    require_whole(raw, "num_local_experts", "num_experts_per_tok")
    for name in ("swiglu_limit", "swiglu_alpha"):
        value = raw[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise wrong(name, value, "a number above 0")
    return {
        "sinks": True,
        "wide_norms": True,
        "sliding_windows": read_windows(raw, every=2),
        "experts": ExpertsConfig(
            number=raw["num_local_experts"],
            per_token=raw["num_experts_per_tok"],
            width=raw["intermediate_size"],
            bias=True,
            limit=float(raw["swiglu_limit"]),
            alpha=float(raw["swiglu_alpha"]),
        ),
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    keys: dict[str, Any] = {}
    (rope,) = config.ropes
    if rope.type == "default":  # a file without RoPE parameters means yarn
        keys["rope_parameters"] = {"rope_type": "default", "rope_theta": rope.theta}
    return keys | {
        **window_keys(config),
        "num_local_experts": config.experts.number,
        "num_experts_per_tok": config.experts.per_token,
        "swiglu_limit": config.experts.limit,
        "swiglu_alpha": config.experts.alpha,
    }


GPT_OSS = Family(
    models="gpt-oss",
    architecture="GptOssForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "attention_bias": True,
        "sliding_window": 128,
        "layer_types": None,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    plain=BIAS,
    read=read,
    write=write,
    experts=ExpertNames(module="mlp", matrices=None),
    packed="mxfp4",
)
FAMILIES = {"gpt_oss": GPT_OSS}
