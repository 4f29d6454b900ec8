import json
from dataclasses import replace

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.weights import read_config
from cogcalib_jax.models.config import RopeConfig
from cogcalib_jax.models.families import FAMILIES, from_hf, to_hf
from cogcalib_jax.models.families.base import Family, read_rope, write_rope
from tests.golden.families import FAMILIES as MODELS

LLAMA = MODELS["llama3"]


@pytest.mark.parametrize("family", MODELS)
def test_a_config_survives_being_written_and_read(family):
    config = from_hf(MODELS[family], "config.json")
    assert from_hf(json.loads(json.dumps(to_hf(config))), "config.json") == config


def test_every_family_is_proved_by_a_golden_model():
    # Those of text halves are proved by tests/parity/test_text_half_parity.py.
    own = {name for name, family in FAMILIES.items() if isinstance(family, Family)}
    assert {raw["model_type"] for raw in MODELS.values()} == own


def test_a_family_may_call_its_modules_otherwise():
    family = replace(FAMILIES["llama"], renamed={"mlp.router": "block_sparse_moe.gate"})
    names = family.tensor_names(("layers", "mlp", "router", "weight"), 2)
    assert names == [f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(2)]
    assert family.tensor_names(("norm", "weight"), 2) == ["model.norm.weight"]
    assert family.tensor_names(("lm_head", "lora_A"), 2) == ["lm_head.lora_A"]


def test_both_layouts_of_rope_mean_the_same():
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    bare = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    old = from_hf(bare | {"rope_theta": 500000.0, "rope_scaling": rope}, "config.json")
    new = from_hf(bare | {"rope_parameters": rope | {"rope_theta": 500000.0}}, "config.json")
    assert old == new
    assert old.ropes == (RopeConfig(500000.0, "llama3", 8.0, 32, 1.0, 4.0),)


def test_qwen_slides_from_max_window_layers_on_and_only_where_switched_on():
    raw = MODELS["qwen2.5_windows"]
    assert from_hf(raw, "config.json").sliding_windows == (0, 5, 5)
    assert from_hf(raw | {"use_sliding_window": False}, "config.json").sliding_windows == (0, 0, 0)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert from_hf(raw | {"layer_types": kinds}, "config.json").sliding_windows == (5, 0, 5)


def test_a_mistral_with_layer_types_slides_where_they_say():
    """transformers reads such a file as Ministral's; without them every layer slides."""
    raw = MODELS["mistral_v0.1"]
    assert from_hf(raw, "config.json").sliding_windows == (5, 5, 5)
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config = from_hf(raw | {"layer_types": kinds}, "config.json")
    assert config.sliding_windows == (0, 5, 5)
    assert from_hf(to_hf(config), "config.json") == config


