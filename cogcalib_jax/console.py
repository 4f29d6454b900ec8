"""Log lines and progress of long work.

Lines are log records of level INFO; a program shows them on stderr. In a terminal and in a notebook
progress is tqdm's bar; in a log file, which its carriage returns would fill, it is a line now and
then.
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
# Shorter work inside other work shows no bar.
QUIET_SECONDS = 3.0
_log = logging.getLogger(__package__)


@main_only
def say(text: str) -> None:
    """Log a line of level INFO on the main process."""
    _log.info("%s", text)


def show_note(text: str) -> None:
    """Log a note: something was left out or changed."""
    say(f"   note: {text}")


@main_only
def warn(text: str) -> None:
    """Log a warning, on the main process."""
    _log.warning("%s", text)


class ProgressLines:
    """Progress as log lines, with the part of the interface of tqdm's bar that callers use."""

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
        """start: units done before. last_line: whether `close` always logs a line."""
        self.n = start
        self._total, self._title, self._unit, self._start = total, title, unit, start
        self._last_line, self._clock = last_line, clock
        self._postfix = ""
        self._began = self._shown_at = clock()
        self._shown = start

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count `n` more units, and log a line if one is due."""
        self.n += n
        late = self._clock() - self._shown_at >= LINE_SECONDS
        if late and self.n - self._shown >= LINE_SHARE * self._total:
            self._print()

    def set_postfix_str(self, text: str) -> None:
        """Set the end of the next line."""
        self._postfix = text

    def close(self) -> None:
        """Log the end, unless the last line showed it."""
        if self._last_line and self.n > self._shown:
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
        self._shown, self._shown_at = self.n, now


AnyBar = auto.tqdm | ProgressLines


def progress_bar(
    total: int, title: str, unit: str, *, start: int = 0, inner: bool = False
) -> AnyBar:
    """Return a bar over `total` units, a context manager with `n`, `update`, `set_postfix_str`.

    start: units done before. inner: the bar belongs to work inside other work, so it appears late
    and is removed at its end. Only the main process shows it.
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
    """Silence the bars of huggingface_hub or datasets if stderr cannot show bars."""
    if not _shows_bars():
        library.disable_progress_bars()


def _shows_bars() -> bool:
    return issubclass(auto.tqdm, tqdm_notebook) or sys.stderr.isatty()
