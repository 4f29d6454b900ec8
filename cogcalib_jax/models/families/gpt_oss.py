"""gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.models.families.base import (
    COMMON,
    OWN_FILE,
    ExpertNames,
    Family,
    layer_types,
    read_windows,
    require_whole,
)


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """gpt-oss has attention sinks, biases, and experts with a clamped SwiGLU."""
    require_whole(raw, "num_local_experts", "num_experts_per_tok")
    for name in ("swiglu_limit", "swiglu_alpha"):
        value = raw[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{name} is {value!r:.40}; expected a number above 0. {OWN_FILE}")
    kinds = raw["layer_types"]
    if kinds is None:
        both = ("sliding_attention", "full_attention")
        kinds = [both[layer % 2] for layer in range(raw["num_hidden_layers"])]
    return {
        "qkv_bias": raw["attention_bias"],
        "out_bias": raw["attention_bias"],
        "sinks": True,
        "wide_norms": True,
        "sliding_windows": read_windows(kinds, raw["sliding_window"]),
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
        "attention_bias": config.qkv_bias,
        "sliding_window": max(config.sliding_windows) or None,
        "layer_types": layer_types(config),
        "num_local_experts": config.experts.number,
        "num_experts_per_tok": config.experts.per_token,
        "swiglu_limit": config.experts.limit,
        "swiglu_alpha": config.experts.alpha,
    }


FAMILY = Family(
    models="gpt-oss",
    architecture="GptOssForCausalLM",
    defaults=COMMON
    | {
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
    read=read,
    write=write,
    experts=ExpertNames(module="mlp", matrices=None),
    packed="mxfp4",
)
