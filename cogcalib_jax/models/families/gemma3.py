"""Gemma 3: the text models, and the text half of those that see images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import gemma2
from cogcalib_jax.models.families.base import (
    Family,
    TextHalf,
    pattern,
    read_layer_ropes,
    require_whole,
    write_layer_ropes,
)

LOCAL_THETA = "rope_local_base_freq"


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 3 is Gemma 2 with norms of query and key heads, without caps, and with another RoPE in
    sliding layers: five of six, of which older files give the pattern alone."""
    require_whole(raw, "sliding_window_pattern")
    kinds = raw["layer_types"]
    if raw["attn_logit_softcapping"] is not None:
        raise UserError(
            f"attn_logit_softcapping is {raw['attn_logit_softcapping']!r:.40}; expected none, for"
            " transformers computes Gemma 3 without it. Remove it"
        )
    if kinds is None:
        kinds = pattern(raw["num_hidden_layers"], raw["sliding_window_pattern"])
    common = gemma2.read({**raw, "layer_types": kinds})
    return common | {"qk_norm": "head"} | read_layer_ropes(raw, kinds, raw[LOCAL_THETA])


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    local = config.ropes[1].theta
    return gemma2.write(config) | {LOCAL_THETA: local} | write_layer_ropes(config, local)


FAMILY = Family(
    models="Gemma 3 text",
    architecture="Gemma3ForCausalLM",
    defaults=gemma2.FAMILY.defaults
    | {
        # The Hub's files leave out what equals the class.
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        LOCAL_THETA: 1e4,
    },
    read=read,
    write=write,
    activation_key=gemma2.ACTIVATION,
)
TEXT_HALF = TextHalf(models="the text half of Gemma 3", families={"gemma3_text": FAMILY})
