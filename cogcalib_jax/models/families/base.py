"""The parts of config.json and of tensor names that families share; a family adds its differences.

Keys that no family reads are ignored, except for those that change what a model computes: they are
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import ROPE_TYPES, DecoderConfig, RopeConfig
from cogcalib_jax.models.rope import yarn_scale

# DecoderConfig's fields by their keys in config.json, if they have the same values.
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
}
# The values of transformers' configuration classes for keys that config.json leaves out.
COMMON: dict[str, Any] = {
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
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Names of activations in config.json, by those of DecoderConfig.
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
# No model comes near these. Larger numbers come from a damaged file.
MOST_LAYERS = 10_000
LARGEST_SIZE = 2**31 - 1
NUMBERS = (
    *("rms_norm_eps", "initializer_range", "rope_theta", "partial_rotary_factor"),
    *("original_max_position_embeddings", "attn_logit_softcapping", "final_logit_softcapping"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
)
ROPE_NUMBERS = (
    *("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor"),
    *("high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    *("partial_rotary_factor", "llama_4_scaling_beta"),
)
# The key of most families for biases on all projections of the attention, or on none.
BIAS = {"attention_bias": ("qkv_bias", "out_bias")}
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
OWN_FILE = "Use the model's own config.json"
LAYER_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class ExpertNames:
    """The names of one layer's experts in a checkpoint, within model.layers.N.

    Checkpoints of the Hub have one matrix an expert. transformers 5 may save all experts as one
    tensor: `mlp.experts.gate_up_proj` `[experts, 2 inner, hidden]` and `mlp.experts.down_proj`.
    """

    module: str
    """where a checkpoint with one matrix an expert has router and experts"""
    matrices: Mapping[str, str] | None
    """the name of each projection within an expert; None: gpt-oss, which has only tensors of all
    experts, transposed, with columns of gate and up in turns, or packed as MXFP4"""


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`: config.json and names of tensors, in and out."""

    models: str
    """the models of this family, for messages"""
    architecture: str
    """transformers' class"""
    defaults: Mapping[str, Any]
    """values of keys that config.json leaves out, beside and before those of `COMMON`"""
    plain: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """keys of config.json -> the fields of DecoderConfig that have their values"""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda raw: {}
    """config.json with defaults -> further fields of DecoderConfig that differ from the common
    ones; raises UserError for what is not supported"""
    write: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    """the inverse: keys of config.json beside the common and the plain ones"""
    activation_key: str = "hidden_act"
    """the key of the MLP's activation"""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """modules with another name in checkpoints, by their path within a layer (or the model), such
    as {"mlp.router": "block_sparse_moe.gate"}"""
    experts: ExpertNames | None = None
    """how checkpoints store the experts, of a family that has them"""
    packed: str | None = None
    """a `quant_method` of config.json whose weights are read, and unpacked"""

    def read_config(self, model_type: str, raw: Mapping[str, Any]) -> DecoderConfig:
        """Return the architecture that config.json describes; raises UserError."""
        if _quant_method(raw) not in (None, self.packed):
            _refuse_quantised(raw)
        known = {**COMMON, **self.defaults, **raw}
        missing = [key for key in REQUIRED if known.get(key) is None]
        if missing:
            raise UserError(f"{', '.join(missing)} missing. {OWN_FILE}")
        _require_values(known)
        for name, value in (("use_bidirectional_attention", True), ("is_causal", False)):
            if known.get(name) is value:
                raise wrong(name, value, "causal attention", "Use a model that generates text")
        heads, eos = known["num_attention_heads"], known["eos_token_id"]
        if known["head_dim"] is None and known["hidden_size"] % heads:
            raise UserError(
                f"hidden_size {known['hidden_size']} cannot be divided among {heads} attention"
                f" heads, and no head_dim is given. {OWN_FILE}"
            )
        common = {field: known[key] for key, field in KEYS.items()}
        common["kv_heads"] = known["num_key_value_heads"] or heads
        common["head_dim"] = known["head_dim"] or known["hidden_size"] // heads
        if isinstance(eos, list):
            common["eos_token_id"] = tuple(i for i in eos if i is not None)
        common["activation"] = _read_activation(known, self.activation_key)
        own = {field: known[key] for key, fields in self.plain.items() for field in fields}
        own |= self.read(known)
        if "ropes" not in own:
            common["ropes"] = (read_rope(known),)
        return DecoderConfig(model_type=model_type, **(common | own))

    def write_config(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the contents of config.json."""
        raw = {
            "architectures": [self.architecture],
            "model_type": config.model_type,
            self.activation_key: ACTIVATIONS[config.activation],
        }
        scaling = write_rope(config.ropes[0])
        raw["rope_theta"] = scaling.pop("rope_theta")
        raw["rope_scaling"] = scaling if len(scaling) > 1 else None
        raw |= {key: getattr(config, field) for key, field in KEYS.items()}
        if isinstance(config.eos_token_id, tuple):
            raw["eos_token_id"] = list(config.eos_token_id)
        raw |= {key: getattr(config, fields[0]) for key, fields in self.plain.items()}
        return raw | self.write(config)

    def tensor_names(self, path: tuple[str, ...], layers: int) -> list[str]:
        """Return the checkpoint's names of a parameter: one, or one for each layer.

        The parameter ("layers", "mlp", "up_proj", "weight") is model.layers.N.mlp.up_proj.weight.
        """
        in_layers = path[0] == "layers"
        *modules, kind = path[1:] if in_layers else path
        module = ".".join(modules)
        name = f"{self.renamed.get(module, module)}.{kind}"
        if in_layers:
            return [f"model.layers.{i}.{name}" for i in range(layers)]
        return [name if path[0] == "lm_head" else f"model.{name}"]


def pattern(layers: int, every: int) -> list[str]:
    """Return `layer_types` of which each `every`-th is full attention, and all others slide."""
    return [LAYER_KINDS[i % every != 0] for i in range(1, layers + 1)]


def wrong(name: str, value: Any, expected: str, fix: str = OWN_FILE) -> UserError:
    """Return the error for a value of config.json that no model has, or none that is supported."""
    return UserError(f"{name} is {value!r:.40}; expected {expected}. {fix}")


def require_whole(raw: Mapping[str, Any], *names: str, most: int = LARGEST_SIZE) -> None:
    """Refuse values that are no whole numbers from 1 to `most`; raises UserError."""
    for name in names:
        size = raw.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
            raise wrong(name, size, f"a whole number from 1 to {most:,}")


def _quantised(raw: Mapping[str, Any]) -> Any:
    return raw.get("quantization_config") or raw.get("compression_config")


def _quant_method(raw: Mapping[str, Any]) -> str | None:
    """The method by which the checkpoint's weights are quantised; None: they are not."""
    found = _quantised(raw)
    if not found:
        return None
    return str((found.get("quant_method") if isinstance(found, dict) else None) or "?")


def _refuse_quantised(raw: Mapping[str, Any]) -> None:
    """Refuse weights that another tool has quantised, and name its method."""
    found, method = _quantised(raw), _quant_method(raw)
    for bits in (4, 8):
        if isinstance(found, dict) and found.get(f"load_in_{bits}bit"):
            method = f"bitsandbytes in {bits} bits"
    method = "a method without a name" if method == "?" else method
    raise UserError(
        f"quantization_config says that the weights are quantised by {method:.40}; expected"
        " float32, bfloat16 or float16. Use the checkpoint that it was made from, and"
        " --model.quantise nf4 or int8"
    )


@dataclass(frozen=True)
class TextHalf:
    """Multimodal models of one `model_type`, of which the language model alone is read."""

    models: str
    """the models, for messages"""
    families: Mapping[str, Family]
    """the families of the language model, by the `model_type` of `text_config`; the first is meant
    where it has none"""

    def read_config(self, model_type: str, raw: Mapping[str, Any]) -> DecoderConfig:
        """Return the language model that config.json describes; raises UserError."""
        text = raw.get("text_config")
        if not isinstance(text, dict):
            raise wrong("text_config", text, "a JSON object")
        kind = text.get("model_type", next(iter(self.families)))
        if not isinstance(kind, str) or kind not in self.families:
            expected = " or ".join(self.families)
            raise wrong("text_config.model_type", kind, expected, "Use a model with one of them")

        def beside(*keys: str) -> dict[str, Any]:
            return {key: raw[key] for key in keys if raw.get(key) is not None}

        # The ends of a chat's turns stand beside text_config, whatever is below it.
        known = beside("quantization_config", "tie_word_embeddings") | text
        known |= beside("bos_token_id", "eos_token_id")
        read = self.families[kind].read_config(kind, known)
        return replace(read, part_of=model_type)


def read_windows(raw: Mapping[str, Any], every: int | None = None) -> tuple[int, ...]:
    """Return the sliding window of each layer, 0 for full attention, from `layer_types`.

    every: as in `pattern`, where there are no `layer_types`; None: all layers slide.
    """
    kinds, window, layers = raw["layer_types"], raw["sliding_window"], raw["num_hidden_layers"]
    if kinds is None:
        kinds = pattern(layers, every) if every else ["sliding_attention"] * layers
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise wrong("layer_types", kinds, f"a list with one kind for each of the {layers} layers")
    unknown = sorted(set(kinds) - set(LAYER_KINDS))
    if unknown:
        raise UserError(
            f"layer_types names {', '.join(unknown)}; expected {' or '.join(LAYER_KINDS)}. Use a"
            " model with these layers alone"
        )
    if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
        raise wrong("sliding_window", window, "a whole number")
    return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in kinds)


