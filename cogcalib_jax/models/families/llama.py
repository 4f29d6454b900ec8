"""Llama 2 to 3.2 with the many models in their layout, and Granite 3."""

from __future__ import annotations

from cogcalib_jax.models.families.base import BIAS, Family

LLAMA = Family(
    models="Llama 2, 3, 3.1 and 3.2",
    architecture="LlamaForCausalLM",
    defaults={
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    plain=BIAS | {"mlp_bias": ("mlp_bias",)},
)
# Granite is a Llama with four factors, all 1 where the file leaves them out. The attention's stands
# in place of 1/sqrt(head_dim).
FACTORS = {
    "embedding_multiplier": ("embed_scale",),
    "residual_multiplier": ("residual_scale",),
    "attention_multiplier": ("attention_scale",),
    "logits_scaling": ("logits_divisor",),
}
GRANITE = Family(
    models="Granite 3 dense",
    architecture="GraniteForCausalLM",
    defaults=LLAMA.defaults | dict.fromkeys(FACTORS, 1.0),
    plain=LLAMA.plain | FACTORS,
)
FAMILIES = {"llama": LLAMA, "granite": GRANITE}
