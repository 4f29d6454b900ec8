"""Presets by name: `--config world` finds configs/world.yaml of the project wherever one works."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import cogcalib_jax
from cogcalib_jax.errors import UserError

DEFAULT = "world"


def preset_folder() -> Path:
    """Return the folder of the presets: in an installed package, or in a checkout beside it."""
    package = Path(cogcalib_jax.__file__).parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """Return the names of all presets, such as "world" and "suites/world_quick"."""
    folder = preset_folder()
    found = folder.rglob("*.yaml")
    return sorted(str(file.relative_to(folder).with_suffix("").as_posix()) for file in found)


def find_preset(word: str) -> str:
    """Return the file that `word` names: a file as it stands, or a preset by its name.

    Raises:
        UserError: neither.
    """
    if Path(word).is_file():
        return word
    file = preset_folder() / f"{word.removesuffix('.yaml')}.yaml"
    if file.is_file():
        return str(file)
    if Path(word).suffix or "/" in word:
        return word  # meant as a file: whoever reads it says why it cannot
    names = preset_names()
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected a file or one of {', '.join(names)}"
    raise UserError(f"command line: config is {word!r}; {hint}")


def with_preset_file(argv: Sequence[str]) -> list[str]:
    """Return `argv` with the file that its `--config` names in place of a preset's name.

    Raises:
        UserError: as `find_preset`.
    """
    words = list(argv)
    for i, word in enumerate(words):
        option, assigned, value = word.partition("=")
        if option != "--config":
            continue
        if assigned:
            words[i] = f"{option}={find_preset(value)}"
        elif i + 1 < len(words):
            words[i + 1] = find_preset(words[i + 1])
        break
    return words