def one_window(raw: Mapping[str, Any], slides: bool = True) -> tuple[int, ...]:
    """Return the window that all layers share, for each of them; slides: False for none."""
    return ((slides and raw["sliding_window"]) or 0,) * raw["num_hidden_layers"]


def widest(config: DecoderConfig) -> int | None:
    """Return `sliding_window` for the windows of `config`."""
    return max(config.sliding_windows) or None


def window_keys(config: DecoderConfig) -> dict[str, Any]:
    """Return `sliding_window` and `layer_types`."""
    return {"sliding_window": widest(config), "layer_types": layer_types(config)}


def layer_types(config: DecoderConfig) -> list[str]:
    """Return `layer_types` for the windows of `config`."""
    return ["sliding_attention" if w else "full_attention" for w in config.sliding_windows]


def read_rope(
    known: Mapping[str, Any], kind: str | None = None, *, partial: bool = False
) -> RopeConfig:
    """Return the RoPE of both layouts: `rope_theta` beside `rope_scaling`, and `rope_parameters`
    of transformers 5.

    kind: the `layer_types` whose RoPE it is, if the family allows one for each; it may stand below
    this name in `rope_parameters`.
    partial: whether the family may rotate a fraction of each head.
    """
    rope = rope_of(known, kind)
    for name in ROPE_NUMBERS:
        _require_number(rope.get(name), name)
    key = "partial_rotary_factor"
    fractions = [settings.get(key) for settings in (rope, known)]
    part = next((fraction for fraction in fractions if fraction not in (None, 1.0)), None)
    if part is not None and not partial:
        raise wrong(key, part, "1 or no such key", "Use a model that rotates whole heads")
    form = rope.get("rope_type", rope.get("type", "default"))
    if form not in ROPE_TYPES:
        raise UserError(
            f"RoPE type is {form!r}; expected one of {', '.join(ROPE_TYPES)}. Use a model with one"
            " of them"
        )
    read: dict[str, Any] = {
        "theta": rope.get("rope_theta") or known.get("rope_theta") or 10000.0,
        "type": form,
        "fraction": next((x for x in fractions if x is not None), 1.0),
    }
    if form == "linear":
        read["factor"] = _required(rope, "factor")
    if form in ("default", "linear"):
        return RopeConfig(**read)
    # Beside the parameters it comes first, as in transformers, but not for those of a layer type.
    places = (known, rope) if kind is None else (rope,)
    lengths = [place.get("original_max_position_embeddings") for place in places]
    length = next(filter(None, lengths), known["max_position_embeddings"])
    read["original_max_position_embeddings"] = length
    if form == "llama3":
        for key in ("factor", "low_freq_factor", "high_freq_factor"):
            read[key] = _required(rope, key)
        return RopeConfig(**read)
    factor = rope.get("factor") or known["max_position_embeddings"] / length
    scale, mscale, all_dim = (
        rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim")
    )
    if form == "longrope":
        pairs = {key: _read_factors(rope, key) for key in ("short_factor", "long_factor")}
        return RopeConfig(**read, **pairs, factor=max(1.0, factor), attention_factor=scale)
    if scale is None and mscale and all_dim:
        scale = yarn_scale(factor, mscale) / yarn_scale(factor, all_dim)
    return RopeConfig(
        **read,
        factor=factor,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        attention_factor=scale,
        truncate=rope.get("truncate", True),
    )


