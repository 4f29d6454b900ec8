"""OLMo 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import (
    BIAS,
    Family,
    pattern,
    read_layer_ropes,
    read_windows,
    window_keys,
    write_layer_ropes,
)

THETA = 500000.0


def read_olmo2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 2 normalises what attention and MLP return, and queries and keys over all heads."""
    return {"norms": "post", "wide_norms": True, "qk_norm": "projection"}


def read_olmo3(raw: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 3 is OLMo 2 with three sliding layers of four, whose RoPE is never scaled."""
    if raw["rope_theta"] != THETA and not raw.get("rope_parameters"):
        raise UserError(
            f"rope_theta is {raw['rope_theta']!r:.40}; expected {THETA:.0f}, since versions of"
            " transformers disagree on the RoPE of sliding layers otherwise. Give rope_parameters"
            " for each layer type"
        )
    kinds = raw["layer_types"]
    if kinds is None:
        kinds = pattern(raw["num_hidden_layers"], every=4)
    windows = read_windows({**raw, "layer_types": kinds})
    ropes = read_layer_ropes(raw, kinds, THETA)
    return read_olmo2(raw) | {"sliding_windows": windows} | ropes


def write_olmo3(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_olmo3` reads."""
    return window_keys(config) | write_layer_ropes(config, THETA)


OLMO2 = Family(
    models="OLMo 2",
    architecture="Olmo2ForCausalLM",
    defaults={
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 50279,
    },
    plain=BIAS,
    read=read_olmo2,
)
OLMO3 = Family(
    models="OLMo 3",
    architecture="Olmo3ForCausalLM",
    defaults=OLMO2.defaults | {"sliding_window": 4096, "layer_types": None, "rope_theta": THETA},
    plain=BIAS,
    read=read_olmo3,
    write=write_olmo3,
)
FAMILIES = {"olmo2": OLMO2, "olmo3": OLMO3}
