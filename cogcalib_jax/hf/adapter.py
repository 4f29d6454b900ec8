"""LoRA adapters in PEFT's layout: their tensors, in and out, and the base that they belong to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.console import show_note
from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError, first_of
from cogcalib_jax.files import read_object, whole_folder
from cogcalib_jax.hf.adapter_config import (
    CONFIG_FILE,
    PREFIX,
    TABLES,
    WEIGHTS_FILE,
    adapter_tensors,
    own_name,
    placement_settings,
    put_adapter,
    read_lora_config,
)
from cogcalib_jax.hf.files import DTYPES, Padded, Tensor, open_folder
from cogcalib_jax.hf.weights import host_tensors, read_parameter, tensor_shapes
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.families import tensor_names
from cogcalib_jax.models.parameters import Path as ParameterPath
from cogcalib_jax.models.parameters import against_base, map_parameters
from cogcalib_jax.models.placement import PREFIXES, text_placement
from cogcalib_jax.models.quantised import quantisation
from cogcalib_jax.sharding import fetch

CALIBRATION_FILE = "calibration.json"
QUANTISE = "quantise"
"""the entry of `base` in that file that says how the base was held in training; absent: whole"""
HASH_OF = (
    "SHA-256 over all tensors in the order of their names: a JSON line [name, dtype, shape], then"
    " the bytes of the first row (of a vector: all)"
)
# Copies of the base's embedding and head. PEFT stores them beside an adapter that targets them, or
# if the vocabulary was resized, or with save_embedding_layers.
BASE_COPIES = {
    "lm_head.base_layer.weight": "lm_head",
    "lm_head.weight": "lm_head",
    "model.embed_tokens.weight": "embed_tokens",
    "model.embed_tokens.base_layer.weight": "embed_tokens",
}


def save_adapter(folder: Path, decoder: Decoder, base_name: str | Path) -> None:
    """Write `decoder`'s LoRA parameters so that `peft.PeftModel.from_pretrained` loads them.

    An adapter in `folder` is replaced as a whole. All processes call this; the main one writes.

    Args:
        base_name: Hub id or folder of the base, for readers of the file.
    """
    lora, alpha = decoder.lora, decoder.lora.lora_alpha
    if decoder.config.part_of is not None and lora.placement is None:
        lora = replace(lora, placement=text_placement(decoder.config.adapted(lora)))
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_name),
        "r": lora.r,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": lora.lora_dropout,
        **placement_settings(lora, decoder.config.adapted(lora)),
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    state = against_base(decoder, nnx.state(decoder, nnx.LoRAParam), stored=False)
    tensors = {}
    for name, array in host_tensors(state, decoder.config):
        shape = own_shape(name, array.shape, lora)
        if shape is not None:
            part = np.ascontiguousarray(array[tuple(map(slice, shape))])
            tensors[stored_name(placed_name(name, lora), lora)] = part
    _write(Path(folder), raw, tensors)


def _form(decoder: Decoder, lora: LoraConfig) -> dict[str, Any]:
    """Return the settings that adapters must share to take each other's place in this model."""
    return lora.form | {"target_modules": tuple(sorted(decoder.config.adapted(lora)))}


