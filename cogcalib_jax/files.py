"""Files and folders that appear whole or not at all, and caution with those of other people.

A program must not read, copy or overwrite its user's other files because a downloaded one says so.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from cogcalib_jax.errors import DAMAGED, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LONGEST_NAME = 255  # bytes
SUFFIX = ".partial"
"""the end of names of files and folders that are half-written; a resumed run removes its own"""

# Libraries in Rust and C++ have no OSError, but keep its number in their text: safetensors writes
# "(os error 28)", TensorStore "[os_error_code='28']" or "[OS error 28: ...]".
_NUMBER = re.compile(r"os[ _]error(?:_code=')? ?(\d+)", re.IGNORECASE)


def user_cache(variables: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the folder of files that can be made again; it may not exist yet.

    $COGCALIB_CACHE, or a folder in $XDG_CACHE_HOME or ~/.cache on Linux, in ~/Library/Caches on
    macOS, in %LOCALAPPDATA% on Windows.
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
    """Yield another path for a file, which is renamed to `path` when the block ends without error.

    A missing folder is made. After an error `path` is as it was before.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with with_path_in_errors(path):
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
    """Yield an open UTF-8 file, written whole or not at all (see `whole_path`)."""
    with whole_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_whole(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


def put_json(path: Path, content: Any, **options: Any) -> None:
    """Write JSON as text for people; options: those of `json.dumps`."""
    path.write_text(json.dumps(content, indent=2, **options) + "\n", encoding="utf-8")


@contextmanager
def with_path_in_errors(path: Path) -> Iterator[None]:
    """Add `path` to errors of the operating system within the block, as an OSError.

    A full disk shows when a buffer is written, and Python no longer knows the file then.
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


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `folder` when the block ends without error.

    An interrupted write leaves nothing under the name; the next call removes what a killed process
    left beside it. Raises UserError if `folder` cannot be written, or holds files and `replace` is
    False.
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
        with with_path_in_errors(folder):
            yield building
        # mkdtemp and safetensors let only the owner read what they write.
        umask = os.umask(0)
        os.umask(umask)
        building.chmod(0o777 & ~umask)
        for path in building.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        if replace and folder.is_dir():
            shutil.rmtree(folder)
        try:
            # Windows does not rename over an empty folder; rmdir refuses one that holds files.
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
    """Remove temporary folders of `folder` whose processes were killed, so that none locks them."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-\w{{8}}{re.escape(SUFFIX)}")
    for path in folder.parent.iterdir():
        if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder until this process ends; None if another one holds the lock, or on Windows."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            lock_file(file)
            return file
        except OSError:
            os.close(file)
    return None


def refuse_external_links(folder: Path, files: Iterable[Path]) -> None:
    """Refuse symbolic links among `files` to files outside of `folder`.

    A snapshot in the Hub's cache may link to its blobs.
    """
    place = folder.resolve()
    repository = place.parents[1] if len(place.parents) > 1 else place
    is_snapshot = place.parent.name == "snapshots" and (repository / "blobs").is_dir()
    root = repository if is_snapshot else place
    for file in sorted(files):
        if file.is_symlink() and not file.resolve().is_relative_to(root):
            raise UserError(
                f"{file}: is a symbolic link to a file outside its folder. Links out of downloaded"
                " folders are not followed; replace the link with the file"
            )


def is_plain_name(name: str) -> bool:
    """Return whether `name` is a printable name of a file, without a path."""
    plain = Path(name).name == name and name not in ("", ".", "..") and name.isprintable()
    return plain and len(name.encode()) <= LONGEST_NAME


def reason_of(error: Exception) -> str:
    """Return what is wrong with a file that could not be parsed, in words for users."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, KeyError):
        return f"no entry {error}"
    if isinstance(error, TypeError | AttributeError | IndexError):
        return "an entry is not of the kind it should be"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    # Python adds how to lift its limit on digits.
    return reason.partition("; use sys.set_int_max_str_digits()")[0]


@contextmanager
def refusing_damage(file: Path | str, remedy: str) -> Iterator[None]:
    """Raise UserError for a file whose content cannot be parsed within the block.

    file: the file, or FILE:LINE. remedy: what the user can do.
    """
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"{file}: damaged ({reason_of(error)}); {remedy}") from error


def read_object(file: Path, absent: str) -> dict[str, Any]:
    """Return the JSON object in `file`; raises UserError if there is none.

    absent: what the user can do if there is no such file.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; {absent}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({reason_of(error)}); fetch the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a JSON object; fetch the file again")
    return content


# Files travel, and name neither the home folder nor the user: a text shows these, a command "$HOME"
# and "$USER", which a shell fills in again.
_SHOWN = {"HOME": "~", "USER": "…"}
# The console command's word for each program at the top of the source.
_CONSOLE = {"train.py": "train", "eval.py": "eval", "bench.py": "bench"}


def program_words(program: str, started: str | None = None) -> list[str]:
    """Return the words that start `program`, such as "train.py".

    A process of the console command gives that command, any other one the program at the top of the
    source. started: the name of this process; None: `sys.argv[0]`.
    """
    name = Path(sys.argv[0] if started is None else started)
    if name.stem == "cogcalib":
        return ["cogcalib", _CONSOLE[program]]
    if name.parts[-2:] == ("cogcalib_jax", "__main__.py"):
        return ["python", "-m", "cogcalib_jax", _CONSOLE[program]]
    return ["python", program]


def command_line(*words: str) -> str:
    """Return a command as a shell takes it, with "$HOME" for the home folder and "$USER" for a
    folder of the user's name."""
    return " ".join(map(_quoted, words))


def without_person(text: str) -> str:
    """Return `text` with ~ for the home folder and … for a folder of the user's name."""
    return _person().sub(lambda found: _SHOWN[found.lastgroup or ""], text)


def _quoted(word: str) -> str:
    parts, at = [], 0
    for found in _person().finditer(word):
        before = word[at : found.start()]
        parts += [shlex.quote(before)] if before else []
        parts.append(f'"${found.lastgroup}"')
        at = found.end()
    rest = word[at:]
    return "".join([*parts, shlex.quote(rest)] if rest or not parts else parts)


def _person() -> re.Pattern[str]:
    """Return a pattern of the home folder and of folders with the user's name."""
    home, user = os.environ.get("HOME", "").rstrip("/"), os.environ.get("USER", "")
    end = r"(?![\w.-])"
    kinds = {
        "HOME": rf"(?<![\w.-]){re.escape(home)}{end}" if home else "",
        "USER": rf"(?<=/){re.escape(user)}{end}" if user else "",
    }
    found = "|".join(f"(?P<{name}>{pattern})" for name, pattern in kinds.items() if pattern)
    return re.compile(found or r"(?!)")
