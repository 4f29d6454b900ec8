"""Files that somebody else made: nothing in them may lead out of their folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError

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