@main_only
def _write(folder: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    with whole_folder(folder, replace=True) as building:
        put_adapter(building, raw, tensors)


def load_adapter(folder: str | Path, decoder: Decoder) -> None:
    """Put the adapter in `folder` in place of `decoder`'s LoRA parameters.

    Build the decoder with `read_lora_config(folder)`. Raises one UserError for another rank, alpha
    or targets, for tensors that are missing, unexpected or of another shape, and for an adapter
    that carries the embedding or head of another base.
    """
    folder = Path(folder)
    stored, built = read_lora_config(folder), decoder.lora
    if built is None:
        raise UserError(f"{folder}: an adapter needs a model with LoRA layers; give its LoraConfig")
    form = _form(decoder, built)
    different = [
        "its modules, ranks or alphas by layer are others than the model's"
        if name == "placement"
        else f"{name} is {theirs} but the model has {form[name]}"
        for name, theirs in _form(decoder, stored).items()
        if theirs != form[name]
    ]
    if different:
        raise UserError(f"{folder}: {'; '.join(different)}; use the adapter's own settings")
    state = nnx.state(decoder, nnx.LoRAParam)
    tensors = open_adapter(folder, state, decoder.config)

    def own(module: str) -> np.ndarray:
        tied = decoder.config.tie_word_embeddings
        weight = (decoder.embed_tokens if tied else getattr(decoder, module)).weight
        return fetch(weight[...].astype(jnp.float32))

    require_same_base(folder, own)

    def read(path: ParameterPath, leaf: nnx.Variable) -> nnx.Variable:
        now = leaf.get_value()
        target = jax.ShapeDtypeStruct(now.shape, now.dtype, sharding=now.sharding)
        parts = [tensors[name] for name in tensor_names(path, decoder.config)]
        return leaf.replace(read_parameter(parts, target, path[0] == "layers"))

    nnx.update(decoder, against_base(decoder, map_parameters(read, state), stored=True))
    trained, held = trained_on_quantised(folder), quantisation(nnx.state(decoder))
    if trained is not None and trained != held:
        show_note(
            f"{folder}: was trained on a base with model.quantise {trained}, which is {held} here:"
            " predictions and their calibration differ from those of training"
        )


def trained_on_quantised(adapter: Path) -> str | None:
    """Return `model.quantise` of the run that trained an adapter; None for those of other tools."""
    stored = read_calibration(adapter)
    return None if stored is None else stored["base"].get(QUANTISE, "none")


def open_adapter(folder: Path, lora: nnx.State, config: DecoderConfig) -> dict[str, Tensor]:
    """Return the adapter's tensors by our names ("model.layers.0.self_attn.q_proj.lora_A").

    Layers that the adapter leaves out get zeros, as do rows of A and columns of B beyond a layer's
    own rank. They add nothing. A and B are zero there, so their gradients are zero and training
    does not change them.

    Args:
        lora: the LoRA parameters that they are for, arrays or ShapeDtypeStructs.

    Raises:
        UserError: no file, or tensors that do not fit `lora`.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickled = folder / "adapter_model.bin"
        raise UserError(
            f"{pickled}: is a pickle, which can run any code when it is opened, and there is no"
            f" {WEIGHTS_FILE}; write it with PEFT: PeftModel.from_pretrained, then save_pretrained"
            if pickled.exists()
            else f"{file}: no such file; fetch it"
        )
    form, (tensors, _) = read_lora_config(folder), adapter_tensors(folder)
    shapes = tensor_shapes(lora, config)
    wanted = {}
    for table in TABLES:
        place, ids = ("model." if table == TABLES[0] else "") + table, form.trained_rows(table)
        if ids == () and f"{place}.weight" in tensors:
            tensors[f"{place}.lora_rows"] = tensors.pop(f"{place}.weight")
        rows = config.vocab_size
        found = tensors.get(f"{place}.lora_rows")
        if ids is not None and (
            max(ids, default=0) >= rows
            or (not ids and found is not None and found.shape[:1] != (rows,))
        ):
            raise UserError(resized(file, table, max((*ids, found.shape[0] - 1)) + 1, rows))
    for name, shape in shapes.items():
        own = own_shape(name, shape, form)
        if own is not None:
            wanted[own_name(name)[0]] = own
    if not wanted:
        raise UserError(
            f"{folder / CONFIG_FILE}: names no layer of this model; use the base it was trained on"
        )
    _require_match(file, tensors, wanted, form)

    def padded(name: str, shape: tuple[int, ...]) -> Tensor:
        found = tensors.get(own_name(name)[0])
        if found is not None and found.shape == shape:
            return found
        return Padded(file, name, shape, "F32", () if found is None else (found,))

    return {name: padded(name, shape) for name, shape in shapes.items()}


def placed(name: str, lora: LoraConfig) -> tuple[int, float]:
    """Return (rank, factor of B A) of the adapter that a tensor by a checkpoint's name belongs to;
    (0, 0.0): it has none."""
    module = own_name(name)[0].rpartition(".")[0]
    layer = re.match(r"model\.layers\.(\d+)\.", module)
    return lora.placed(module.rpartition(".")[2], int(layer[1]) if layer else 0)


def own_shape(name: str, shape: tuple[int, ...], lora: LoraConfig) -> tuple[int, ...] | None:
    """Return the shape that a tensor of an adapter has without padding to a larger rank; None where
    the adapter leaves its layer out."""
    kind, (rank, _) = name.rpartition(".")[2], placed(name, lora)
    if kind == "lora_rows":
        return shape
    own = {"lora_A": (rank, *shape[1:]), "lora_B": (*shape[:1], rank)}.get(kind, shape)
    return own if rank else None


def stored_name(name: str, lora: LoraConfig) -> str:
    """Return PEFT's name of a tensor of an adapter."""
    module, _, kind = name.rpartition(".")
    if kind == "lora_rows":
        some = lora.trained_rows(module.rpartition(".")[2])
        return PREFIX + module + (".token_adapter.trainable_tokens_delta" if some else ".weight")
    return PREFIX + name + ("_vector" if kind == "lora_magnitude" else ".weight")


def placed_name(name: str, lora: LoraConfig) -> str:
    """Return a checkpoint's name with the prefix that the adapter had when it was read."""
    if lora.placement is None:
        return name
    own, prefix = own_name(name)[0], lora.placement.prefix
    if own.startswith("lm_head."):
        return own.replace("lm_head", PREFIXES[prefix], 1)
    return own.replace("model.", prefix, 1)


def _require_match(
    file: Path, tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]], form: LoraConfig
) -> None:
    kinds = {
        "missing": [stored_name(name, form) for name in wanted if name not in tensors],
        "unexpected": [
            tensor.name
            for name, tensor in tensors.items()
            if name not in wanted and name not in BASE_COPIES
        ],
        "misshapen": [
            f"{tensors[name].name} {tensors[name].dtype}{list(tensors[name].shape)}, the model has"
            f" {list(shape)}"
            for name, shape in wanted.items()
            if name in tensors
            and (tensors[name].shape != shape or tensors[name].dtype not in DTYPES)
        ],
    }
    found = [f"{kind}: {first_of(items)}" for kind, items in kinds.items() if items]
    if found:
        raise UserError(f"{file}: does not fit the model; {'; '.join(found)}; use its own base")


