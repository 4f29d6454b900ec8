"""Gemma 2 and 3: the text models, and the text half of those that see images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import (
    BIAS,
    Family,
    TextHalf,
    pattern,
    read_layer_ropes,
    read_windows,
    require_whole,
    window_keys,
    write_layer_ropes,
    wrong,
)

ACTIVATION = "hidden_activation"
LOCAL_THETA = "rope_local_base_freq"


def read_gemma2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 2 has four norms a layer, which multiply by 1 + weight, and caps scores and logits."""
    require_whole(raw, "query_pre_attn_scalar")
    return {
        "norms": "sandwich",
        "norm_offset": 1.0,
        "wide_norms": True,
        "attention_scale": raw["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": raw["attn_logit_softcapping"],
        "final_softcap": raw["final_logit_softcapping"],
        "embed_scale": raw["hidden_size"] ** 0.5,
        "sliding_windows": read_windows(raw, every=2),
    }


def write_gemma2(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_gemma2` reads."""
    return {
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
        **window_keys(config),
    }


def read_gemma3(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 3 is Gemma 2 with norms of query and key heads, without caps, and with another RoPE in
    sliding layers: five of six, of which older files give the pattern alone."""
    kinds = raw["layer_types"]
    if raw["attn_logit_softcapping"] is not None:
        why = "none, for transformers computes Gemma 3 without it"
        raise wrong("attn_logit_softcapping", raw["attn_logit_softcapping"], why, "Remove it")
    if kinds is None:
        require_whole(raw, "sliding_window_pattern")
        kinds = pattern(raw["num_hidden_layers"], raw["sliding_window_pattern"])
    common = read_gemma2({**raw, "layer_types": kinds})
    return common | {"qk_norm": "head"} | read_layer_ropes(raw, kinds, raw[LOCAL_THETA])


def write_gemma3(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_gemma3` reads."""
    local = config.ropes[1].theta
    return write_gemma2(config) | {LOCAL_THETA: local} | write_layer_ropes(config, local)


GEMMA2 = Family(
    models="Gemma 2",
    architecture="Gemma2ForCausalLM",
    defaults={
        ACTIVATION: "gelu_pytorch_tanh",
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    plain=BIAS,
    read=read_gemma2,
    write=write_gemma2,
    activation_key=ACTIVATION,
)
GEMMA3 = Family(
    models="Gemma 3 text",
    architecture="Gemma3ForCausalLM",
    defaults=GEMMA2.defaults
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
    plain=BIAS,
    read=read_gemma3,
    write=write_gemma3,
    activation_key=ACTIVATION,
)
FAMILIES = {
    "gemma2": GEMMA2,
    "gemma3": TextHalf("the text half of Gemma 3", {"gemma3_text": GEMMA3}),
    "gemma3_text": GEMMA3,
}
