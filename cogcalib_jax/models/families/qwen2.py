"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import COMMON, Family, layer_types, read_windows

DEFAULTS = COMMON | {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def read_qwen_windows(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the sliding window of each layer: none in the first `max_window_layers` layers."""
    layers, kinds = raw["num_hidden_layers"], raw["layer_types"]
    window = raw["sliding_window"] if raw["use_sliding_window"] else 0
    if kinds is None:
        full = max(0, raw["max_window_layers"])
        kinds = ["full_attention"] * min(full, layers) + ["sliding_attention"] * (layers - full)
    return read_windows(kinds, window)


def write_qwen_windows(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_qwen_windows` reads."""
    window = max(config.sliding_windows)
    return {
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
        "layer_types": layer_types(config),
        "max_window_layers": config.num_layers,
    }


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2 has biases on queries, keys and values."""
    return {"qkv_bias": True, "sliding_windows": read_qwen_windows(raw)}


FAMILY = Family(
    models="Qwen2 and Qwen2.5",
    architecture="Qwen2ForCausalLM",
    defaults=DEFAULTS,
    read=read,
    write=write_qwen_windows,
)
