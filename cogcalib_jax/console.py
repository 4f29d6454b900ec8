"""Lines and progress for the person who waits.

Lines are log records of level INFO: a program shows them on stderr, and a user of the library
chooses. In a terminal and in a notebook progress is tqdm's bar. A file of a log would fill with its
carriage returns: there it is a line now and then.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import auto
from tqdm.notebook import tqdm_notebook

from cogcalib_jax.distributed import is_main, main_only

# A line appears when both have passed since the last one.
LINE_SECONDS = 10.0
LINE_SHARE = 0.05
QUIET_SECONDS = 3.0
"""Work inside other work that is shorter than this shows no bar."""


_log = logging.getLogger(__package__)


@main_only
def say(text: str) -> None:
    """Log a line for the person who watches, on the main process."""
    _log.info("%s", text)


def show_note(text: str) -> None:
    """Log what was left out or changed."""
    say(f"   note: {text}")


@main_only
def warn(text: str) -> None:
    """Log a warning, on the main process."""
    _log.warning("%s", text)


class ProgressLines:
    """Progress as log lines; what callers use of tqdm's bar."""

    def __init__(
        self,
        total: int,
        title: str,
        unit: str,
        *,
        start: int = 0,
        last_line: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """start: units done before. last_line: whether the end is told, however soon it comes."""
        self.n = start
        self._total, self._title, self._unit, self._start = total, title, unit, start
        self._last_line, self._clock = last_line, clock
        self._postfix = ""
        self._began = self._told_at = clock()
        self._told = start

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count `n` more units, and print a line if it is time for one."""
        self.n += n
        late = self._clock() - self._told_at >= LINE_SECONDS
        if late and self.n - self._told >= LINE_SHARE * self._total:
            self._print()

    def set_postfix_str(self, text: str) -> None:
        """Set what the next line ends with."""
        self._postfix = text

    def close(self) -> None:
        """Tell the end, unless a line said it or there is nothing to tell."""
        if self._last_line and self.n > self._told:
            self._print()

    def _print(self) -> None:
        now = self._clock()
        line = auto.tqdm.format_meter(
            self.n,
            self._total,
            now - self._began,
            ncols=0,
            prefix=self._title,
            unit=self._unit,
            postfix=self._postfix or None,
            initial=self._start,
        )
        say(line)
        self._told, self._told_at = self.n, now


AnyBar = auto.tqdm | ProgressLines


def progress_bar(
    total: int, title: str, unit: str, *, start: int = 0, inner: bool = False
) -> AnyBar:
    """Return a bar over `total` units, of which `start` were done before: a context manager with
    `n`, `update` and `set_postfix_str`.

    inner: it stands for work inside other work; it shows late, and goes when it ends. Of several
    processes the main one shows it.
    """
    if _shows_bars() or not is_main():
        return auto.tqdm(
            total=total,
            initial=start,
            desc=title,
            unit=unit,
            delay=QUIET_SECONDS if inner else 0,
            leave=not inner,
            disable=not is_main(),
        )
    return ProgressLines(total, title, unit, start=start, last_line=not inner)


def quiet_downloads(library: Any) -> None:
    """Silence the bars of huggingface_hub or datasets if stderr can show none."""
    if not _shows_bars():
        library.disable_progress_bars()


def _shows_bars() -> bool:
    return issubclass(auto.tqdm, tqdm_notebook) or sys.stderr.isatty()
