"""Merge an adapter into its base: a complete Hugging Face model that any tool can serve.

    python -m cogcalib_jax.hf.merge --run runs/world-0/cols --out merged/
    python -m cogcalib_jax.hf.merge --model.path BASE --adapter FOLDER --out merged/

Tensors are read, merged in float32 and written one by one: memory holds the largest tensor and one
shard. If the adapter targets a head that shares the base's embedding, the head gets a tensor of its
own, and the embedding stays.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.calibration import Calibrator
from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.console import show_note
from cogcalib_jax.errors import UserError, check, run_main
from cogcalib_jax.files import put_json, refuse_external_links, whole_folder
from cogcalib_jax.hf.adapter import (
    CALIBRATION_FILE,
    open_adapter,
    placed,
    read_calibration,
    require_same_base,
    require_trained_on,
    trained_on_quantised,
)
from cogcalib_jax.hf.adapter_config import CONFIG_FILE, read_lora_config
from cogcalib_jax.hf.card import model_card
from cogcalib_jax.hf.experts import PACKED
from cogcalib_jax.hf.files import DTYPES, Tensor, model_folder, open_folder, write_folder
from cogcalib_jax.hf.tokenizer import combined_files, load_tokenizer, own_tokenizer, tokenizer_key
from cogcalib_jax.hf.weights import EMBEDDING, HEAD, REST, open_weights, read_config
from cogcalib_jax.machines import MeshConfig
from cogcalib_jax.models.config import LoraConfig
from cogcalib_jax.models.parameters import abstract_decoder
from cogcalib_jax.sharding import make_mesh

# Files of the base that are copied, beside those of its tokenizer.
COPIED = (
    *("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*"),
    *("preprocessor_config.json", "processor_config.json"),
)


@dataclass(frozen=True)
class BaseConfig:
    """The base model."""

    path: str | None = None
    """Hub id or local folder; unset: the base that the adapter names"""


@dataclass(frozen=True)
class MergeConfig:
    """The adapter to merge, and the form of the model that is written."""

    out: str
    """folder of the merged model; new or empty"""
    run: str | None = None
    """run folder of one method, whose adapter is merged"""
    adapter: str | None = None
    """folder of a LoRA adapter in PEFT layout, instead of a run"""
    model: BaseConfig = field(default_factory=BaseConfig)
    """the base model"""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """dtype of the written weights; auto: each as the base stores it"""
    max_shard_gb: float = 5.0
    """largest size of a weights file, in 10^9 bytes"""

    def __post_init__(self) -> None:
        check(self.out != "", "out", "must name a folder")
        check(
            (self.run is None) != (self.adapter is None),
            "run",
            "must name the folder of a run (--run runs/NAME-N); or give --adapter FOLDER: one of"
            " the two",
        )
        gb = self.max_shard_gb
        check(0 < gb < math.inf, "max_shard_gb", "must be a finite number above 0")


class Delta(NamedTuple):
    """The change that an adapter makes to one weight."""

    parts: dict[str, Tensor]
    """lora_A `[rank, in]`, lora_B `[out, rank]`, with DoRA lora_magnitude, the lengths of rows
    `[out]`; lora_rows `[rows, in]`, which replace the weight's"""
    scale: float
    """of B A"""
    row_ids: tuple[int, ...]
    """of lora_rows; (): all"""

    def added(self, weight: np.ndarray) -> np.ndarray:
        """Return W + scale * B A, computed in place of weight `[out, in]` float32."""
        parts = {name: part.read().astype(np.float32) for name, part in self.parts.items()}
        if "lora_rows" in parts:
            weight[list(self.row_ids) or slice(None)] = parts["lora_rows"]
        if "lora_A" in parts:
            weight += (np.float32(self.scale) * parts["lora_B"]) @ parts["lora_A"]
        if "lora_magnitude" in parts:
            weight *= (parts["lora_magnitude"] / np.linalg.norm(weight, axis=1))[:, None]
        return weight


