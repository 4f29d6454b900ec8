"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import Family, one_window, read_rope, rope_of, widest

ROPES = ("default", "longrope")


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Phi-3 has fused projections, one window, and RoPE on a fraction of each head."""
    biased = [key for key in ("attention_bias", "mlp_bias", "lm_head_bias") if raw.get(key)]
    if biased:
        raise UserError(
            f"{', '.join(biased)} is set; expected false: Phi-3 has no biases. Use the model's own"
            " config.json"
        )
    scaling, known = rope_of(raw), raw
    # Early files call longrope su or yarn, as Phi3Config in transformers reads them.
    if scaling.get("rope_type", scaling.get("type")) in ("su", "yarn"):
        known = {**raw, "rope_scaling": {**scaling, "rope_type": "longrope"}}
    rope = read_rope(known, partial=True)
    if rope.type not in ROPES:
        raise UserError(
            f"RoPE type is {rope.type!r}; expected {' or '.join(ROPES)} for Phi-3. Use the model's"
            " own config.json"
        )
    return {"fused": True, "ropes": (rope,), "sliding_windows": one_window(raw)}


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    (rope,) = config.ropes
    keys = {
        "pad_token_id": None,  # the default of transformers lies beyond small vocabularies
        "sliding_window": widest(config),
        "partial_rotary_factor": rope.fraction,
    }
    if rope.type == "default":
        return keys | {"rope_scaling": None}
    length = rope.original_max_position_embeddings
    # transformers 4 allows these three keys alone, so others are written only if they must be.
    scaling = {"type": rope.type}
    scaling |= {key: list(getattr(rope, key)) for key in ("short_factor", "long_factor")}
    if rope.factor != max(1.0, config.max_position_embeddings / length):
        scaling["factor"] = rope.factor
    if rope.attention_factor is not None:
        scaling["attention_factor"] = rope.attention_factor
    return keys | {"rope_scaling": scaling, "original_max_position_embeddings": length}


PHI3 = Family(
    models="Phi-3, Phi-3.5, Phi-4 and Phi-4-mini",
    architecture="Phi3ForCausalLM",
    defaults={
        "num_key_value_heads": None,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    read=read,
    write=write,
)
FAMILIES = {"phi3": PHI3}
