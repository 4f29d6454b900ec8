"""Which of a decoder's modules an adapter_config.json names, by PEFT's own rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.lora_config import (
    ALL_LINEAR,
    ATTENTION_PROJECTIONS,
    LAYER_PROJECTIONS,
    LORA_TARGETS,
)

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def read_targets(raw: dict[str, Any], path: Path) -> tuple[str, ...]:
    """The projections with an adapter in some layer, or `lm_head`.

    raw: the contents of `path`. Names of layers that the decoder does not have are left out, as
    PEFT does. Raises UserError for patterns, for the embedding, and if no name is left; the
    caller's LoraConfig names those that match nothing.
    """
    names = raw.get("target_modules")
    if names == ALL_LINEAR:
        return LAYER_PROJECTIONS
    _require_names(names, "target_modules", path, ", or all-linear;")
    if any(name.rsplit(".", 1)[-1] == "embed_tokens" for name in names):
        raise UserError(
            f"{path}: target_modules names embed_tokens; LoRA on the embedding is not supported,"
            " only on the layers' projections and lm_head"
        )
    known = tuple(
        target for target in LORA_TARGETS if any(_could_match(name, target) for name in names)
    )
    return known or tuple(sorted({name.rsplit(".", 1)[-1] for name in names}))


def covers(raw: dict[str, Any], path: Path) -> Callable[[str], bool]:
    """Whether an adapter is on a module ("model.layers.0.self_attn.q_proj", "lm_head").

    An adapter may leave layers out: with whole paths in target_modules, with layers_to_transform,
    or with exclude_modules. Raises UserError for patterns in place of names.
    """
    names, left_out = raw.get("target_modules"), raw.get("exclude_modules") or []
    if left_out:
        _require_names(left_out, "exclude_modules", path, ";")
    layers = raw.get("layers_to_transform")
    if isinstance(layers, int):
        layers = [layers]
    if layers and not (isinstance(layers, list) and all(isinstance(i, int) for i in layers)):
        raise UserError(
            f"{path}: layers_to_transform is {layers!r:.40}; expected whole numbers. Fetch the file"
            " again"
        )
    pattern = raw.get("layers_pattern") or "layers"
    if layers and pattern not in ("layers", ["layers"]):
        raise UserError(
            f"{path}: layers_pattern is {pattern!r:.40}; expected layers, where the decoder has its"
            " layers"
        )

    def covered(module: str) -> bool:
        if _matches(module, left_out):
            return False
        if ALL_LINEAR in ([names] if isinstance(names, str) else names) and module != "lm_head":
            return True
        if module in names or not layers:
            return _matches(module, names)
        layer = _LAYER.match(module)
        return _matches(module, names) and layer is not None and int(layer[1]) in layers

    return covered


def _matches(module: str, names: list[str]) -> bool:
    return module in names or any(module.endswith(f".{name}") for name in names)


def _could_match(name: str, target: str) -> bool:
    """Whether a name in target_modules may stand for a projection of some layer."""
    *parents, last = name.split(".")
    parent = "self_attn" if target in ATTENTION_PROJECTIONS else "mlp"
    return last == target and (not parents or (target != "lm_head" and parents[-1] == parent))


def _require_names(value: Any, key: str, path: Path, also: str) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise UserError(f"{path}: {key} must be a list of names{also} patterns are not supported")