def test_several_end_of_text_tokens_are_kept():
    config = from_hf(LLAMA | {"eos_token_id": [7, None, 9]}, "config.json")
    assert config.eos_token_ids == (7, 9)
    assert to_hf(config)["eos_token_id"] == [7, 9]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'; expected one of .*llama"),
        ({"model_type": "deepseek_v3"}, "model_type is 'deepseek_v3'; expected"),
        ({"model_type": None}, "model_type is None"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "lack short_factor"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "RoPE type is 'dynamic'; expected one of default",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "each layer type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lack factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1 or no"),
        ({"is_causal": False}, "is_causal is False; expected causal attention"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected silu or gelu_pytorch_tanh"),
        ({"quantization_config": {"bits": 4}}, "quantised by a method without a name; expected"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by awq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by fp8"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantised by bitsandbytes in 4 bits; .* --model.quantise nf4 or int8",
        ),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised by bitsandbytes in 8 bits"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": "int4"}, "quantised by a method without a name"),
        ({"hidden_size": None, "vocab_size": None}, "vocab_size, hidden_size missing"),
        ({"num_key_value_heads": 3}, "kv_heads: must divide"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; expected a whole number"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000; expected a whole number from 1 to"),
        ({"num_hidden_layers": 10**9}, "expected a whole number from 1 to 10,000"),
        ({"num_attention_heads": 5, "head_dim": None}, "cannot be divided among 5 attention heads"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id is .*; expected a whole number"),
        (
            {"rms_norm_eps": None, "rope_scaling": [1]},
            "RoPE parameters are .*; expected a JSON object",
        ),
        ({"rope_theta": "large"}, "rope_theta is 'large'; expected a number"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, says):
    with pytest.raises(UserError, match=f"models/x/config.json: .*{says}"):
        from_hf(LLAMA | change, "models/x/config.json")


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is .*; expected a list of 0 or 1"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0; expected a whole"),
        ("phi4", {"lm_head_bias": True}, "lm_head_bias is set; expected false"),
        (
            "phi4",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "expected default or longrope",
        ),
        (
            "phi4_mini",
            {"partial_rotary_factor": 0.5},
            "short_factor: must hold a number for each of",
        ),
        ("phi4_mini", {"partial_rotary_factor": 1.5}, "fraction: must be above 0"),
        ("ministral3", {"rope_scaling": {"rope_type": "default"}}, "lack llama_4_scaling_beta"),
        ("ministral3", {"layer_types": ["full_attention", 0, 1]}, "layer_types are mixed"),
    ],
)
def test_what_a_family_does_not_support_is_refused_by_name(family, change, says):
    with pytest.raises(UserError, match=f"config.json: .*{says}"):
        from_hf(MODELS[family] | change, "config.json")


def test_early_names_of_longrope_are_understood():
    config = from_hf(MODELS["phi4_mini"], "config.json")
    for name in ("su", "yarn"):
        scaling = MODELS["phi4_mini"]["rope_scaling"] | {"type": name}
        assert from_hf(MODELS["phi4_mini"] | {"rope_scaling": scaling}, "config.json") == config
    # transformers 4 takes these keys alone.
    assert set(to_hf(config)["rope_scaling"]) == {"type", "short_factor", "long_factor"}


def multimodal(text="ministral3", **changes):
    return {"model_type": "mistral3", "text_config": MODELS[text], "vision_config": {}} | changes


def test_a_text_half_is_read_and_written_as_a_model_of_its_own():
    half = from_hf(multimodal(), "config.json")
    alone = from_hf(MODELS["ministral3"], "config.json")
    assert (half.part_of, half) == ("mistral3", replace(alone, part_of="mistral3"))
    assert to_hf(half) == to_hf(alone)
    # Gemma 3's ends of text stand beside text_config.
    raw = {"model_type": "gemma3", "text_config": GEMMA, "eos_token_id": [1, 6]}
    assert from_hf(raw, "config.json").eos_token_ids == (1, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_config": [1]}, "text_config is .*; expected a JSON object"),
        ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type is 'gpt2'; expected"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ],
)
def test_other_multimodal_models_are_refused_by_name(change, says):
    with pytest.raises(UserError, match=f"config.json: .*{says}"):
        from_hf(multimodal(**change), "config.json")


def test_unknown_layer_types_are_refused_by_name():
    with pytest.raises(UserError, match="layer_types is 'full_attention'; expected a list"):
        from_hf(MODELS["mistral_v0.1"] | {"layer_types": "full_attention"}, "config.json")
    with pytest.raises(
        UserError, match="layer_types is .*; expected a list with one kind for each"
    ):
        from_hf(MODELS["qwen3_tied"] | {"layer_types": ["full_attention"]}, "config.json")
    kinds = ["linear_attention"] * 3
    with pytest.raises(UserError, match="layer_types names linear_attention; expected"):
        from_hf(MODELS["qwen3_tied"] | {"layer_types": kinds}, "config.json")


