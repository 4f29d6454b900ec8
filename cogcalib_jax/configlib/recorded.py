"""Commands and texts for files: those travel, and say nothing of who made them."""

import os
import re
import shlex
import sys
from pathlib import Path

# As a text shows them; a command says "$HOME" and "$USER", which a shell fills in again.
_SHOWN = {"HOME": "~", "USER": "…"}


# The console command's word for each program at the top of the source.
_CONSOLE = {"train.py": "train", "eval.py": "eval", "bench.py": "bench"}


def program_words(program: str, started: str | None = None) -> list[str]:
    """Return how a person starts `program`, such as "train.py", in the way of this process.

    started: its own name, `sys.argv[0]` if None. A process that the console command started names
    that command; any other names the program at the top of the source.
    """
    name = Path(sys.argv[0] if started is None else started)
    if name.stem == "cogcalib":
        return ["cogcalib", _CONSOLE[program]]
    if name.parts[-2:] == ("cogcalib_jax", "__main__.py"):
        return ["python", "-m", "cogcalib_jax", _CONSOLE[program]]
    return ["python", program]


def command_line(*words: str) -> str:
    """A command as a shell takes it: the home folder is `"$HOME"`, and a folder of the user's
    name `"$USER"`."""
    return " ".join(map(_quoted, words))


def without_person(text: str) -> str:
    """`text` for readers elsewhere: `~` for the home folder, … for a folder of the user's name."""
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
    """Finds the home folder and, as a folder anywhere, the user's name."""
    home, user = os.environ.get("HOME", "").rstrip("/"), os.environ.get("USER", "")
    end = r"(?![\w.-])"
    kinds = {
        "HOME": rf"(?<![\w.-]){re.escape(home)}{end}" if home else "",
        "USER": rf"(?<=/){re.escape(user)}{end}" if user else "",
    }
    found = "|".join(f"(?P<{name}>{pattern})" for name, pattern in kinds.items() if pattern)
    return re.compile(found or r"(?!)")