def rope_of(known: Mapping[str, Any], kind: str | None = None) -> dict[str, Any]:
    """Return the parameters of RoPE in config.json, those of `kind` as in `read_rope`."""
    rope = known.get("rope_scaling") or known.get("rope_parameters") or {}
    if kind is not None and isinstance(rope, dict):
        if rope and not known.get("rope_scaling") and rope.keys().isdisjoint(LAYER_KINDS):
            raise wrong("rope_parameters", rope, "parameters for each layer type")
        rope = rope.get(kind, rope)
    if not isinstance(rope, dict):
        raise UserError(f"RoPE parameters are {rope!r:.40}; expected a JSON object. {OWN_FILE}")
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(
            "each layer type has its own RoPE; expected one for all layers. Use a model with one"
        )
    return rope


def _read_factors(rope: Mapping[str, Any], key: str) -> tuple[float, ...]:
    factors = _required(rope, key)
    if not isinstance(factors, list):
        raise wrong(key, factors, "a list of numbers")
    for factor in factors:
        _require_number(factor, key)
    return tuple(factors)


def read_layer_ropes(known: Mapping[str, Any], kinds: list[str], theta: float) -> dict[str, Any]:
    """Return `ropes`, of full attention and of sliding layers, and `layer_ropes`.

    What stands beside `layer_types`, and not below them in `rope_parameters`, is of full attention.
    theta: of sliding layers, if nothing below them says another.
    """
    sliding = {**known, "rope_scaling": None, "rope_theta": theta}
    ropes = read_rope(known, "full_attention"), read_rope(sliding, "sliding_attention")
    return {"ropes": ropes, "layer_ropes": tuple(LAYER_KINDS.index(kind) for kind in kinds)}


