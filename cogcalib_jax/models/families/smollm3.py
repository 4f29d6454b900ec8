"""SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families.base import Family, read_windows, widest, window_keys, wrong
from cogcalib_jax.models.families.llama import LLAMA


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Some layers of SmolLM3 have no RoPE, by default every fourth; these alone may slide."""
    with_rope = _layers_with_rope(raw)
    kinds = raw["layer_types"]
    if kinds is None:
        slides = [raw["use_sliding_window"] and not rope for rope in with_rope]
        kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return {
        "layer_ropes": tuple(0 if rope else -1 for rope in with_rope),
        "sliding_windows": read_windows({**raw, "layer_types": kinds}),
    }


def _layers_with_rope(raw: Mapping[str, Any]) -> list[int]:
    """Despite its name, a 1 in `no_rope_layers` is a layer with RoPE."""
    layers, given = raw["num_hidden_layers"], raw["no_rope_layers"]
    if given is None:
        every = raw["no_rope_layer_interval"]
        if not isinstance(every, int) or every < 1:
            raise wrong("no_rope_layer_interval", every, "a whole number of at least 1")
        return [int((layer + 1) % every != 0) for layer in range(layers)]
    if (
        not isinstance(given, list)
        or len(given) < layers
        or not all(flag in (0, 1) for flag in given)
    ):
        raise wrong("no_rope_layers", given, f"a list of 0 or 1 for each of the {layers} layers")
    return given[:layers]


def write(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that `read` reads."""
    return {
        "pad_token_id": None,  # the default of transformers lies beyond small vocabularies
        "no_rope_layers": [int(index >= 0) for index in config.layer_ropes],
        "use_sliding_window": widest(config) is not None,
        **window_keys(config),
    }


SMOLLM3 = Family(
    models="SmolLM3",
    architecture="SmolLM3ForCausalLM",
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": None,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    plain=LLAMA.plain,
    read=read,
    write=write,
)
FAMILIES = {"smollm3": SMOLLM3}
