"""OLMo 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import COMMON, Family


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 2 normalises what attention and MLP return, and queries and keys over all heads."""
    return {
        "norms": "post",
        "wide_norms": True,
        "qk_norm": "projection",
        "qkv_bias": raw["attention_bias"],
        "out_bias": raw["attention_bias"],
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return {"attention_bias": config.qkv_bias}


FAMILY = Family(
    models="OLMo 2",
    architecture="Olmo2ForCausalLM",
    defaults=COMMON
    | {
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 50279,
    },
    read=read,
    write=write,
)
