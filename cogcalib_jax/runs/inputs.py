"""What a run reads from elsewhere, told by hash: it may be moved, but not changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import read_object
from cogcalib_jax.hf.adapter import base_hash
from cogcalib_jax.hf.adapter_config import WEIGHTS_FILE
from cogcalib_jax.hf.download import model_folder
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.stored import INPUTS_FILE
from cogcalib_jax.training.manifest import MANIFEST, DamageError, read_manifest


def hash_inputs(config: RunConfig, base: str | Path, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the hashes of base, adapter and rows, as JSON.

    base: folder or Hub id. data: split -> hash of its rows. Of several processes the main one
    reads: a thousandth of the base's weights, but of all tensors.
    """

    def read() -> dict[str, Any]:
        adapter = None
        if config.adapter is not None:
            weights = (Path(config.adapter) / WEIGHTS_FILE).read_bytes()
            adapter = hashlib.sha256(weights).hexdigest()
        return {"base": base_hash(model_folder(base)), "adapter": adapter, "data": dict(data)}

    return from_main(read)


def write_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write `inputs.json` of a run that begins."""
    write_json(folder / INPUTS_FILE, inputs)


def require_same_inputs(folder: Path, config: RunConfig, inputs: Mapping[str, Any]) -> bool:
    """Refuse to resume with another base, adapter or other rows than the run was started with.

    Returns whether there was something to compare with: runs of before `inputs.json` have it in
    their checkpoints alone, and none before the first.
    """
    stored = from_main(lambda: _stored(folder))
    if stored is None:
        return False
    changed = [
        split for split, value in stored["data"].items() if inputs["data"].get(split) != value
    ]
    if stored["base"] != inputs["base"]:
        what, given, option = "weights of the base differ", config.model.path, "--model.path"
    elif stored.get("adapter", inputs["adapter"]) != inputs["adapter"]:
        what, given, option = "weights of the adapter differ", config.adapter, "--adapter"
    elif changed:
        what = f"rows differ (split {changed[0]})"
        given, option = config.data.path, "--data.path"
        if changed[0] == "anchor":
            what, given, option = "anchor rows differ", config.anchor.path, "--anchor.path"
    else:
        return True
    where = f"{option[2:]} = {given}" if given is not None else f"data.task = {config.data.task}"
    remedy = f"give the same one's place with {option}, or" if given is not None else ""
    raise UserError(
        f"{folder}: cannot resume: {where}: the {what} from what the run was started with;"
        f" {remedy} choose another --run-dir"
    )


def _stored(folder: Path) -> dict[str, Any] | None:
    file = folder / INPUTS_FILE
    if file.is_file():
        stored = read_object(file, "")
        if not isinstance(stored.get("data"), dict) or "base" not in stored:
            raise UserError(
                f"{file}: damaged (it must hold base and data); put it back from a copy"
            )
        return stored
    for manifest in sorted(folder.rglob(f"checkpoints/*/{MANIFEST}")):
        try:
            return read_manifest(manifest.parent)["identity"]["made_from"]
        except (DamageError, KeyError):
            continue
    return None


@contextmanager
def may_have_moved(place: str | Path | None, option: str, resume: bool) -> Iterator[None]:
    """Add to the error of a place that is gone, on `resume`, how its new one is given."""
    try:
        yield
    except UserError as error:
        if not resume or place is None or Path(place).exists():
            raise
        raise UserError(f"{error}; if it was moved, give its new place with {option}") from error
