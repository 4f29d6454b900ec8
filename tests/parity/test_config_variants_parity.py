"""Values in config.json that no family of the fast tests has, against transformers."""

import pytest

torch = pytest.importorskip("torch")

from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402
from tests.parity import measures  # noqa: E402

# Each is one small model to build and compile; test_decoder_parity.py guards the same code.
pytestmark = pytest.mark.slow

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 4}

VARIANTS = [
    ("llama3", {"num_key_value_heads": 1}),
    ("llama3", {"num_key_value_heads": None}),
    ("llama3", {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ("llama3", {"head_dim": 16}),
    ("llama3", {"hidden_act": "gelu_pytorch_tanh"}),
    ("llama3", {"rms_norm_eps": 1e-2}),
    ("llama3", {"pretraining_tp": 2}),
    ("llama3", {"max_position_embeddings": 8}),
    ("llama3", {"vocab_size": 71}),
    ("llama3", {"rope_scaling": _YARN | {"beta_fast": 16, "beta_slow": 2}}),
    ("llama3", {"rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}),
    (
        "llama3",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 64},
    ),
    ("mistral_v0.3", {"head_dim": 8, "sliding_window": 3}),
    ("qwen2_tied", _WINDOWS | {"max_window_layers": 0}),
    ("qwen2_tied", _WINDOWS | {"max_window_layers": 3}),
    ("qwen2_tied", {"use_sliding_window": False, "sliding_window": 4}),
    (
        "qwen2_tied",
        _WINDOWS | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    ("qwen3_tied", _WINDOWS | {"max_window_layers": 1, "head_dim": 12}),
    ("gemma2", {"attn_logit_softcapping": None, "tie_word_embeddings": False}),
    ("gemma2", {"final_logit_softcapping": None, "attention_bias": True}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("gemma3", {"sliding_window_pattern": 3, "rope_scaling": None}),
    ("olmo2", {"num_key_value_heads": 4, "rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    ("olmo3", {"layer_types": None, "num_hidden_layers": 5, "rope_scaling": None}),
    ("granite", {"attention_bias": True, "mlp_bias": True, "rope_scaling": _YARN}),
    ("mixtral", {"num_experts_per_tok": 1, "head_dim": 16}),
    ("mixtral", {"num_experts_per_tok": 4, "sliding_window": None}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"num_experts_per_tok": 6}),
    ("gpt_oss", {"num_experts_per_tok": 1, "layer_types": ["full_attention"] * 3}),
    ("gpt_oss", {"attention_bias": False, "tie_word_embeddings": True}),
    ("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ("smollm3", {"no_rope_layers": [1, 0, 1], "attention_bias": True}),
    ("smollm3", {"no_rope_layer_interval": 3, "use_sliding_window": False, "mlp_bias": True}),
    ("smollm3", {"tie_word_embeddings": False, "rope_scaling": _YARN}),
    ("phi4", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    ("phi4_mini", {"original_max_position_embeddings": 8, "max_position_embeddings": 64}),
    ("phi4_mini", {"num_key_value_heads": 4}),
    ("ministral3", {"sliding_window": None, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_logits_with_other_values_in_the_config(family, changes, tmp_path):
    model = torch_model(FAMILIES[family] | changes)
    model.save_pretrained(tmp_path)
    assert measures.logits_difference(model, tmp_path) < 1e-4
