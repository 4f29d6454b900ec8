"""PEFT's adapter_config.json: the form of an adapter, and the modules it is on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.files import read_object, refuse_external_links
from cogcalib_jax.hf.safetensors import read_header
from cogcalib_jax.models.config import (
    ALL_LINEAR,
    ATTENTION_PROJECTIONS,
    LAYER_PROJECTIONS,
    LORA_TARGETS,
    LoraConfig,
)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Settings of PEFT that change what an adapter computes; plain LoRA leaves them unset.
VARIANTS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    "velora_config",
)
# Values of `init_lora_weights` with which PEFT changes the base's own weights, whenever it loads
# the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def read_lora_config(folder: str | Path) -> LoraConfig:
    """Return the rank, alpha, targets and dropout of the adapter in `folder`.

    Raises UserError for anything but plain LoRA on layers that a decoder has, for tensors of
    another rank, and for files that are links out of the folder.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if folder.is_dir():
        refuse_external_links(folder, folder.iterdir())
    raw = read_object(path, "give a folder that PEFT's save_pretrained wrote")
    _require_plain_lora(raw, path)
    numbers = {name: raw.get(name) for name in ("r", "lora_alpha")}
    numbers["lora_dropout"] = raw.get("lora_dropout", 0.0)
    for name, value in numbers.items():
        kinds, wanted = (int, "a whole number") if name == "r" else (int | float, "a number")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise UserError(
                f"{path}: {name} is {value!r:.40}, must be {wanted}; fetch the file again"
            )
    try:
        config = LoraConfig(target_modules=_read_targets(raw, path), **numbers)
    except FieldError as error:
        raise UserError(f"{path}: {error}") from error
    covers(raw, path)  # refuses patterns before a base is loaded
    _require_rank(folder, config.r)
    return config


def _require_plain_lora(raw: dict[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise UserError(f"{path}: not a LoRA adapter; only peft_type LORA is supported")
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise UserError(
            f"{path}: init_lora_weights {init!r} changes the base's own weights, which is not"
            " supported; convert the adapter with PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...)"
        )
    variants = [key for key in VARIANTS if raw.get(key)]
    if raw.get("bias", "none") != "none":
        variants.append("bias")
    if variants:
        raise UserError(f"{path}: {', '.join(variants)} is not supported; only plain LoRA is")


def _require_rank(folder: Path, rank: int) -> None:
    """Refuse tensors of another rank: the model gets room for this one before they are read."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        return  # reported when the tensors are opened
    for name, tensor in read_header(file).items():
        if name.endswith("lora_A.weight") and tensor.shape[:1] != (rank,):
            raise UserError(
                f"{folder / CONFIG_FILE}: r is {rank}, but {name} in {WEIGHTS_FILE} has the shape"
                f" {list(tensor.shape)}; use the files of one adapter"
            )


def _read_targets(raw: dict[str, Any], path: Path) -> tuple[str, ...]:
    """The projections that have an adapter in some layer, and `lm_head`.

    Names of layers that the decoder does not have are left out, as PEFT does; LoraConfig refuses
    them if no other name is left.
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
        target for target in LORA_TARGETS if any(_may_stand_for(name, target) for name in names)
    )
    return known or tuple(sorted({name.rsplit(".", 1)[-1] for name in names}))


def covers(raw: dict[str, Any], path: Path) -> Callable[[str], bool]:
    """Return a function that tells if a module ("model.layers.0.self_attn.q_proj") has an adapter.

    An adapter may leave layers out by whole paths in `target_modules`, by `layers_to_transform`, or
    by `exclude_modules`. Raises UserError for patterns in place of names.
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


def _may_stand_for(name: str, target: str) -> bool:
    *parents, last = name.split(".")
    parent = "self_attn" if target in ATTENTION_PROJECTIONS else "mlp"
    return last == target and (not parents or (target != "lm_head" and parents[-1] == parent))


def _require_names(value: Any, key: str, path: Path, also: str) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise UserError(f"{path}: {key} must be a list of names{also} patterns are not supported")
