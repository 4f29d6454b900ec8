"""PEFT's adapter_config.json: the form of an adapter, and the modules it is on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.files import put_json, read_object, refuse_external_links
from cogcalib_jax.hf.files import Tensor, read_header
from cogcalib_jax.models.config import (
    ALL_LINEAR,
    LARGEST_RANK,
    LAYER_PROJECTIONS,
    LORA_TARGETS,
    LoraConfig,
)
from cogcalib_jax.models.placement import PREFIXES, Names, Placement, matches, text_placement

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
MERGE_FIRST = "merge it with PEFT (merge_and_unload), and give the merged model as the base"
# Settings of PEFT that are not read, and what each of them does.
REFUSED = {
    "alora_invocation_tokens": "the adapter acts only on tokens behind an invocation",
    "arrow_config": "tokens are routed among several adapters",
    "ensure_weight_tying": "embedding and head share what is trained",
    "kasa_config": "the base's own weights are cut",
    "layer_replication": "layers of the base are repeated",
    "lora_bias": "B has a bias",
    "megatron_config": "the adapter is on Megatron's parallel layers",
    "monteclora_config": "the adapter is sampled",
    "target_parameters": "the adapter is on tensors that are no modules, such as experts",
    "use_bdlora": "A or B is block-diagonal",
    "use_qalora": "inputs are averaged in groups",
    "velora_config": "gradients are compressed",
}
# Values of `init_lora_weights` with which PEFT changes the base's own weights, whenever it loads
# the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LORA = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_magnitude)(?:_vector)?(?:\.(?!weight$)([^.]+))?(?:\.weight)?"
)
# Layers that may be trained whole (modules_to_save) or in single rows (trainable_token_indices).
TABLES = ("embed_tokens", "lm_head")
_ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
_SAVED = re.compile(r"(.+)\.modules_to_save(?:\.[^.]+)?\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def read_lora_config(folder: str | Path) -> LoraConfig:
    """Return the form of the adapter in `folder`.

    Raises UserError for anything but LoRA on layers that a decoder has, for settings that are not
    supported, for tensors of another rank, and for files that are links out of the folder.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if folder.is_dir():
        refuse_external_links(folder, folder.iterdir())
    raw = read_object(path, "give a folder that PEFT's save_pretrained wrote")
    # A missing file is reported when the tensors are opened.
    found = (folder / WEIGHTS_FILE).is_file()
    tensors, prefix = adapter_tensors(folder) if found else ({}, "model.")
    _require_supported(raw, path, tensors)
    numbers = {name: raw.get(name) for name in ("r", "lora_alpha")}
    numbers["lora_dropout"] = raw.get("lora_dropout", 0.0)
    for name, value in numbers.items():
        _require_number(value, name, path, whole=name == "r")
    placement = _read_placement(raw, path, prefix)
    layers = {int(found[1]) for name in tensors if (found := _LAYER.match(name))}
    targets = _projections(placement, layers | set(placement.layers_to_transform) or {0})
    try:
        config = LoraConfig(
            target_modules=targets,
            use_rslora=raw.get("use_rslora") is True,
            use_dora=raw.get("use_dora") is True,
            placement=None if _is_plain(placement, targets) else placement,
            **numbers,
        )
    except FieldError as error:
        raise UserError(f"{path}: {error}") from error
    _require_ranks(path, config, tensors)
    return config


def adapter_tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Return an adapter's tensors by our names, and the prefix of layers in its own names.

    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" is
    "model.layers.0.self_attn.q_proj.lora_A" here, with or without the first prefix, the name of
    the adapter behind lora_A, and what a multimodal model has before its text half. Names of other
    tensors keep their end. Raises UserError for a damaged file, and for one with several adapters.
    """
    file = folder / WEIGHTS_FILE
    tensors: dict[str, Tensor] = {}
    prefixes, adapters = set(), set()
    for stored, tensor in read_header(file).items():
        name, prefix = own_name(stored.removeprefix(PREFIX))
        if lora := _LORA.fullmatch(name):
            name = f"{lora[1]}.{lora[2]}"
            adapters.add(lora[3])
        elif rows := _ROWS.fullmatch(name):
            name = f"{rows[1]}.lora_rows"
        elif saved := _SAVED.fullmatch(name):
            name = f"{saved[1]}.weight"
        if _LAYER.match(name):
            prefixes.add(prefix)
        if name in tensors or len(adapters) > 1 or len(prefixes) > 1:
            raise UserError(
                f"{file}: holds several adapters ({tensor.name} beside others); expected one."
                " Save each with PEFT's save_pretrained"
            )
        tensors[name] = tensor
    return tensors, (prefixes or {"model."}).pop()


def own_name(name: str) -> tuple[str, str]:
    """Return a tensor's name as it is in a model of text alone, and the prefix it had."""
    for prefix, head in sorted(PREFIXES.items(), key=lambda item: -len(item[0])):
        if name.startswith(prefix):
            return f"model.{name.removeprefix(prefix)}", prefix
        if name.startswith(f"{head}.") and head != "lm_head":
            return f"lm_head{name.removeprefix(head)}", prefix
    return name, "model."


