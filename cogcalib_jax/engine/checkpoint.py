"""Orbax checkpoints of a plain pytree, each with a checksum per leaf.

Orbax writes atomically and restores onto the shardings asked for. What it does not do is notice a
flipped bit in its array data, so every checkpoint carries the SHA-256 of its leaves and a restore
compares them before anything is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from cogcalib_jax.configlib import check
from cogcalib_jax.errors import UserError
from cogcalib_jax.sharding import fetch


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved and how much of it is kept."""

    every: int | None = None
    """steps between checkpoints; unset means at the end of each epoch"""
    keep: int = 2
    """checkpoints kept, newest first"""

    def __post_init__(self) -> None:
        check(self.every is None or self.every >= 1, "every", "must be an integer of at least 1")
        check(self.keep >= 1, "keep", "must be an integer of at least 1")


def leaf_checksums(tree: Any) -> dict[str, str]:
    """SHA-256 of every leaf's dtype, shape and bytes, by path.

    Of several processes, each gathers a leaf at a time and works out the same sums: what a leaf
    holds does not depend on where its parts lie. Leaves are LoRA parameters and their moments, so
    that is little.
    """
    checksums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = fetch(leaf)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        checksums[jax.tree_util.keystr(path)] = digest.hexdigest()
    return checksums


class Checkpoints:
    """The checkpoints of one phase of training, in one folder, by step."""

    def __init__(self, folder: Path, keep: int = 1):
        self.folder = folder
        self._manager = ocp.training.Checkpointer(
            folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        latest = self._manager.latest
        return None if latest is None else latest.step

    def save(self, step: int, tree: Any, identity: dict[str, Any]) -> None:
        """Save `tree` at `step`; `identity` (JSON) says what it belongs to."""
        if self.latest_step is not None and self.latest_step >= step:
            return  # resumed exactly at a checkpoint: it is there already
        self._manager.save(
            step,
            tree,
            custom_metadata={"identity": identity, "sha256": leaf_checksums(tree)},
        )

    def restore(self, like: Any, identity: dict[str, Any]) -> Any:
        """The newest checkpoint, laid out as `like` (arrays or ShapeDtypeStructs with shardings).

        Raises UserError when it belongs to something else (the first field that differs is named)
        or when its data are damaged.
        """
        step = self.latest_step
        # What Orbax raises over files it cannot read: measured by flipping bits in each of them.
        unreadable = (ValueError, KeyError, OSError)
        try:
            stored = self._manager.metadata(step).custom_metadata
            stored_identity, checksums = stored["identity"], stored["sha256"]
        except unreadable as error:
            raise self._damaged(step, "its metadata cannot be read") from error
        require_same_identity(self.folder, stored_identity, identity)
        abstract = jax.tree.map(ocp_abstract, like)
        try:
            tree = self._manager.load(step, abstract)
        except unreadable as error:
            raise self._damaged(step, "its arrays cannot be read") from error
        damaged = [
            path for path, digest in leaf_checksums(tree).items() if checksums.get(path) != digest
        ]
        if damaged:
            reason = f"{len(damaged)} arrays do not match their checksum, first {damaged[0]}"
            raise self._damaged(step, reason)
        return tree

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self.folder}: checkpoint {step} is damaged ({reason}); delete the folder"
            f" {self.folder / str(step)} to go on from an older one, or from the start"
        )

    def close(self) -> None:
        self._manager.close()


def ocp_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """What Orbax needs to know of a leaf to restore it where it belongs."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def require_same_identity(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to resume what was started with other settings, naming the first that differs."""
    # Through JSON, as stored ones went: tuples become lists.
    stored, wanted = json.loads(json.dumps([stored, wanted]))

    def differences(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [
                line
                for key in sorted(a.keys() | b.keys())
                for line in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
            ]
        return [] if a == b else [f"{path} is {b!r} but it was started with {a!r}"]

    different = differences(stored, wanted, "")
    if different:
        raise UserError(
            f"{folder}: cannot resume: {different[0]}; use the original value or another --run-dir"
        )
