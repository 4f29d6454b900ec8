"""Model families: how each config.json is read and written, and what its tensors are called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import gemma, gpt_oss, llama, mistral, olmo, phi3, qwen, smollm3
from cogcalib_jax.models.families.base import Family, TextHalf

_FILES = (gemma, gpt_oss, llama, mistral, olmo, phi3, qwen, smollm3)
FAMILIES: dict[str, Family | TextHalf] = dict(
    sorted((name, family) for file in _FILES for name, family in file.FAMILIES.items())
)
"""by the `model_type` of config.json"""


def from_hf(raw: dict[str, Any], source: str) -> DecoderConfig:
    """Return the architecture that the contents `raw` of a config.json describe.

    Raises:
        UserError: an unknown family, something a family does not support, or values of no model.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(f"{key} ({family.models})" for key, family in FAMILIES.items())
        raise UserError(
            f"{source}: model_type is {name!r:.40}; expected one of {known}. Use a model of one of"
            " these families"
        )
    try:
        return FAMILIES[name].read_config(name, raw)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{source}: a value has the wrong type or range ({error}); use the model's own"
            " config.json"
        ) from error


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """Return the contents of a config.json for `config`.

    Written with `rope_theta` and `rope_scaling`, which transformers 4 and 5 and the tools built on
    them all read; for a text half as of a model of its own. Raises ValueError for flags that the
    family's config.json has no key for.
    """
    raw = FAMILIES[config.model_type].write_config(config)
    if from_hf(raw, "config.json") != replace(config, part_of=None):
        raise ValueError(f"a {config.model_type} config.json cannot say {config}")
    return raw


def tensor_names(path: tuple[str, ...], config: DecoderConfig) -> list[str]:
    """Return the checkpoint's names of the parameter at `path`: one, or one for each layer."""
    return FAMILIES[config.model_type].tensor_names(path, config.num_layers)