def put_adapter(folder: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write the two files of an adapter."""
    put_json(folder / CONFIG_FILE, raw)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def placement_settings(lora: LoraConfig, modules: list[str]) -> dict[str, Any]:
    """Return the entries of adapter_config.json that say where the adapter is.

    modules: those of the model that have one, as `DecoderConfig.adapted` returns them.
    """
    where = lora.placement
    if where is None:
        return {"target_modules": modules}

    def names(value: Names) -> Any:
        return value if isinstance(value, str) else list(value)

    optional = {
        "exclude_modules": names(where.exclude_modules),
        "layers_to_transform": list(where.layers_to_transform),
        "layers_pattern": list(where.layers_pattern),
        "rank_pattern": dict(where.rank_pattern),
        "alpha_pattern": dict(where.alpha_pattern),
        "modules_to_save": list(where.modules_to_save),
        "trainable_token_indices": {name: list(ids) for name, ids in where.trainable_token_indices},
    }
    return {"target_modules": names(where.target_modules)} | {
        key: value for key, value in optional.items() if value
    }


def _require_supported(raw: dict[str, Any], path: Path, tensors: dict[str, Tensor]) -> None:
    kind, task = raw.get("peft_type"), raw.get("task_type")
    if kind != "LORA":
        raise UserError(
            f"{path}: peft_type is {kind!r:.40}; expected LORA: not a LoRA adapter. If its method"
            f" can be merged, {MERGE_FIRST}"
        )
    if task not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{path}: task_type is {task!r:.40}; expected CAUSAL_LM: the adapter is for a model"
            " with another head. Use one for language models"
        )
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise UserError(
            f"{path}: init_lora_weights {init!r} changes the base's own weights, which is not"
            " supported; convert the adapter with PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...)"
        )
    if init == "mica":
        raise UserError(
            f"{path}: init_lora_weights 'mica' is not supported (B is never trained); {MERGE_FIRST}"
        )
    for key in ("use_rslora", "use_dora"):
        if not isinstance(raw.get(key) or False, bool):
            raise _wrong(path, key, raw[key], "true or false")
    for key, meaning in REFUSED.items():
        if raw.get(key):
            # What acts on some tokens alone cannot be merged.
            fix = "use another adapter" if key.startswith("alora") else MERGE_FIRST
            raise UserError(f"{path}: {key} is not supported ({meaning}); {fix}")
    biases = [name for name in tensors if name.endswith(".bias")]
    if raw.get("bias", "none") != "none" and biases:
        raise UserError(
            f"{path}: bias is not supported (the base's biases were trained, such as {biases[0]});"
            f" {MERGE_FIRST}"
        )


def _wrong(path: Path, key: str, value: Any, expected: str) -> UserError:
    """Return the error for a value of another kind than PEFT writes."""
    return UserError(f"{path}: {key} is {value!r:.40}; expected {expected}. Fetch the file again")


def _require_number(value: Any, name: str, path: Path, *, whole: bool) -> None:
    kinds, wanted = (int, "a whole number") if whole else (int | float, "a number")
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise UserError(f"{path}: {name} is {value!r:.40}, must be {wanted}; fetch the file again")


def _read_placement(raw: dict[str, Any], path: Path, prefix: str) -> Placement:
    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    if not isinstance(layers, list) or not all(isinstance(i, int) for i in layers):
        raise _wrong(path, "layers_to_transform", layers, "whole numbers")
    pattern = raw.get("layers_pattern") or []
    ranks = _read_patterns(raw, "rank_pattern", path, whole=True)
    if not all(1 <= rank <= LARGEST_RANK for _, rank in ranks):
        raise _wrong(path, "rank_pattern", dict(ranks), f"ranks from 1 to {LARGEST_RANK}")
    alphas = _read_patterns(raw, "alpha_pattern", path, whole=False)
    if not all(alpha > 0 for _, alpha in alphas):
        raise _wrong(path, "alpha_pattern", dict(alphas), "positive numbers")
    placement = Placement(
        target_modules=_read_names(raw.get("target_modules"), "target_modules", path),
        exclude_modules=_read_names(raw.get("exclude_modules") or [], "exclude_modules", path),
        layers_to_transform=tuple(layers),
        layers_pattern=_read_names(
            [pattern] if isinstance(pattern, str) else pattern, "layers_pattern", path
        ),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        modules_to_save=_read_tables(raw.get("modules_to_save") or [], "modules_to_save", path),
        trainable_token_indices=_read_token_ids(raw, path),
        prefix=prefix,
    )
    for name in placement.layers_pattern:
        _require_regex(name, "layers_pattern", path)
    if matches(f"{prefix}embed_tokens", placement.target_modules):
        raise UserError(
            f"{path}: target_modules names embed_tokens; LoRA on the embedding is not supported,"
            " only on the layers' projections and lm_head"
        )
    return placement


def _read_names(value: Any, key: str, path: Path) -> Names:
    if isinstance(value, str):
        _require_regex(value, key, path)
        return value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise _wrong(path, key, value, "names or a regular expression")
    return tuple(value)


def _read_tables(value: Any, key: str, path: Path) -> tuple[str, ...]:
    names = _read_names(value, key, path)
    other = [name for name in names if name.rpartition(".")[2] not in TABLES]
    if other or isinstance(names, str):
        raise UserError(
            f"{path}: {key} names {', '.join(other) or names}; expected {' or '.join(TABLES)}: no"
            f" other layer may be trained whole; {MERGE_FIRST}"
        )
    return names


def _read_token_ids(raw: dict[str, Any], path: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    key = "trainable_token_indices"
    value = raw.get(key) or {}
    by_table = {TABLES[0]: value} if isinstance(value, list) else value
    if not isinstance(by_table, dict) or not all(
        isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)
        for ids in by_table.values()
    ):
        raise _wrong(path, key, value, "lists of token ids")
    names = _read_tables(list(by_table), key, path)
    if any(len(set(ids)) < len(ids) for ids in by_table.values()) or set(names) & set(
        raw.get("modules_to_save") or []
    ):
        raise UserError(f"{path}: {key} trains a row twice; expected once. Train it again")
    return tuple((name, tuple(by_table[name])) for name in names)


def _read_patterns(
    raw: dict[str, Any], key: str, path: Path, *, whole: bool
) -> tuple[tuple[str, Any], ...]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise _wrong(path, key, patterns, "a JSON object")
    for pattern, value in patterns.items():
        _require_regex(pattern, key, path)
        _require_number(value, f"{key}[{pattern!r}]", path, whole=whole)
    return tuple(patterns.items())


def _require_regex(pattern: str, key: str, path: Path) -> None:
    try:
        # As it stands for a whole name, and within the patterns of `Placement`.
        for form in (pattern, f".*({pattern})$"):
            re.compile(form)
    except re.error as error:
        raise _wrong(path, key, pattern, f"a regular expression ({error})") from error


def _projections(placement: Placement, layers: set[int]) -> tuple[str, ...]:
    """The projections that have an adapter in some of the layers, and `lm_head`.

    Names of layers that the decoder does not have are left out, as PEFT does; LoraConfig refuses
    them if no other name is left.
    """
    everywhere = LoraConfig(target_modules=(*LAYER_PROJECTIONS, "lm_head"), placement=placement)
    known = [
        name
        for name in everywhere.target_modules
        if any(
            everywhere.placed(name, layer)[0] for layer in ({0} if name == "lm_head" else layers)
        )
    ]
    names = placement.target_modules
    unknown = [names] if isinstance(names, str) else [name.rsplit(".", 1)[-1] for name in names]
    return tuple(known) or tuple(sorted(set(unknown)))


def _is_plain(placement: Placement, targets: tuple[str, ...]) -> bool:
    """Return whether all layers of any decoder, or text half, have the same adapter."""
    if placement == text_placement(targets):
        return True
    names = placement.target_modules
    if isinstance(names, str):
        bare = names.lower() == ALL_LINEAR
    else:
        bare = all("." not in name for name in names if name.endswith(LORA_TARGETS))
    return bare and placement == Placement(names)


def _require_ranks(path: Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors of another rank: the model gets room for this one before they are read."""
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        layer, projection = _LAYER.match(name), module.rpartition(".")[2]
        if kind != "lora_A" or projection not in config.modules:
            continue  # what does not belong there is named when the tensors are opened
        rank, _ = config.placed(projection, int(layer[1]) if layer else 0)
        if rank and tensor.shape[:1] != (rank,):
            raise UserError(
                f"{path}: r is {rank}, but {tensor.name} in {WEIGHTS_FILE} has the shape"
                f" {list(tensor.shape)}; use the files of one adapter"
            )
