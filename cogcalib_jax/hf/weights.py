"""Checkpoints in Hugging Face layout and decoders: config.json and weights, in and out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.errors import UserError, first_of
from cogcalib_jax.files import put_json, read_object, whole_folder
from cogcalib_jax.hf.adapter_config import own_name
from cogcalib_jax.hf.experts import (
    PACKED,
    expert_tensors,
    is_expert,
    open_stack,
    stored_experts,
    stored_name,
)
from cogcalib_jax.hf.files import (
    DTYPES,
    Tensor,
    model_folder,
    open_folder,
    tensor_list,
    write_folder,
)
from cogcalib_jax.models.config import DecoderConfig, LoraConfig, Quantise
from cogcalib_jax.models.decoder import Decoder, Remat
from cogcalib_jax.models.families import from_hf, tensor_names, to_hf
from cogcalib_jax.models.parameters import Path as ParameterPath
from cogcalib_jax.models.parameters import (
    abstract_decoder,
    map_parameters,
    random_lora,
    require_cut,
    require_whole,
)
from cogcalib_jax.models.quantised import SCALES, quantise_rows
from cogcalib_jax.sharding import fetch

# Parts of a multimodal model beside its text half.
REST = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
GENERATION = "generation_config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Buffers of old checkpoints, which the decoder computes.
IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
# Last parts of names that only quantised checkpoints have.
QUANTISED_BY = {
    "qweight": "GPTQ or AWQ",
    "absmax": "bitsandbytes in 4 bits",
    "SCB": "bitsandbytes in 8 bits",
    "weight_scale_inv": "FP8",
    "weight_scale": "FP8 or compressed-tensors",
    "weight_packed": "compressed-tensors",
}
# Bytes of a file that are read at a time.
READ_BYTES = 16_000_000
# Numbers that are read at a time to be quantised: their copies fit a processor's cache.
QUANTISED_NUMBERS = 2**18
# The default of transformers.
MAX_SHARD_BYTES = 5_000_000_000


def stored_dtype(name: str | Path) -> str | None:
    """Return the dtype of a checkpoint that its config.json names; None if it names none."""
    path = model_folder(name, weights=False) / "config.json"
    raw = read_object(path, "a model's folder holds its config.json")
    return raw.get("dtype") or raw.get("torch_dtype")


def read_config(name: str | Path) -> DecoderConfig:
    """Return the architecture of a local folder or Hub id.

    Raises UserError for a file that is absent or no JSON object, an unsupported architecture, or
    values that make no model.
    """
    folder = model_folder(name, weights=False)
    path = folder / "config.json"
    raw, generation = (
        read_object(path, "a model's folder holds its config.json"),
        folder / GENERATION,
    )
    if generation.is_file():
        # As in transformers, its tokens end a text, and not those of config.json.
        ends = read_object(generation, "").get("eos_token_id")
        raw |= {} if ends is None else {"eos_token_id": ends}
    config = from_hf(raw, str(path))
    if config.part_of is None:
        return config
    # transformers 5 says for these that the head is the embedding, and looks at the weights.
    stored = {own_name(name)[0] for name in tensor_list(folder)}
    return replace(config, tie_word_embeddings=HEAD not in stored) if stored else config


def load_decoder(
    name: str | Path,
    *,
    lora: LoraConfig | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh,
    seed: int = 0,
    remat: Remat = "none",
    attention: str = "xla",
    quantise: Quantise = "none",
) -> Decoder:
    """Return a decoder with the weights of a checkpoint, spread over `mesh`.

    Weights may be stored as bfloat16, float16 or float32. Each device gets the slices that it
    holds, read from the files as it needs them, and quantised some rows at a time.

    Args:
        lora: adds fresh LoRA parameters of this form; None: none.
        dtype: of the base's parameters.
        seed: of the LoRA parameters, which begin as PEFT's do.

    Raises:
        UserError: tensors that are missing, unexpected or of another shape, all in one message; a
            mesh that cannot cut the model.
    """
    config = read_config(name)
    require_cut(config, mesh)
    folder = model_folder(name)
    _, stored = abstract_decoder(config, None, jnp.dtype(dtype), mesh)
    tensors = open_weights(folder, stored, config)
    graphdef, abstract = abstract_decoder(
        config, lora, jnp.dtype(dtype), mesh, remat=remat, attention=attention, quantise=quantise
    )
    base = nnx.filter_state(abstract, nnx.Not(nnx.LoRAParam))
    values = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(base)}
    made: dict[ParameterPath, jax.Array] = {}

    def read(path: ParameterPath, leaf: nnx.Variable) -> nnx.Variable:
        pair = [(*path[:-1], name) for name in ("weight", SCALES)]
        if path in made:
            return leaf.replace(made.pop(path))
        if path in pair and pair[1] in values:
            parts = [tensors[stored_name(n, tensors)] for n in tensor_names(pair[0], config)]
            made.update(zip(pair, read_quantised(parts, *map(values.get, pair)), strict=True))
            return leaf.replace(made.pop(path))
        target = leaf.get_value()
        if is_expert(path):
            layers = stored_experts(path, target.shape[1:], config, tensors)
            parts = [open_stack(layer, tensors) for layer in layers]
        else:
            parts = [tensors[stored_name(n, tensors)] for n in tensor_names(path, config)]
        return leaf.replace(read_parameter(parts, target, path[0] == "layers"))

    state = map_parameters(read, base)
    if lora is not None:
        state = nnx.merge_state(state, random_lora(config, lora, abstract, seed))
    return nnx.merge(graphdef, state)


def read_parameter(parts: list[Tensor], target: jax.ShapeDtypeStruct, stacked: bool) -> jax.Array:
    """Return a parameter with `target`'s shape, dtype and sharding, read from its tensors.

    parts: one tensor, or with `stacked` the tensor of each layer. A target of uint16 takes the
    bits of bfloat16 (`models.product`).
    """
    in_bits = target.dtype == np.uint16

    def read(index: tuple[slice, ...]) -> np.ndarray:
        # The axis of layers is never cut (sharding.RULES).
        dtype = DTYPES["BF16"] if in_bits else target.dtype
        out = np.empty(target.sharding.shard_shape(target.shape), dtype)
        for rows, part in zip(out if stacked else [out], parts, strict=True):
            _fill(rows, part, index[1:] if stacked else index)
        return out.view(np.uint16) if in_bits else out

    (array,) = _from_slices([target], lambda index: [read(index)])
    return array


def read_quantised(
    parts: list[Tensor], codes: jax.ShapeDtypeStruct, scales: jax.ShapeDtypeStruct
) -> list[jax.Array]:
    """Return the codes and scales of a stack of weights, quantised some rows at a time.

    Args:
        parts: the tensor of each layer.
        codes: shape, dtype and sharding of the codes; the dtype says how weights are quantised.
    """
    in_a_byte = scales.shape[-2] // codes.shape[-2]
    step = max(2, QUANTISED_NUMBERS // codes.shape[-1] // 2 * 2)

    def read(index: tuple[slice, ...]) -> list[np.ndarray]:
        _, rows, columns = index
        out = [np.empty(x.sharding.shard_shape(x.shape), x.dtype) for x in (codes, scales)]
        first, end = in_a_byte * (rows.start or 0), out[1].shape[1]
        for layer, part in enumerate(parts):
            for row in range(0, end, step):
                stop = min(row + step, end)
                weight = part.read((slice(first + row, first + stop), columns))
                here = slice(row // in_a_byte, stop // in_a_byte)
                out[0][layer, here], out[1][layer, row:stop] = quantise_rows(weight, codes.dtype)
        return out

    return _from_slices([codes, scales], read)


def _fill(out: np.ndarray, part: Tensor, index: tuple[slice, ...]) -> None:
    """Copy `part[index]` into `out`, some rows at a time.

    Until a file is closed, all rows that were touched count as memory of this process.
    """
    first, *columns = index
    start = first.start or 0
    row_bytes = max(1, math.prod(part.shape[1:])) * DTYPES[part.dtype].itemsize
    step = max(1, READ_BYTES // row_bytes)
    for row in range(0, len(out), step):
        stop = min(row + step, len(out))
        out[row:stop] = part.read((slice(start + row, start + stop), *columns))


def _from_slices(
    targets: list[jax.ShapeDtypeStruct], read: Callable[[tuple[slice, ...]], list[np.ndarray]]
) -> list[jax.Array]:
    """Return global arrays, cut alike, with the shards `read(index)`; equal slices are read once.

    `index` is of the first array. One slice is on the host at a time.
    `jax.make_array_from_callback` reads all slices before it moves the first, so that a stack of
    layers is held twice (measured on a checkpoint of 1 GB: 1.15 GB instead of 1.06).
    """
    first = targets[0]
    indices = first.sharding.addressable_devices_indices_map(first.shape)
    holders: dict[tuple, list[jax.Device]] = {}
    for device, index in indices.items():
        holders.setdefault(tuple((part.start, part.stop) for part in index), []).append(device)
    shards: list[list[jax.Array]] = [[] for _ in targets]
    for devices in holders.values():
        for made, part in zip(shards, read(indices[devices[0]]), strict=True):
            made += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return [
        jax.make_array_from_single_device_arrays(target.shape, target.sharding, made)
        for target, made in zip(targets, shards, strict=True)
    ]


def open_base(folder: Path, config: DecoderConfig) -> dict[str, Tensor]:
    """Return the tensors in `folder`, those of a text half under the names that it has alone."""
    tensors = open_folder(folder)
    if config.part_of is None:
        return tensors
    return {own_name(name)[0]: tensor for name, tensor in tensors.items() if not REST.match(name)}


def open_weights(folder: Path, base: nnx.State, config: DecoderConfig) -> dict[str, Tensor]:
    """Return the tensors in `folder` that make up `base`, by name; only headers are read.

    base: parameters without LoRA, arrays or ShapeDtypeStructs. Raises UserError as `load_decoder`
    does. A head that is stored beside the embedding it is tied to is read and compared.
    """
    tensors, tied = open_base(folder, config), config.tie_word_embeddings
    _require_whole_weights(folder, tensors)
    if tied and HEAD in tensors and EMBEDDING not in tensors:
        # Some checkpoints store a tied weight under the head's name alone.
        tensors[EMBEDDING] = tensors.pop(HEAD)
    wanted = _stored_shapes(base, config, tensors)
    missing = [name for name in wanted if name not in tensors]
    unexpected = [
        name
        for name in tensors
        if name not in wanted
        and not IGNORED.fullmatch(name)
        # Some checkpoints store the head again although it is the embedding.
        and not (tied and name == HEAD)
    ]
    wrong = [
        f"{name} (shape {list(tensors[name].shape)}, config.json says {list(shape)})"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    odd = [
        f"{name} (dtype {tensors[name].dtype}, allowed {', '.join(_allowed(name))})"
        for name in wanted
        if name in tensors and tensors[name].dtype not in _allowed(name)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": wrong, "unreadable": odd}
    found = [f"{kind}: {first_of(names)}" for kind, names in kinds.items() if names]
    if found:
        raise UserError(
            f"{folder}: weights and config.json do not belong together; {'; '.join(found)};"
            " use the files of one checkpoint"
        )
    if tied and HEAD in tensors:
        _require_tied(folder, tensors[EMBEDDING], tensors[HEAD])
    return {name: tensors[name] for name in wanted}


def _allowed(name: str) -> tuple[str, ...]:
    return ("U8",) if name.endswith(PACKED) else tuple(DTYPES)


def _stored_shapes(
    base: nnx.State, config: DecoderConfig, present: Container[str]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a base's tensors by name, in the layout that `present` has."""
    dense, experts = nnx.filter_state(base, lambda path, _: not is_expert(path)), {}
    for path, leaf in nnx.to_flat_state(base):
        if is_expert(path):
            for stored in stored_experts(path, leaf.get_value().shape[1:], config, present):
                experts |= stored.needed
    shapes = tensor_shapes(dense, config)
    return {stored_name(name, present): shape for name, shape in shapes.items()} | experts


