"""Checkpoints of a plain pytree: written in the background, whole or not at all, and verified.

Orbax reads and writes the arrays. It does not notice a flipped bit in them, and files that are cut
or missing make it fail in many ways; so a checkpoint is a folder that also holds a manifest with
the SHA-256 of every file and of every leaf, and Orbax is given nothing that differs from it
(`manifest.json`):

    checkpoints/STEP/manifest.json   what it belongs to, and the checksums
    checkpoints/STEP/state/          Orbax
    checkpoints/STEP-stopped/        likewise, taken before what follows the update was done
    checkpoints/STEP-damaged/        what was found damaged, and never read again

Of several processes the main one alone writes, and decides what is read; the others read the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from cogcalib_jax.console import warn
from cogcalib_jax.distributed import from_main, is_main, is_one_of_several, require_agreement
from cogcalib_jax.errors import UserError, refusal
from cogcalib_jax.files import with_path_in_errors, write_whole
from cogcalib_jax.sharding import fetch
from cogcalib_jax.training.config import CheckpointConfig, require_same_identity

# What is in a checkpoint and what it means: to be raised whenever a field of the saved tree or of
# the manifest is added, removed or read in another way. Not the package's version: most versions
# change nothing here, and a checkpoint of theirs is as good.
FORMAT = 3
BEFORE = 2  # whose manifests also say which checkpoint was the best

MANIFEST = "manifest.json"
# What it holds beside `format` and its own checksum.
KINDS = {
    "name": str,
    "identity": dict,
    "journals": dict,
    "leaves": dict,
    "files": dict,
}
CHUNK = 1 << 20


class DamageError(Exception):
    """A checkpoint is not what was written; the message says why."""


def write_manifest(place: Path, content: dict[str, Any]) -> None:
    """Write the manifest of the checkpoint in `place`; `content` has what `KINDS` names."""
    text = json.dumps(_sealed({"format": FORMAT} | content))
    write_whole(place / MANIFEST, text + "\n")


def read_manifest(place: Path) -> dict[str, Any]:
    """Return the manifest that `write_manifest` wrote in `place`.

    Raises:
        DamageError: it is not that.
        UserError: it is of another format.
    """
    try:
        stored = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        manifest = {key: value for key, value in stored.items() if key != "sha256"}
    except FileNotFoundError as error:
        raise DamageError(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise DamageError(f"{MANIFEST} cannot be read") from error
    if _sealed(manifest) != stored:
        raise DamageError(f"{MANIFEST} does not match its checksum")
    if manifest.get("format") not in (BEFORE, FORMAT):
        raise UserError(
            f"{place}: cannot resume: its format is {manifest.get('format')} and this program's"
            f" {FORMAT}; resume with the version that wrote it, or start another run"
        )
    for key, kind in KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise DamageError(f"{MANIFEST} has no {key}, or one of another kind")
    return manifest


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the manifest's own checksum: a flipped bit in an identity would look like another run."""
    text = json.dumps(manifest, sort_keys=True)
    return manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def file_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder`, by its path in there."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def journal_mark(path: Path, size: int) -> dict[str, Any]:
    """Return the entry of a file that only grows: its first `size` bytes, put on the disk."""
    if size:
        with with_path_in_errors(path), path.open("rb") as file:
            os.fsync(file)
    return {"bytes": size, "sha256": _prefix_checksum(path, size)}


def require_journal(path: Path, mark: Any) -> int:
    """Return the bytes that a mark describes; DamageError if the file does not begin with them."""
    if not isinstance(mark, dict) or not isinstance(mark.get("bytes"), int):
        raise DamageError(f"{MANIFEST} does not know {path.name}")
    size, there = mark["bytes"], path.stat().st_size if path.is_file() else 0
    if there < size:
        raise DamageError(f"{path.name} has {there} of the {size} bytes that it goes on from")
    if _prefix_checksum(path, size) != mark.get("sha256"):
        raise DamageError(f"{path.name} has changed in the {size} bytes that it goes on from")
    return size


def _prefix_checksum(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    if size:
        with path.open("rb") as file:
            while part := file.read(min(size, CHUNK)):
                digest.update(part)
                size -= len(part)
    return digest.hexdigest()


STATE = "state"
NAME = re.compile(r"(\d+)(-stopped)?")
# What Orbax raises over files it cannot read.
UNREADABLE = (ValueError, KeyError, OSError)


class Restored(NamedTuple):
    """A checkpoint that was read."""

    tree: Any
    step: int
    stopped: bool
    """what follows the update of `step` (the caller knows what) was not done yet"""
    journals: dict[str, int]
    """name of each journal -> bytes that it had when this was saved"""


def leaf_checksums(tree: Any) -> dict[str, str]:
    """Return the SHA-256 of every leaf's dtype, shape and bytes, by path.

    Of several processes, each gathers a leaf at a time and works out the same sums: what a leaf
    holds does not depend on where its parts lie.
    """
    checksums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = leaf if isinstance(leaf, np.ndarray) else fetch(leaf)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        checksums[jax.tree_util.keystr(path)] = digest.hexdigest()
    return checksums


class Checkpoints:
    """The checkpoints of one phase of training, in one folder, by step.

    A context: its end waits for what is being written.
    """

    def __init__(self, folder: Path, config: CheckpointConfig | None = None):
        self.folder = folder.absolute()
        self._config = config or CheckpointConfig()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # An error of the writer must not hide the one that ends the block.
        if error is None:
            self.wait()
        self._writer.shutdown()

    def save(
        self,
        step: int,
        tree: Any,
        identity: dict[str, Any],
        journals: Mapping[Path, int] = MappingProxyType({}),
        *,
        stopped: bool = False,
    ) -> None:
        """Save `tree` as it is now; it may be donated as soon as this returns.

        The arrays are copied to the host, and written in the background, one checkpoint at a time;
        of several processes, before this returns.

        Args:
            tree: arrays, LoRA parameters and their moments: little beside a model. Each process
                holds a copy of all of it for a moment, the main one until it is written.
            identity: JSON that says what the checkpoint belongs to.
            journals: files that are only appended to -> bytes of each that belong to this state.

        Raises:
            UserError: the one before could not be written (a full disk, a folder without
                permission).
        """
        self.wait()
        # A copy, also where numpy could look at the device's own memory, as on a CPU: the next
        # update writes there.
        host = jax.tree.map(lambda leaf: np.array(fetch(leaf)), tree)
        name = f"{step}-stopped" if stopped else str(step)
        manifest = {"name": name, "identity": identity}
        if is_one_of_several():
            # Orbax has all processes agree while it writes, and what they do meanwhile would come
            # in between: here they wait.
            self._write(name, host, manifest, journals)
        else:
            self._writing = self._writer.submit(self._write, name, host, manifest, journals)

    def wait(self) -> None:
        """Wait until the checkpoint is written. Raises UserError if it could not be."""
        from_main(self._settle)

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            refused = refusal(error)
            if refused is None:
                raise
            whole = self._names()
            kept = f"checkpoint {whole[-1]} is whole" if whole else "there is none before it"
            raise UserError(
                f"{refused}; a checkpoint could not be written, {kept}: --resume goes on from there"
            ) from error

    def _write(
        self, name: str, host: Any, manifest: dict[str, Any], journals: Mapping[Path, int]
    ) -> None:
        unfinished = self.folder / f".{name}.partial"

        def begin() -> None:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)

        def finish() -> None:
            written = {
                "journals": {path.name: journal_mark(path, n) for path, n in journals.items()},
                "leaves": leaf_checksums(host),
                "files": file_checksums(unfinished / STATE),
            }
            write_manifest(unfinished, manifest | written)
            unfinished.rename(self.folder / name)
            self._forget_old()

        try:
            with with_path_in_errors(self.folder):
                from_main(begin)
                with _quiet():
                    ocp.save(unfinished / STATE, host)
                from_main(finish)
        except BaseException:
            if is_main():
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _forget_old(self) -> None:
        names = self._names()
        for name in names[: -self._config.keep]:
            shutil.rmtree(self.folder / name)

    def _names(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.exists() else ()
        names = [match for path in found if (match := NAME.fullmatch(path.name))]
        return [m[0] for m in sorted(names, key=lambda m: (int(m[1]), m[2] is None))]

    def restore(
        self, like: Any, identity: dict[str, Any], journals: Sequence[Path] = ()
    ) -> Restored | None:
        """The newest checkpoint that is whole, laid out as `like`; None where there is none at all.

        One that is damaged, or whose journals are not what they were, is reported on stderr and
        moved aside.

        Args:
            like: arrays of the shapes and on the devices wanted.

        Raises:
            UserError: the checkpoint belongs to something else (the first field that differs is
                named), or every one is damaged.
        """
        found: dict[str, Any] = {}

        def choose() -> dict[str, Any] | None:
            for unfinished in self.folder.glob(".*.partial"):
                shutil.rmtree(unfinished)
            names, reasons = self._names(), []
            for name in reversed(names):
                try:
                    found["host"] = self._read(name, like, identity)
                    marks = read_manifest(self.folder / name)["journals"]
                    sizes = {p.name: require_journal(p, marks.get(p.name)) for p in journals}
                except DamageError as damage:
                    reasons.append(f"checkpoint {name} is damaged ({damage})")
                    continue
                self._set_aside(names[len(names) - len(reasons) :], reasons, name)
                return {"name": name, "journals": sizes}
            if reasons:
                raise UserError(
                    f"{self.folder}: {'; '.join(reasons)}; no whole one is left: put back what"
                    " is damaged from a copy, or delete this folder to start its phase again"
                )
            return None

        chosen = from_main(choose)
        if chosen is None:
            return None
        name = chosen["name"]
        try:
            host = found["host"] if found else self._read(name, like, identity)
        except DamageError:
            host = None
        require_agreement(f"checkpoint {name}", lambda: host and leaf_checksums(host))
        match = NAME.fullmatch(name)
        stopped = match[2] is not None
        return Restored(_placed(host, like), int(match[1]), stopped, chosen["journals"])

    def _read(self, name: str, like: Any, identity: dict[str, Any]) -> Any:
        """The arrays of a checkpoint on the host; DamageError, or UserError if it is another's."""
        place = self.folder / name
        manifest = read_manifest(place)
        require_same_identity(self.folder, manifest["identity"], identity)
        if manifest["name"] != name:
            raise DamageError(f"it was saved as {manifest['name']}")
        try:
            sums = file_checksums(place / STATE)
        except OSError as error:
            raise DamageError(f"its files cannot be read: {error.strerror}") from error
        for file, digest in manifest["files"].items():
            if file not in sums:
                raise DamageError(f"{STATE}/{file} is missing")
            if sums[file] != digest:
                raise DamageError(f"{STATE}/{file} does not match its checksum")
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        try:
            with _quiet(), _this_process_alone():
                host = ocp.load(place / STATE, wanted)
        except UNREADABLE as error:
            raise DamageError("its arrays cannot be read") from error
        different = [k for k, v in leaf_checksums(host).items() if manifest["leaves"].get(k) != v]
        if different:
            raise DamageError(f"{different[0]} does not match its checksum")
        return host

    def _set_aside(self, names: list[str], reasons: list[str], used: str) -> None:
        for name, reason in zip(reversed(names), reasons, strict=True):
            aside = self.folder / f"{name}-damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / name).rename(aside)
            warn(f"{self.folder}: {reason}; moved to {aside.name}, and checkpoint {used} is used")


def _placed(host: Any, like: Any) -> Any:
    """Arrays of the host on the devices of `like`."""

    def place(array: np.ndarray, leaf: jax.Array) -> jax.Array:
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda i: array[i])

    # A copy of the device's own: on a CPU the first may lie in numpy's memory, and it is donated.
    return jax.tree.map(lambda array, leaf: jnp.copy(place(array, leaf)), host, like)


def _this_process_alone() -> ocp.Context:
    """Let Orbax read alone: it would wait for other processes, which may have nothing to read."""
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    return ocp.Context(multiprocessing_options=options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Orbax, which logs a traceback of every error that it also raises."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