def merge(config: MergeConfig, argv: list[str]) -> Path:
    """Write the merged model, and return its folder.

    argv: the arguments, for the model card. Raises UserError for a run without adapter, another
    base than the adapter's, damaged files, and a folder that cannot be written; nothing is written
    then.
    """
    run = None if config.run is None else _finished_run(Path(config.run))
    adapter = Path(config.adapter) if run is None else run / "adapter"
    lora = read_lora_config(adapter)
    base_name, base = _find_base(config.model.path, adapter)
    require_trained_on(adapter, base, base_name)
    if tokenizer_key(base, adapter):
        rows = read_config(base).vocab_size
        for note in own_tokenizer(base, adapter, load_tokenizer(base), rows)[1]:
            show_note(note)
    trained = trained_on_quantised(adapter)
    if trained not in (None, "none"):
        show_note(
            f"{adapter} was trained on a base with model.quantise {trained}; it is merged into the"
            f" base's own weights, so that predictions and their calibration differ from those of"
            " training"
        )
    tensors, deltas = _open(base, adapter, lora)
    untied = _unties(tensors, deltas)
    card = model_card(run, base_name, base, lora, argv, untied=untied, quantise=trained)
    out = Path(config.out)
    with whole_folder(out) as building:
        (building / "README.md").write_text(card, encoding="utf-8")
        _write_config(base, building, config.dtype, tensors, untied=untied)
        copied = filter(Path.is_file, (f for name in COPIED for f in base.glob(name)))
        for file in (*copied, *combined_files(base, adapter).values()):
            _copy(file, building / file.name)
        _write_calibration(adapter, building)
        merged = merged_tensors(tensors, deltas, config.dtype)
        if read_config(base).part_of is not None:
            merged = _with_rest(base, tensors, merged, config.dtype)
        write_folder(building, merged, max_shard_bytes=round(config.max_shard_gb * 1e9))
    return out


def _write_calibration(adapter: Path, building: Path) -> None:
    """Copy the adapter's calibration.json, if it has one, and mark it as merged."""
    stored = read_calibration(adapter)
    if stored is not None:
        calibrator = stored.get("calibrator")
        if calibrator is not None and Calibrator.from_json(calibrator).needs_start:
            reason = "a mixture needs the start's scores, and merged weights are one model"
            show_note(f"calibrator {calibrator[KIND]} is left out: {reason}")
            stored = stored | {"calibrator": None, "why_no_calibrator": reason}
        stored |= {"merged": True}
        put_json(building / CALIBRATION_FILE, stored, ensure_ascii=False)


def _copy(file: Path, target: Path) -> None:
    """Copy a file. On a full disk `shutil.copyfile` would blame the source."""
    with file.open("rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def _finished_run(run: Path) -> Path:
    """Return `run` if it holds an adapter; raises UserError."""
    methods = sorted(str(path.parent) for path in run.glob("*/adapter"))
    if methods:
        raise UserError(
            f"{run}: is a comparison of methods; give one of them: {', '.join(methods)}"
        )
    read = ("adapter", "config.yaml", "eval.json", "metrics.jsonl")
    refuse_external_links(run, [run / name for name in read])
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run}: no config.yaml, so it is not a run of train.py; give the folder of a run"
        )
    if not (run / "adapter").is_dir():
        raise UserError(f"{run}: no adapter, so its training is not finished; continue it first")
    return run


def _find_base(given: str | None, adapter: Path) -> tuple[str, Path]:
    """The base's name and its folder."""
    if given is not None:
        return given, model_folder(given)
    file = adapter / CONFIG_FILE
    name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{file}: names no base model; give it with --model.path")
    try:
        return name, model_folder(name)
    except UserError as error:
        raise UserError(f"{file}: its base is not here; give it with --model.path ({error})") from (
            error
        )


