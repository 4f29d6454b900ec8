"""Llama 2, 3, 3.1 and 3.2, and the many models in their layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import COMMON, Family


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Llama has biases on all projections of the attention, or on none."""
    return {
        "qkv_bias": raw["attention_bias"],
        "out_bias": raw["attention_bias"],
        "mlp_bias": raw["mlp_bias"],
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


FAMILY = Family(
    models="Llama 2, 3, 3.1 and 3.2",
    architecture="LlamaForCausalLM",
    defaults=COMMON
    | {
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read=read,
    write=write,
)
