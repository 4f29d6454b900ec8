"""Mistral, Mixtral and Ministral 3, and the text half of those that see images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig, ExpertsConfig
from cogcalib_jax.models.families.base import (
    OWN_FILE,
    ExpertNames,
    Family,
    TextHalf,
    layer_types,
    one_window,
    read_rope,
    read_windows,
    require_whole,
    rope_of,
    widest,
    write_rope,
)

# The names that these have in config.json, within the parameters of RoPE.
BETA, LENGTH = "llama_4_scaling_beta", "original_max_position_embeddings"


def read_mistral(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every layer of a Mistral has the same sliding window; Ministral's `layer_types` choose."""
    return {"sliding_windows": read_windows(raw, every=None)}


def write_mistral(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_mistral` reads."""
    keys: dict[str, Any] = {"sliding_window": widest(config)}
    if len(set(config.sliding_windows)) > 1:
        keys["layer_types"] = layer_types(config)  # transformers reads such a file as Ministral's
    return keys


def read_ministral3(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Ministral 3 scales queries by their position, and may have one window for all layers."""
    if raw["layer_types"] is not None and len(set(raw["layer_types"])) > 1:
        raise UserError(f"layer_types are mixed; expected one for all layers. {OWN_FILE}")
    scaling, rope = rope_of(raw), read_rope(raw)
    length = rope.original_max_position_embeddings or scaling.get(LENGTH)
    for name, value in ((BETA, scaling.get(BETA)), (LENGTH, length)):
        if value is None:
            raise UserError(f"RoPE parameters lack {name}. {OWN_FILE}")
    rope = replace(rope, query_beta=scaling[BETA], original_max_position_embeddings=length)
    return {"ropes": (rope,), "sliding_windows": one_window(raw)}


def write_ministral3(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_ministral3` reads."""
    (rope,) = config.ropes
    scaling = write_rope(rope) | {BETA: rope.query_beta}
    scaling[LENGTH] = rope.original_max_position_embeddings
    return {
        "pad_token_id": None,  # the default of transformers lies beyond small vocabularies
        "rope_scaling": scaling,
        "sliding_window": widest(config),
    }


def read_mixtral(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every MLP is a mixture of experts whose weights sum to 1 for a token."""
    require_whole(raw, "num_local_experts", "num_experts_per_tok")
    return {
        "sliding_windows": one_window(raw),
        "experts": ExpertsConfig(
            number=raw["num_local_experts"],
            per_token=raw["num_experts_per_tok"],
            width=raw["intermediate_size"],
        ),
    }


def write_mixtral(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read_mixtral` reads."""
    return {
        "sliding_window": widest(config),
        "num_local_experts": config.experts.number,
        "num_experts_per_tok": config.experts.per_token,
    }


MISTRAL = Family(
    models="Mistral",
    architecture="MistralForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "layer_types": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read=read_mistral,
    write=write_mistral,
)
MINISTRAL3 = Family(
    models="Ministral 3",
    architecture="Ministral3ForCausalLM",
    defaults={
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
    read=read_ministral3,
    write=write_ministral3,
)
MIXTRAL = Family(
    models="Mixtral",
    architecture="MixtralForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    read=read_mixtral,
    write=write_mixtral,
    renamed={"mlp.router": "block_sparse_moe.gate"},
    experts=ExpertNames(
        module="block_sparse_moe", matrices={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    ),
)
FAMILIES = {
    "ministral3": MINISTRAL3,
    "mistral": MISTRAL,
    "mistral3": TextHalf(
        "the text half of Mistral Small 3 and Ministral 3",
        {"mistral": MISTRAL, "ministral3": MINISTRAL3},
    ),
    "mixtral": MIXTRAL,
}
