"""Granite 3, the dense models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import llama
from cogcalib_jax.models.families.base import Family

# Four factors, by their keys in config.json; all 1 where the file leaves them out.
FACTORS = {
    "embedding_multiplier": "embed_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention_scale",
    "logits_scaling": "logits_divisor",
}


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Granite is a Llama with four factors; the attention's stands in place of 1/sqrt(head_dim)."""
    return llama.read(raw) | {field: raw[key] for key, field in FACTORS.items()}


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return llama.write(config) | {key: getattr(config, field) for key, field in FACTORS.items()}


FAMILY = Family(
    models="Granite 3 dense",
    architecture="GraniteForCausalLM",
    defaults=llama.FAMILY.defaults | dict.fromkeys(FACTORS, 1.0),
    read=read,
    write=write,
)