def _open(
    base: Path, adapter: Path, lora: LoraConfig
) -> tuple[dict[str, Tensor], dict[str, Delta]]:
    """The base's tensors by name, and the adapter of those that have one; all checked."""
    config = read_config(base)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    _, abstract = abstract_decoder(config, lora, jnp.dtype(jnp.float32), mesh)
    adapters, parameters = nnx.split_state(abstract, nnx.LoRAParam, ...)
    tensors = open_weights(base, parameters, config)
    parts = open_adapter(adapter, adapters, config)

    def own(module: str) -> np.ndarray:
        name = HEAD if module == "lm_head" and HEAD in tensors else EMBEDDING
        return tensors[name].read().astype(np.float32)

    require_same_base(adapter, own)
    deltas: dict[str, Delta] = {}
    for name, part in parts.items():
        module, _, kind = name.rpartition(".")
        scale, ids = placed(name, lora)[1], lora.trained_rows(module.rpartition(".")[2])
        if scale or kind == "lora_rows":
            delta = deltas.setdefault(f"{module}.weight", Delta({}, scale, ids or ()))
            delta.parts[kind] = part
    embedding = deltas.get(EMBEDDING)
    if embedding is not None and HEAD not in tensors:
        if HEAD in deltas and embedding.row_ids:  # the head's rows are the embedding's
            deltas[HEAD] = Delta(
                deltas[HEAD].parts | embedding.parts, deltas[HEAD].scale, embedding.row_ids
            )
        elif not embedding.row_ids:  # the head stays the base's embedding
            deltas.setdefault(HEAD, Delta({}, 0.0, ()))
    return tensors, deltas


def _unties(tensors: dict[str, Tensor], deltas: dict[str, Delta]) -> bool:
    """Return whether the merge gives the head a tensor of its own."""
    return HEAD in deltas and HEAD not in tensors


def merged_tensors(
    tensors: dict[str, Tensor], deltas: dict[str, Delta], dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the merged model's tensors one at a time: W + scale * B A, computed in float32.

    Args:
        tensors: of the base, by name.
        deltas: by the name of their weight.

    Raises:
        UserError: values that the dtype cannot hold.
    """
    sources = tensors | ({HEAD: tensors[EMBEDDING]} if _unties(tensors, deltas) else {})
    for name, tensor in sources.items():
        if name.endswith(PACKED):
            if dtype != "auto":
                raise UserError(
                    f"{name}: is MXFP4, which a merge copies as it is; --dtype is {dtype}, expected"
                    " auto. Leave it out"
                )
            yield name, tensor.read()
            continue
        wanted = DTYPES[tensor.dtype] if dtype == "auto" else jnp.dtype(dtype)
        array = tensor.read()
        if name in deltas:
            array = deltas[name].added(array.astype(np.float32))
        with np.errstate(over="ignore"):
            converted = array.astype(wanted)
        if not np.all(np.isfinite(converted.astype(np.float32))):
            raise UserError(
                f"{name}: holds values that {wanted.name} cannot; use --dtype bfloat16 or float32"
            )
        yield name, converted


def _with_rest(
    base: Path, tensors: dict[str, Tensor], merged: Iterator[tuple[str, np.ndarray]], dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a merged text half by their names in the base, then the base's rest."""
    own = {name: tensor.name for name, tensor in tensors.items()}
    prefix = "language_model." if own[EMBEDDING].startswith("language_model.") else ""
    for name, array in merged:
        yield own.get(name, prefix + name), array
    rest = {name: part for name, part in open_folder(base).items() if REST.match(name)}
    yield from merged_tensors(rest, {}, dtype)


def _write_config(
    base: Path, building: Path, dtype: str, tensors: dict[str, Tensor], untied: bool
) -> None:
    """Write the base's config.json with the changes of the merge."""
    raw: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    raw.pop("_name_or_path", None)  # a path on the machine where the base was saved
    # transformers 4 wrote torch_dtype; later versions read both.
    key = "torch_dtype" if "torch_dtype" in raw else "dtype"
    raw[key] = DTYPES[tensors[EMBEDDING].dtype].name if dtype == "auto" else dtype
    text = raw.get("text_config", {})
    if untied:
        raw["tie_word_embeddings"] = False
        text |= {"tie_word_embeddings": False} if text else {}
    text |= {name: raw[key] for name in ("torch_dtype", "dtype") if name in text}
    put_json(building / "config.json", raw)


def main(argv: list[str]) -> None:
    # NumPy does the work: leave accelerators and their memory to others.
    jax.config.update("jax_platforms", "cpu")
    prog = "python -m cogcalib_jax.hf.merge"
    config = load_config(MergeConfig, argv, prog=prog, description=__doc__ or "").config
    print(merge(config, argv))


if __name__ == "__main__":
    sys.exit(run_main(main))