def write_layer_ropes(config: DecoderConfig, theta: float) -> dict[str, Any]:
    """Return the keys beside the common ones with which `read_layer_ropes` reads the RoPEs; none
    where older versions of transformers read the same."""
    parameters = dict(zip(LAYER_KINDS, map(write_rope, config.ropes), strict=True))
    plain = config.ropes[1] == RopeConfig(theta=theta)
    return {} if plain else {"rope_parameters": parameters}


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Return the RoPE as `rope_parameters` of transformers 5 hold it."""
    longer = ("factor", "original_max_position_embeddings")
    keys = {
        "default": (),
        "linear": ("factor",),
        "llama3": (*longer, "low_freq_factor", "high_freq_factor"),
        "yarn": (*longer, "beta_fast", "beta_slow", "truncate", "attention_factor"),
        "longrope": (*longer, "attention_factor", "short_factor", "long_factor"),
    }[rope.type]
    values = {key: getattr(rope, key) for key in keys}
    written = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }
    if rope.fraction != 1:
        written["partial_rotary_factor"] = rope.fraction
    return {"rope_theta": rope.theta, "rope_type": rope.type, **written}


def _read_activation(known: Mapping[str, Any], key: str) -> str:
    names = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if known[key] not in names:
        raise wrong(key, known[key], " or ".join(names), "Use a model with one of them")
    return names[known[key]]


def _require_values(known: Mapping[str, Any]) -> None:
    """Check sizes, flags and ids before anything is made of them."""
    for name in (*REQUIRED, "head_dim", "num_key_value_heads", "max_position_embeddings"):
        if known[name] is not None or name not in ("head_dim", "num_key_value_heads"):
            most = MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE
            require_whole(known, name, most=most)
    for name in NUMBERS:
        _require_number(known.get(name), name)
    for name in FLAGS:
        if known.get(name) not in (True, False, None):
            raise wrong(name, known[name], "true or false")
    for name in ("bos_token_id", "eos_token_id"):
        ids = known[name] if isinstance(known[name], list) else [known[name]]
        if not all(token is None or isinstance(token, int) for token in ids):
            raise wrong(name, known[name], "a whole number")


def _require_number(value: Any, name: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise wrong(name, value, "a number")


def _required(rope: Mapping[str, Any], key: str) -> Any:
    if rope.get(key) is None:
        raise UserError(f"RoPE parameters lack {key}. {OWN_FILE}")
    return rope[key]