def _require_whole_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors of a quantised checkpoint whose config.json does not say what it is."""
    for name in tensors:
        method = QUANTISED_BY.get(name.rpartition(".")[2])
        if method is not None:
            raise UserError(
                f"{folder}: holds {name}, so its weights are quantised ({method}); expected"
                " float32, bfloat16 or float16. Use the checkpoint that it was made from, and"
                " --model.quantise nf4 or int8"
            )


def tensor_shapes(state: nnx.State, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a checkpoint of these parameters, by name."""
    return {
        name: leaf.get_value().shape[1 if path[0] == "layers" else 0 :]
        for path, leaf in nnx.to_flat_state(state)
        for name in tensor_names(path, config)
    }


def _require_tied(folder: Path, embedding: Tensor, head: Tensor) -> None:
    rows = max(1, READ_BYTES // (4 * math.prod(embedding.shape[1:])))
    parts = [
        (slice(start, min(start + rows, embedding.shape[0])),)
        for start in range(0, embedding.shape[0], rows)
    ]
    if embedding.shape != head.shape or not all(
        np.array_equal(embedding.read(part), head.read(part), equal_nan=True) for part in parts
    ):
        raise UserError(
            f"{folder}: config.json says that lm_head.weight is the embedding"
            " (tie_word_embeddings), but the weights hold another one; set tie_word_embeddings to"
            " false in config.json, or remove lm_head.weight"
        )


def save_decoder(decoder: Decoder, folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write config.json and the weights without LoRA in Hugging Face layout, in their dtype; a text
    half as a model of its own.

    folder: new or empty; it appears whole or not at all. Raises UserError for a quantised base.
    """
    require_whole(decoder)
    config = replace(decoder.config, part_of=None)
    with whole_folder(Path(folder)) as building:
        raw = to_hf(config) | {"dtype": jnp.dtype(decoder.dtype).name}
        put_json(building / "config.json", raw)
        base = nnx.state(decoder, nnx.Not(nnx.LoRAParam))
        write_folder(building, host_tensors(base, config), max_shard_bytes)


def host_tensors(state: nnx.State, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield parameters by their checkpoint names, one layer at a time, gathered on every host."""
    experts = {}
    for path, leaf in nnx.to_flat_state(state):
        array = leaf.get_value()
        if is_expert(path):
            experts[path] = array
            continue
        names = tensor_names(path, config)
        if path[0] != "layers":
            yield names[0], fetch(array)
            continue
        for layer, name in enumerate(names):
            yield name, _layer(array, layer)
    for layer in range(config.num_layers if experts else 0):
        gathered = {path: _layer(array, layer) for path, array in experts.items()}
        yield from expert_tensors(layer, gathered, config)


def _layer(array: jax.Array, layer: int) -> np.ndarray:
    host = fetch(array[layer])
    # The bits of bfloat16 (`models.product`).
    return host.view(DTYPES["BF16"]) if host.dtype == np.uint16 else host
