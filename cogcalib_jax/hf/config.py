"""Hugging Face `config.json` <-> DecoderConfig.

What is not supported is refused by name here, before any weight is read. Remote code is never run:
only the JSON is looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogcalib_jax.configlib import FieldError
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import read_object
from cogcalib_jax.hf.download import model_folder
from cogcalib_jax.models.config import ROPE_TYPES, DecoderConfig, RopeConfig
from cogcalib_jax.models.rope import yarn_scale

# What each family's configuration class in transformers assumes where config.json is silent.
_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_QWEN: dict[str, Any] = _COMMON | {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON
    | {
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": _COMMON
    | {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
}
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# No model is near these. Larger ones are a damaged file, whose tensors nobody should try to place.
MOST_LAYERS = 10_000
LARGEST_SIZE = 2**31 - 1
NUMBERS = ("rms_norm_eps", "initializer_range")
ROPE_NUMBERS = (
    *("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor"),
    *("high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
)
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
SUPPORTED = (
    "supported are Llama 2, 3, 3.1 and 3.2 (llama), Mistral (mistral), Qwen2 and Qwen2.5 (qwen2)"
    f" and Qwen3 dense (qwen3), with RoPE of type {', '.join(ROPE_TYPES)}"
)


def read_config(name: str | Path) -> DecoderConfig:
    """The architecture of a local folder or Hub id.

    Raises UserError for a file that is absent or no JSON object, an unsupported architecture, or
    values that make no model.
    """
    path = model_folder(name, weights=False) / "config.json"
    return from_hf(read_object(path, "a model's folder holds its config.json"), str(path))


def from_hf(raw: dict[str, Any], source: str) -> DecoderConfig:
    """The contents of a config.json -> DecoderConfig; `source` names the file in errors."""
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{source}: model_type {family!r} is not supported; {SUPPORTED}")
    _refuse_unsupported(raw, source)
    missing = [key for key in REQUIRED if raw.get(key) is None]
    if missing:
        raise UserError(f"{source}: {', '.join(missing)} missing; use the model's own config.json")
    known = FAMILIES[family] | raw
    _require_values(known, source)
    if known["hidden_act"] != "silu":
        raise UserError(
            f"{source}: hidden_act {known['hidden_act']!r} is not supported; only silu is"
        )
    heads = known["num_attention_heads"]
    if known["head_dim"] is None and known["hidden_size"] % heads:
        raise UserError(
            f"{source}: hidden_size {known['hidden_size']} cannot be divided among {heads}"
            " attention heads, and no head_dim is given; use the model's own config.json"
        )
    eos = known["eos_token_id"]
    try:
        return DecoderConfig(
            model_type=family,
            vocab_size=known["vocab_size"],
            hidden_size=known["hidden_size"],
            intermediate_size=known["intermediate_size"],
            num_layers=known["num_hidden_layers"],
            num_heads=heads,
            kv_heads=known["num_key_value_heads"] or heads,
            head_dim=known["head_dim"] or known["hidden_size"] // heads,
            rms_norm_eps=known["rms_norm_eps"],
            rope=_read_rope(known, source),
            tie_word_embeddings=known["tie_word_embeddings"],
            qkv_bias=family == "qwen2" or (family != "mistral" and known["attention_bias"]),
            out_bias=family in ("llama", "qwen3") and known["attention_bias"],
            mlp_bias=family == "llama" and known["mlp_bias"],
            qk_norm=family == "qwen3",
            sliding_windows=_read_windows(known, source),
            max_position_embeddings=known["max_position_embeddings"],
            initializer_range=known["initializer_range"],
            bos_token_id=known["bos_token_id"],
            eos_token_id=(tuple(i for i in eos if i is not None) if isinstance(eos, list) else eos),
        )
    except FieldError as error:
        raise UserError(f"{source}: {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{source}: a value has the wrong type or range ({error}); use the model's own"
            " config.json"
        ) from error


def _require_values(known: dict[str, Any], source: str) -> None:
    """Sizes that some model might have, flags and ids, before anything is made of them."""
    limits = dict.fromkeys((*REQUIRED, "head_dim", "num_key_value_heads"), LARGEST_SIZE)
    limits |= {"num_hidden_layers": MOST_LAYERS, "max_position_embeddings": LARGEST_SIZE}
    for name, limit in limits.items():
        size = known[name]
        optional = name in ("head_dim", "num_key_value_heads")
        whole = isinstance(size, int) and not isinstance(size, bool)
        if not (size is None and optional) and not (whole and 1 <= size <= limit):
            raise UserError(
                f"{source}: {name} is {size!r:.40}, must be a whole number from 1 to {limit:,};"
                " use the model's own config.json"
            )
    for name in (*NUMBERS, "rope_theta"):
        _require_number(known.get(name), name, source)
    for name in FLAGS:
        if known.get(name) not in (True, False, None):
            raise UserError(f"{source}: {name} is {known[name]!r:.40}, must be true or false")
    for name in ("bos_token_id", "eos_token_id"):
        ids = known[name] if isinstance(known[name], list) else [known[name]]
        if not all(token is None or isinstance(token, int) for token in ids):
            raise UserError(f"{source}: {name} is {known[name]!r:.40}, must be a whole number")


def _require_number(value: Any, name: str, source: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(
            f"{source}: {name} is {value!r:.40}, must be a number; use the model's own config.json"
        )


def _refuse_unsupported(raw: dict[str, Any], source: str) -> None:
    if raw.get("quantization_config"):
        raise UserError(
            f"{source}: quantised weights are not supported; use the model's bfloat16 checkpoint"
        )
    if raw.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise UserError(f"{source}: partial_rotary_factor is not supported; {SUPPORTED}")


def _read_rope(known: dict[str, Any], source: str) -> RopeConfig:
    """Both layouts: `rope_theta` beside `rope_scaling`, and `rope_parameters` of transformers 5."""
    rope = known.get("rope_scaling") or known.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{source}: its RoPE parameters must be a JSON object; {SUPPORTED}")
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"{source}: a RoPE for each layer type is not supported; {SUPPORTED}")
    for name in ROPE_NUMBERS:
        _require_number(rope.get(name), name, source)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UserError(f"{source}: RoPE type {kind!r} is not supported; {SUPPORTED}")
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise UserError(f"{source}: partial_rotary_factor is not supported; {SUPPORTED}")
    theta = rope.get("rope_theta") or known.get("rope_theta") or 10000.0
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type=kind, factor=_required(rope, "factor", source))
    length = (
        known.get("original_max_position_embeddings")
        or rope.get("original_max_position_embeddings")
        or known["max_position_embeddings"]
    )
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            type=kind,
            factor=_required(rope, "factor", source),
            original_max_position_embeddings=length,
            low_freq_factor=_required(rope, "low_freq_factor", source),
            high_freq_factor=_required(rope, "high_freq_factor", source),
        )
    factor = rope.get("factor") or known["max_position_embeddings"] / length
    scale, mscale, all_dim = (
        rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim")
    )
    if scale is None and mscale and all_dim:
        scale = yarn_scale(factor, mscale) / yarn_scale(factor, all_dim)
    return RopeConfig(
        theta=theta,
        type=kind,
        factor=factor,
        original_max_position_embeddings=length,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        attention_factor=scale,
        truncate=rope.get("truncate", True),
    )


def _required(rope: dict[str, Any], key: str, source: str) -> Any:
    if rope.get(key) is None:
        raise UserError(f"{source}: rope parameters lack {key}; use the model's own config.json")
    return rope[key]


def _read_windows(known: dict[str, Any], source: str) -> tuple[int, ...]:
    layers, family = known["num_hidden_layers"], known["model_type"]
    if family == "llama":
        return (0,) * layers
    window = known["sliding_window"] or 0
    kinds = known.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise UserError(f"{source}: layer_types must be a list; use the model's own config.json")
    if family == "mistral" and kinds is None:
        return (window,) * layers
    if family != "mistral" and not known["use_sliding_window"]:
        window = 0
    if kinds is None:
        # The first max_window_layers layers see everything.
        full = max(0, known["max_window_layers"])
        kinds = ["full_attention"] * min(full, layers) + ["sliding_attention"] * (layers - full)
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UserError(f"{source}: layer type {', '.join(unknown)} is not supported; {SUPPORTED}")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """DecoderConfig -> the contents of a config.json.

    Written with `rope_theta` and `rope_scaling`, which transformers 4 and 5 and the tools built on
    them all read. Raises ValueError for flags this family's configuration has no word for.
    """
    family = config.model_type
    raw: dict[str, Any] = {
        "architectures": [
            {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
            + "ForCausalLM"
        ],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": _write_rope(config.rope),
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": (
            list(config.eos_token_id)
            if isinstance(config.eos_token_id, tuple)
            else config.eos_token_id
        ),
    }
    if family in ("llama", "qwen3"):
        raw["attention_bias"] = config.qkv_bias
    if family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    window = max(config.sliding_windows)
    if family == "mistral":
        raw["sliding_window"] = window or None
        if len(set(config.sliding_windows)) > 1:
            # transformers reads such a file as Ministral's.
            raw["layer_types"] = _layer_types(config)
    if family in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = window > 0
        raw["sliding_window"] = window or None
        raw["layer_types"] = _layer_types(config)
        raw["max_window_layers"] = config.num_layers
    if from_hf(raw, "config.json") != config:
        raise ValueError(f"a {family} config.json cannot say {config}")
    return raw


def _layer_types(config: DecoderConfig) -> list[str]:
    return ["sliding_attention" if w else "full_attention" for w in config.sliding_windows]


def _write_rope(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.type == "default":
        return None
    raw: dict[str, Any] = {"rope_type": rope.type, "factor": rope.factor}
    if rope.type == "linear":
        return raw
    raw["original_max_position_embeddings"] = rope.original_max_position_embeddings
    if rope.type == "llama3":
        raw["low_freq_factor"] = rope.low_freq_factor
        raw["high_freq_factor"] = rope.high_freq_factor
        return raw
    raw |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    if rope.attention_factor is not None:
        raw["attention_factor"] = rope.attention_factor
    return raw
