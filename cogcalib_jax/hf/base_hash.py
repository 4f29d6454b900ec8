"""What tells one base model from another: a hash of its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.foreign import read_object
from cogcalib_jax.hf.safetensors import open_folder

CALIBRATION_FILE = "calibration.json"
HASH_OF = (
    "SHA-256 over all tensors in the order of their names: a JSON line [name, dtype, shape], then"
    " the bytes of the first row (of a vector: all)"
)


def base_hash(folder: Path) -> str:
    """The hash of a checkpoint, as `HASH_OF` says; about a thousandth of the bytes is read.

    Headers and sizes alone would not do: a model and its instruct version share them. The first
    rows differ after any training. How tensors are cut into shards does not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(open_folder(folder).items()):
        line = json.dumps([name, tensor.dtype, list(tensor.shape)])
        digest.update(f"{line}\n".encode())
        first = slice(0, 1) if len(tensor.shape) > 1 else slice(None)
        digest.update(tensor.read((first,)).tobytes())
    return digest.hexdigest()


def read_calibration(adapter: Path) -> dict[str, Any] | None:
    """What `calibration.json` in an adapter's folder holds; None where there is none."""
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


def require_trained_on(adapter: Path, base: Path) -> None:
    """Refuse a base whose weights are not those the adapter was trained on.

    Adapters of other tools carry no hash: nothing can be said of them, and nothing is.
    """
    calibration = read_calibration(adapter)
    if calibration is not None and calibration["base"]["hash"] != base_hash(base):
        raise UserError(
            f"{adapter}: was trained on another base ({calibration['base']['name']}) than {base};"
            " their weights differ; give the base it was trained on"
        )
