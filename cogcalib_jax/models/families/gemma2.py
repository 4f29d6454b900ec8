"""Gemma 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import (
    COMMON,
    Family,
    layer_types,
    pattern,
    read_windows,
    require_whole,
)

ACTIVATION = "hidden_activation"


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 2 has four norms a layer, which multiply by 1 + weight, and caps scores and logits."""
    if raw["use_bidirectional_attention"]:
        raise UserError(
            "use_bidirectional_attention is true; expected causal attention. Use a model that"
            " generates text"
        )
    require_whole(raw, "query_pre_attn_scalar")
    kinds = raw["layer_types"]
    if kinds is None:
        kinds = pattern(raw["num_hidden_layers"], every=2)
    return {
        "norms": "sandwich",
        "norm_offset": 1.0,
        "wide_norms": True,
        "qkv_bias": raw["attention_bias"],
        "out_bias": raw["attention_bias"],
        "attention_scale": raw["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": raw["attn_logit_softcapping"],
        "final_softcap": raw["final_logit_softcapping"],
        "embed_scale": raw["hidden_size"] ** 0.5,
        "sliding_windows": read_windows(kinds, raw["sliding_window"]),
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return {
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": max(config.sliding_windows) or None,
        "layer_types": layer_types(config),
    }


FAMILY = Family(
    models="Gemma 2",
    architecture="Gemma2ForCausalLM",
    defaults=COMMON
    | {
        ACTIVATION: "gelu_pytorch_tanh",
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    read=read,
    write=write,
    activation_key=ACTIVATION,
)
