"""Qwen3, the dense models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import Family
from cogcalib_jax.models.families.qwen2 import DEFAULTS, read_qwen_windows, write_qwen_windows


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen3 normalises each head of queries and keys."""
    return {
        "qkv_bias": raw["attention_bias"],
        "out_bias": raw["attention_bias"],
        "qk_norm": "head",
        "sliding_windows": read_qwen_windows(raw),
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return {"attention_bias": config.qkv_bias} | write_qwen_windows(config)


FAMILY = Family(
    models="Qwen3 dense",
    architecture="Qwen3ForCausalLM",
    defaults=DEFAULTS | {"head_dim": 128},
    read=read,
    write=write,
)