def test_each_layer_type_may_have_its_own_rope():
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default"},
    }
    raw = {"rope_parameters": parameters, "rope_theta": 1e4, "max_position_embeddings": 64}
    linear = RopeConfig(theta=1e6, type="linear", factor=8.0)
    assert read_rope(raw, "full_attention") == linear
    assert read_rope(raw, "sliding_attention") == RopeConfig(theta=1e4)
    assert write_rope(linear) == parameters["full_attention"]
    scaled = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}
    beside = {"rope_parameters": {"full_attention": scaled}, "original_max_position_embeddings": 4}
    assert read_rope(raw | beside, "full_attention").original_max_position_embeddings == 8
    beside["rope_parameters"] = scaled
    assert read_rope(raw | beside).original_max_position_embeddings == 4
    one = raw | {"rope_parameters": parameters["full_attention"]}
    assert read_rope(one) == linear
    with pytest.raises(UserError, match="expected parameters for each layer type"):
        read_rope(one, "sliding_attention")  # transformers reads none of them
    one = raw | {"rope_parameters": None, "rope_scaling": parameters["full_attention"]}
    assert read_rope(one, "full_attention") == linear


GEMMA, OLMO = MODELS["gemma3"], MODELS["olmo3"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (GEMMA | {"use_bidirectional_attention": True}, "expected causal attention"),
        (GEMMA | {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; expected silu or"),
        (GEMMA | {"query_pre_attn_scalar": 0.5}, "query_pre_attn_scalar is 0.5; expected a whole"),
        (GEMMA | {"sliding_window_pattern": 0}, "sliding_window_pattern is 0; expected a whole"),
        (GEMMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; expected none"),
        (GEMMA | {"final_logit_softcapping": "x"}, "final_logit_softcapping is 'x'; expected a"),
        (MODELS["gemma2"] | {"final_logit_softcapping": 0}, "final_softcap: must be positive"),
        (OLMO | {"rope_theta": 1e4}, "rope_theta is 10000.0; expected 500000"),
        (MODELS["granite"] | {"logits_scaling": -1.0}, "logits_divisor: must be positive"),
    ],
)
def test_what_these_families_do_not_support_is_refused_by_name(raw, says):
    with pytest.raises(UserError, match=f"models/x/config.json: .*{says}"):
        from_hf(raw, "models/x/config.json")


def test_sliding_layers_have_a_rope_of_their_own_where_the_family_says_so():
    config = from_hf(GEMMA, "config.json")
    assert config.layer_ropes == (1, 0, 1) and config.sliding_windows == (5, 0, 5)
    assert config.ropes == (RopeConfig(1e5, "linear", 4.0), RopeConfig(30.0))
    kinds = {"layer_types": ["full_attention"] * 3, "sliding_window_pattern": None}
    assert from_hf(GEMMA | kinds, "").sliding_windows == (0, 0, 0)
    older = {"layer_types": None, "sliding_window_pattern": 6, "num_hidden_layers": 13}
    assert from_hf(GEMMA | older, "").layer_ropes == (1, 1, 1, 1, 1, 0) * 2 + (1,)
    assert from_hf(OLMO | older, "").layer_ropes == (1, 1, 1, 0) * 3 + (1,)
    # As in the file of the 4B model, which leaves out what equals the class.
    short = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}
    config = from_hf(short | {"sliding_window": 1024}, "")
    assert (config.vocab_size, config.num_heads, config.kv_heads) == (262208, 8, 4)
    assert config.ropes == (RopeConfig(1e6), RopeConfig(1e4))
    config = from_hf(GEMMA, "")
    # Older versions of transformers read what is written, if it has words for it.
    assert "rope_parameters" not in to_hf(config)
    assert "rope_parameters" in to_hf(from_hf(MODELS["gemma3_capped"], "config.json"))


def test_flags_a_family_has_no_word_for_are_not_written():
    config = replace(from_hf(LLAMA, "config.json"), sliding_windows=(5, 5, 5))
    with pytest.raises(ValueError, match="llama config.json cannot say"):
        to_hf(config)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not JSON"), ("[]", "JSON object"), (None, "no such file")]
)
def test_an_unreadable_file_is_one_clear_line(tmp_path, text, says):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/folder", "no such folder; give"),
        ("./missing", "no such folder; give"),
        ("owner/model-that-is-not-cached", "Hub cannot be reached"),
    ],
)
def test_a_model_that_is_not_there_says_what_to_give(name, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=says):
        read_config(name)
