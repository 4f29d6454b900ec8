"""Small models of every family and flag, the same wherever they are built.

`make_golden.py` runs them through transformers and PEFT (torch) and stores what came out; the tests
run them through this project. Weights are not stored: they follow from their names.
"""

import zlib

import numpy as np

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Of the four wavelengths one is kept, one lies on the ramp and two are divided.
    "original_max_position_embeddings": 256,
}
# At base 10,000 the bounds of the ramp lie between pairs, so that rounding them shows.
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}

_LONGROPE = {"short_factor": [1.0, 2.0, 4.0], "long_factor": [1.0, 3.0, 9.0]}

# name -> the contents of config.json. Windows are short, so that they matter within the few tokens
# the tests read.
FAMILIES: dict[str, dict] = {
    "llama2": _SMALL | {"model_type": "llama", "num_key_value_heads": 4, "rope_theta": 10000.0},
    "llama3": _SMALL | {"model_type": "llama", "rope_theta": 500000.0},
    "llama3.1": _SMALL
    | {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE},
    "llama3.2": _SMALL
    | {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": _LLAMA3_ROPE | {"rope_theta": 500000.0},
    },
    "llama_biases_linear": _SMALL
    | {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "mistral_v0.1": _SMALL | {"model_type": "mistral", "sliding_window": 5},
    "mistral_v0.3": _SMALL
    | {"model_type": "mistral", "sliding_window": None, "head_dim": 16, "rope_theta": 1e6},
    "qwen2_tied": _SMALL | {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen2.5_windows": _SMALL
    | {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen2.5_yarn": _SMALL | {"model_type": "qwen2", "rope_theta": 1e4, "rope_scaling": _YARN},
    "qwen3_tied": _SMALL
    | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3_yarn_biases": _SMALL
    | {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "rope_parameters": _YARN
        | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
    },
    # Caps so low, and factors so far from 1, that every one of them shows.
    "gemma2": _SMALL
    | {
        "model_type": "gemma2",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 48,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 6.0,
        "sliding_window": 5,
        "rope_theta": 1e5,
    },
    "gemma3": _SMALL
    | {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 48,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "rope_theta": 1e5,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gemma3_capped": _SMALL
    | {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "attention_bias": True,
        "query_pre_attn_scalar": 48,
        "final_logit_softcapping": 6.0,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30.0},
        },
    },
    "olmo3": _SMALL
    | {
        "model_type": "olmo3",
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 5e5,
        "rope_scaling": _YARN | {"attention_factor": 1.5},
    },
    "olmo2": _SMALL | {"model_type": "olmo2", "attention_bias": True, "rope_theta": 5e5},
    "granite": _SMALL
    | {
        "model_type": "granite",
        "tie_word_embeddings": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 1.7,
        "rope_theta": 1e6,
    },
}
_EXPERTS = _SMALL | {"num_experts_per_tok": 2}
FAMILIES |= {
    "mixtral": _EXPERTS
    | {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 5, "rope_theta": 1e6},
    "qwen3_moe": _EXPERTS
    | {
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "head_dim": 16,
        "rope_theta": 1e6,
    },
    "qwen3_moe_windows_biases": _EXPERTS
    | {
        "model_type": "qwen3_moe",
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "tie_word_embeddings": True,
    },
    # The clamp of the SwiGLU lies where these weights reach it.
    "gpt_oss": _EXPERTS
    | {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "head_dim": 16,
        "sliding_window": 5,
        "swiglu_limit": 0.5,
        "swiglu_alpha": 1.3,
        "rope_parameters": _YARN | {"rope_theta": 1e4, "truncate": False},
    },
}

FAMILIES |= {
    # The second layer has a window in place of RoPE.
    "smollm3": _SMALL
    | {
        "model_type": "smollm3",
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
    },
    "phi4": _SMALL | {"model_type": "phi3", "sliding_window": 5, "rope_theta": 250000.0},
    # Three of four pairs are rotated, in the text's first 4,096 tokens by the short factors.
    "phi4_mini": _SMALL
    | {
        "model_type": "phi3",
        "tie_word_embeddings": True,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", **_LONGROPE},
    },
    # All texts of the tests are longer than two tokens, so that the long factors hold.
    "phi3_long": _SMALL
    | {
        "model_type": "phi3",
        "original_max_position_embeddings": 2,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 1.5,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 1.5, 3.0, 6.0],
        },
    },
    # Queries are scaled from the eighth token on.
    "ministral3": _SMALL
    | {
        "model_type": "ministral3",
        "head_dim": 16,
        "sliding_window": 11,
        "rope_parameters": {
            "type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.6,
        },
    },
}

LORA_RANK = 2
LORA_ALPHA = 6.0
# Attention behind norm and rotation, MLP, head: three of the projections keep the files small and
# the tests quick; tests/parity takes all. A model has k_proj or qkv_proj.
LORA_TARGETS = ("k_proj", "qkv_proj", "down_proj", "lm_head")


def lora_targets(raw: dict, names: tuple[str, ...] = LORA_TARGETS) -> tuple[str, ...]:
    """Those of `names` that the model has and that may have an adapter: experts are frozen."""
    absent = ("qkv_proj", "gate_up_proj")
    if raw["model_type"] == "phi3":
        absent = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    inside = ("gate_proj", "up_proj", "down_proj") if "num_experts_per_tok" in raw else ()
    return tuple(name for name in names if name not in absent + inside)


TOKENS = np.random.RandomState(0).randint(0, 64, (2, 24))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor of this name: random, reproducible, of a size at which the model's
    logits are spread out. RandomState's numbers are frozen; those of newer generators are not."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.1 * draw).astype(np.float32)
    return (0.2 * draw).astype(np.float32)
