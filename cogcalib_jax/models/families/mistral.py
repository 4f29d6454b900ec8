"""Mistral 7B and the models in its layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import COMMON, Family, layer_types, read_windows


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every layer of a Mistral has the same sliding window; Ministral's `layer_types` choose."""
    kinds = raw.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention"] * raw["num_hidden_layers"]
    return {"sliding_windows": read_windows(kinds, raw["sliding_window"])}


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    keys: dict[str, Any] = {"sliding_window": max(config.sliding_windows) or None}
    if len(set(config.sliding_windows)) > 1:
        keys["layer_types"] = layer_types(config)  # transformers reads such a file as Ministral's
    return keys


FAMILY = Family(
    models="Mistral",
    architecture="MistralForCausalLM",
    defaults=COMMON
    | {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read=read,
    write=write,
)
