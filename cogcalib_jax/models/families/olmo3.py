"""OLMo 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import olmo2
from cogcalib_jax.models.families.base import (
    Family,
    layer_types,
    pattern,
    read_layer_ropes,
    read_windows,
    write_layer_ropes,
)

THETA = 500000.0


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
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
    windows = read_windows(kinds, raw["sliding_window"])
    ropes = read_layer_ropes(raw, kinds, THETA)
    return olmo2.read(raw) | {"sliding_windows": windows} | ropes


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    own = {
        "sliding_window": max(config.sliding_windows) or None,
        "layer_types": layer_types(config),
    }
    return olmo2.write(config) | own | write_layer_ropes(config, THETA)


FAMILY = Family(
    models="OLMo 3",
    architecture="Olmo3ForCausalLM",
    defaults=olmo2.FAMILY.defaults
    | {"sliding_window": 4096, "layer_types": None, "rope_theta": THETA},
    read=read,
    write=write,
)
