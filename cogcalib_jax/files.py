"""Files that appear whole or not at all, and errors that say which file it was."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

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
