"""Ministral 3, the text half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import (
    COMMON,
    OWN_FILE,
    Family,
    read_rope,
    rope_of,
    write_rope,
)

# The names that these have in config.json, within the parameters of RoPE.
BETA, LENGTH = "llama_4_scaling_beta", "original_max_position_embeddings"


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Ministral 3 scales queries by their position, and may have one window for all layers."""
    if raw["layer_types"] is not None and len(set(raw["layer_types"])) > 1:
        raise UserError(f"layer_types are mixed; expected one for all layers. {OWN_FILE}")
    scaling, rope = rope_of(raw), read_rope(raw)
    length = rope.original_max_position_embeddings or scaling.get(LENGTH)
    for name, value in ((BETA, scaling.get(BETA)), (LENGTH, length)):
        if value is None:
            raise UserError(f"RoPE parameters lack {name}. {OWN_FILE}")
    rope = replace(rope, query_beta=scaling[BETA], original_max_position_embeddings=length)
    windows = (raw["sliding_window"] or 0,) * raw["num_hidden_layers"]
    return {"ropes": (rope,), "sliding_windows": windows}


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    (rope,) = config.ropes
    scaling = write_rope(rope) | {BETA: rope.query_beta}
    scaling[LENGTH] = rope.original_max_position_embeddings
    return {
        "pad_token_id": None,  # the default of transformers lies beyond small vocabularies
        "rope_scaling": scaling,
        "sliding_window": max(config.sliding_windows) or None,
    }


FAMILY = Family(
    models="Ministral 3",
    architecture="Ministral3ForCausalLM",
    defaults=COMMON
    | {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            LENGTH: 16384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            BETA: 0.1,
        },
        "sliding_window": None,
        "layer_types": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read=read,
    write=write,
)
