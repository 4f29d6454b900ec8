"""Files and folders that appear whole or not at all, and files that somebody else made."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from cogcalib_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Libraries in Rust and C++ have no OSError, but keep its number in their text: safetensors writes
# "(os error 28)", TensorStore "[os_error_code='28']" or "[OS error 28: ...]".
_NUMBER = re.compile(r"os[ _]error(?:_code=')? ?(\d+)", re.IGNORECASE)


def user_cache(variables: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the folder for what can be made again: $COGCALIB_CACHE, or one in the user's cache.

    That lies where the platform has it: $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on
    macOS, %LOCALAPPDATA% on Windows. The folder need not exist.

    variables, platform: of the environment, and as `sys.platform` names it.
    """
    if own := variables.get("COGCALIB_CACHE"):
        return Path(own).expanduser()
    home = Path.home()
    if platform == "win32":
        root = Path(variables.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        root = home / "Library" / "Caches"
    else:
        root = Path(variables.get("XDG_CACHE_HOME") or home / ".cache")
    return root / "cogcalib_jax"


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Another name, for a file that takes the name `path` when the block ends without error.

    Its folder is made where it is missing. An error leaves nothing, and what was there before.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
    except BaseException:
        # A parent that is a file has no such file either: to unlink there would be an error.
        if os.path.lexists(partial):
            partial.unlink()
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 file, written whole or not at all (see `whole_path`)."""
    with whole_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_whole(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the operating system refuses within the block is an OSError that names a file.

    A full disk shows itself when a buffer is written, where Python knows the file no more.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        number = _NUMBER.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def lock_file(file: int) -> None:
    """Lock an open file for this process, at once or not at all.

    The kernel frees the lock when the file is closed or the process ends, however that happens.

    Raises:
        OSError: another process holds it (EWOULDBLOCK or EACCES), or there are no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(file, 0, os.SEEK_SET)
    msvcrt.locking(file, msvcrt.LK_NBLCK, 1)


SUFFIX = ".partial"
"""Ends the names of files and folders that are half-written; a resumed run removes those in it."""


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without error.

    An interrupted or failed write leaves nothing under the name; what a killed one left beside it
    is removed by the next. Raises UserError when `folder` cannot be written, or when it holds files
    already, or in the end, and `replace` is False.
    """
    if folder.is_symlink() and not replace:
        raise UserError(f"{folder}: is a link; give the folder it stands for, or choose another")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder")
    if not replace and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files already; choose an empty or a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        building = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=SUFFIX, dir=folder.parent)
        )
    except OSError as error:
        raise _unwritable(folder, error) from error
    lock = _lock(building)
    try:
        with named(folder):
            yield building
        # mkdtemp and safetensors make what they write readable for its owner alone.
        umask = os.umask(0)
        os.umask(umask)
        building.chmod(0o777 & ~umask)
        for path in building.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        if replace and folder.is_dir():
            shutil.rmtree(folder)
        try:
            # An empty folder goes first, which Windows would not replace; one that holds something
            # refuses.
            if folder.is_dir():
                folder.rmdir()
            building.rename(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder")


def _sweep(folder: Path) -> None:
    """Remove temporary folders of `folder` whose processes were killed: none holds their lock."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-\w{{8}}{re.escape(SUFFIX)}")
    for path in folder.parent.iterdir():
        if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A lock that ends with this process; None if another one holds it, or there are none.

    Windows locks no folders: what a killed process left there stays.
    """
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            lock_file(file)
            return file
        except OSError:
            os.close(file)
    return None


LONGEST_NAME = 255  # bytes, of a file
# Of the machine where a tokenizer was saved; transformers writes it and never opens it.
LEFTOVER = "special_tokens_map_file"


def require_no_way_out(folder: Path, files: Iterable[Path]) -> None:
    """Refuse links among `files` that lead out of `folder`: what was made elsewhere must not make
    a program read, copy or overwrite its user's other files.

    A snapshot in the Hub's cache may link to its blobs.
    """
    place = folder.resolve()
    repository = place.parents[1] if len(place.parents) > 1 else place
    is_snapshot = place.parent.name == "snapshots" and (repository / "blobs").is_dir()
    root = repository if is_snapshot else place
    for file in sorted(files):
        # A link to itself cannot be followed: where it is read it is told as any other file.
        if file.is_symlink() and not file.resolve().is_relative_to(root):
            raise UserError(
                f"{file}: is a link that leads out of its folder, and what was made elsewhere may"
                " not name other files of this machine; put the file itself there"
            )


def is_plain_name(name: str) -> bool:
    """Whether `name` is that of a file in the folder at hand: no path, and printable."""
    plain = Path(name).name == name and name not in ("", ".", "..") and name.isprintable()
    return plain and len(name.encode()) <= LONGEST_NAME


def require_own_files(settings: Path) -> None:
    """Refuse a tokenizer_config.json that names files outside its folder: transformers opens them.

    Raises:
        UserError: that, or the file is no JSON object.
    """
    for key, value in read_object(settings, "").items():
        if _leads_out(key, value):
            raise UserError(
                f"{settings}: {key} may name files outside its folder ({value!r:.80}), and what was"
                " made elsewhere may not read other files of this machine; remove that entry"
            )


def _leads_out(key: str, value: Any) -> bool:
    if key in ("vocab", "merges"):
        return isinstance(value, str)  # a path, from the working directory
    if key == "init_inputs":
        return bool(value)  # the first of them are vocab and merges
    if not key.endswith(("_file", "_files")) or key == LEFTOVER:
        return False
    names = value if isinstance(value, list | dict) else [value]
    return not all(is_plain_name(name) for name in names if isinstance(name, str))


def damage(error: Exception) -> str:
    """What is wrong with a file whose JSON could not be read, or lacks what it should hold: the
    words of `error`, but for those that only programmers know."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, KeyError):
        return f"no entry {error}"
    if isinstance(error, TypeError | AttributeError | IndexError):
        return "an entry is not of the kind it should be"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    # Python says how its own limit can be lifted.
    return reason.partition("; use sys.set_int_max_str_digits()")[0]


def read_object(file: Path, absent: str) -> dict[str, Any]:
    """The JSON object in `file`; `absent` says what to do where there is no such file.

    Raises:
        UserError: absent, not readable, not JSON, or no object.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; {absent}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({damage(error)}); fetch the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a JSON object; fetch the file again")
    return content
