"""The files of a model: found or fetched, and the tensors in them, one file or shards.

Nothing that can run code is fetched: only safetensors, JSON and tokenizer files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cogcalib_jax.console import quiet_downloads
from cogcalib_jax.errors import UserError, first_of
from cogcalib_jax.files import is_plain_name, put_json, read_object, refuse_external_links

DESCRIPTION_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")
# Not "*.safetensors": some repositories hold the same weights again as consolidated*.safetensors.
WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


def model_folder(
    name: str | Path, *, weights: bool = True, fetch: Callable[..., str] = snapshot_download
) -> Path:
    """Return the folder of a model.

    Args:
        name: a local folder, or a Hub id such as "Qwen/Qwen2.5-0.5B".
        weights: False fetches the configuration and the tokenizer alone.
        fetch: downloads the files of a Hub id and returns their folder, as `snapshot_download`.

    Raises:
        UserError: neither folder nor Hub id, a failed download, or links out of the folder.
    """
    folder = Path(name)
    if folder.is_dir():
        refuse_external_links(folder, folder.rglob("*"))
        return folder
    text = str(name)
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or folder.exists():
        raise UserError(
            f"{name}: no such folder; give a folder with config.json and safetensors files, or a"
            " Hub id (OWNER/NAME)"
        )
    patterns = DESCRIPTION_FILES + (WEIGHT_FILES if weights else ())
    quiet_downloads(huggingface_hub.utils)
    try:
        return Path(fetch(text, allow_patterns=list(patterns)))
    # The libraries below huggingface_hub raise errors of their own, which change with its version.
    except Exception as error:
        raise UserError(_why_not_fetched(text, error)) from error


def _why_not_fetched(name: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, GatedRepoError):
        return (
            f"{name}: the model is gated; ask for access at https://huggingface.co/{name}, then log"
            " in with `hf auth login`"
        )
    if isinstance(error, LocalEntryNotFoundError | ConnectionError):
        return (
            f"{name}: no such folder, and the Hub cannot be reached to fetch it; go online, or"
            " download it elsewhere and give its folder"
        )
    if isinstance(error, HfHubHTTPError | HFValidationError):
        return (
            f"{name}: no such folder, and the Hub refused it ({reason}); check the name, and log"
            " in with `hf auth login` if the model is private"
        )
    return (
        f"{name}: the download from the Hub failed ({type(error).__name__}: {reason}); run the"
        " command again, files that are complete are kept"
    )


def public_name(name: str | Path) -> str:
    """Return a name that may be published: a Hub id, or the last part of a folder's path."""
    text = str(name)
    is_folder = Path(text).is_dir() or text.count("/") != 1 or text.startswith(("/", ".", "~"))
    return Path(text).name if is_folder else text


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
SHARD = re.compile(r"model-\d{5}-of-(?P<count>\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, of which only the header has been read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    """as safetensors calls it: F32, BF16, ..."""

    def read(self, index: tuple[slice, ...] | slice = slice(None)) -> np.ndarray:
        """Return the part at `index` in the file's dtype; no other bytes are read."""
        with safe_open(self.file, framework="numpy") as handle:
            return handle.get_slice(self.name)[index]


@dataclass(frozen=True)
class Padded(Tensor):
    """Zeros of a shape, in float32, with a tensor of a file in their corner."""

    sources: tuple[Tensor, ...] = ()
    """that tensor; (): none"""

    def read(self, index: tuple[slice, ...] | slice = slice(None)) -> np.ndarray:
        whole = np.zeros(self.shape, np.float32)
        for source in self.sources:
            whole[tuple(map(slice, source.shape))] = source.read()
        return whole[index]


def open_folder(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint by name. Raises UserError for files that are missing,
    damaged, pickled, or outside of the folder."""
    single = folder / SINGLE_FILE
    if single.exists():
        if not single.is_file():  # to open a named pipe would wait for ever
            raise UserError(f"{single}: is no file; put the weights there")
        return read_header(single)
    if (folder / INDEX_FILE).exists():
        return _read_index(folder / INDEX_FILE)
    _require_no_shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder}: holds {pickles[0]} but no safetensors; a pickle can run any code when it"
            " is opened, so it is refused: convert it with transformers'"
            " save_pretrained, or use a checkpoint with safetensors"
        )
    raise UserError(
        f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; give a folder with safetensors weights"
    )


def tensor_list(folder: Path) -> list[str]:
    """Return the names of a checkpoint's tensors, as its one file or its index lists them; none if
    there is neither, as in a folder without weights."""
    if (folder / SINGLE_FILE).is_file():
        return list(read_header(folder / SINGLE_FILE))
    return list(_weight_map(folder / INDEX_FILE)) if (folder / INDEX_FILE).is_file() else []


def _require_no_shards(folder: Path) -> None:
    """Refuse a folder with shards but without their index, and name what is missing."""
    found = {path.name: SHARD.fullmatch(path.name) for path in folder.iterdir()}
    present = {name: match for name, match in found.items() if match}
    if not present:
        return
    count = max(int(match["count"]) for match in present.values())
    shards = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, min(count, 10_000) + 1)]
    absent = [INDEX_FILE, *(name for name in shards if name not in present)]
    raise UserError(
        f"{folder}: holds {len(present)} of {count:,} shards and no index; missing:"
        f" {first_of(absent)}. Fetch them again"
    )


def read_header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one file. Raises UserError for a truncated or damaged file."""
    try:
        with safe_open(file, framework="numpy") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {
                name: Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{file}: not a whole safetensors file ({reason}); fetch it again"
        ) from error


def _weight_map(index: Path) -> dict[str, str]:
    placed = read_object(index, "").get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(f, str) for f in placed.values()):
        raise UserError(
            f"{index}: no index of shards (weight_map must name the file of every tensor); fetch"
            " the file again"
        )
    return placed


def _read_index(index: Path) -> dict[str, Tensor]:
    placed = _weight_map(index)
    files = sorted(set(placed.values()))
    outside = [name for name in files if not is_plain_name(name)]
    if outside:
        raise UserError(
            f"{index}: names a file outside its folder ({outside[0]!r:.80}); get the checkpoint"
            " from its original source"
        )
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise UserError(
            f"{index.parent}: {len(absent)} of {len(files)} shards missing: {first_of(absent)};"
            " fetch them again"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        # A shard may hold an older copy of a tensor that the index places in another shard.
        header = read_header(index.parent / file)
        tensors |= {
            name: tensor for name, tensor in header.items() if placed.get(name, file) == file
        }
    lost = sorted(f"{name} ({file})" for name, file in placed.items() if name not in tensors)
    if lost:
        raise UserError(
            f"{index}: names tensors that are not in the shard it gives: {first_of(lost)}; fetch"
            " the checkpoint again"
        )
    return tensors


def write_folder(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> None:
    """Write tensors as one file, or as shards of at most `max_shard_bytes` with an index; those of
    one shard are in memory at a time."""
    shards: list[Path] = []
    placed: dict[str, Path] = {}
    total = 0
    for number, shard in enumerate(_cut(tensors, max_shard_bytes), start=1):
        path = folder / f"shard-{number}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append(path)
        placed |= dict.fromkeys(shard, path)
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) == 1:
        shards[0].rename(folder / SINGLE_FILE)
        return
    names = {}
    for number, path in enumerate(shards, start=1):
        names[path] = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / names[path])
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[path] for name, path in placed.items()},
    }
    put_json(folder / INDEX_FILE, index)


def _cut(
    tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
    yield shard