def require_same_base(folder: Path, own: Callable[[str], np.ndarray]) -> None:
    """Refuse an adapter that carries the embedding or head of another base than that of which `own`
    returns the float32 weight of "embed_tokens" or "lm_head"."""
    file = folder / WEIGHTS_FILE
    tensors, form = adapter_tensors(folder)[0], read_lora_config(folder)
    for name, module in BASE_COPIES.items():
        copy = tensors.get(name)
        if copy is None or form.trained_rows(module) == ():
            continue
        weight = own(module)
        if copy.shape[:1] != weight.shape[:1]:
            raise UserError(resized(file, name, copy.shape[0], weight.shape[0]))
        # Either side may have been stored in bfloat16, which keeps 8 bits.
        if copy.shape != weight.shape or not np.allclose(
            copy.read().astype(np.float32), weight, rtol=2**-7, atol=1e-6
        ):
            raise UserError(
                f"{file}: carries {name} with other values than the base: it belongs to another"
                " base, or that layer was trained as well, which is not supported; give the base it"
                " was trained on"
            )


def resized(file: Path, name: str, rows: int, own: int) -> str:
    """Return the message for an embedding or head of another length than the base's."""
    return (
        f"{file}: carries {name} with {rows:,} rows, the base has {own:,}: its vocabulary was"
        " resized for training, which is not supported; merge it with PEFT, and give the merged"
        " model as the base"
    )


def adapter_hash(folder: str | Path) -> str:
    """Return the SHA-256 of an adapter's weights file, in hexadecimal digits."""
    return hashlib.sha256((Path(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()


def base_hash(folder: Path) -> str:
    """Return the hash of a checkpoint, as `HASH_OF` describes it.

    About a thousandth of the bytes is read. Headers and sizes alone would not do: a model and its
    instruct version share them, while the first rows differ after any training. The hash does not
    depend on how tensors are cut into shards.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(open_folder(folder).items()):
        line = json.dumps([name, tensor.dtype, list(tensor.shape)])
        digest.update(f"{line}\n".encode())
        first = slice(0, 1) if len(tensor.shape) > 1 else slice(None)
        digest.update(tensor.read((first,)).tobytes())
    return digest.hexdigest()


def read_calibration(adapter: Path) -> dict[str, Any] | None:
    """Return the contents of `calibration.json` in an adapter's folder; None if there is none."""
    file = adapter / CALIBRATION_FILE
    if not file.is_file():
        return None
    content = read_object(file, "")
    try:
        content["base"]["hash"], content["base"]["name"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file}: damaged (it must name its base: base.name, base.hash); train again, or fetch"
            " it again"
        ) from error
    return content


def require_trained_on(adapter: Path, base: Path, name: str) -> None:
    """Refuse a base other than the one that the adapter was trained on.

    Adapters of other tools carry no hash and are accepted; a note says if they name another base.

    Args:
        name: Hub id or folder of the base, as it was given.
    """
    calibration = read_calibration(adapter)
    if calibration is None:
        own = read_object(adapter / CONFIG_FILE, "").get("base_model_name_or_path")
        if isinstance(own, str) and own and Path(own).name.lower() != Path(name).name.lower():
            show_note(f"{adapter}: names {own} as its base, and is used on {name}")
    elif calibration["base"]["hash"] != base_hash(base):
        raise UserError(
            f"{adapter}: was trained on another base ({calibration['base']['name']}) than {base};"
            " their weights differ; give the base it was trained on"
        )
