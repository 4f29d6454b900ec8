"""Log lines and progress of long work.

Lines are log records of level INFO; a program shows them on stderr. In a terminal and in a notebook
progress is tqdm's bar; in a log file, which its carriage returns would fill, it is a line now and
then.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import auto, std
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


class ProgressLines(std.tqdm):
    """Progress as log lines: tqdm's count of units and time, told by `say`."""

    monitor_interval = 0  # no thread that draws again

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
        often = {"mininterval": LINE_SECONDS, "miniters": LINE_SHARE * total}
        # The mean rate, no bar, and no line before the first update.
        how = {"smoothing": 0, "ncols": 0, "delay": 1e-9, "file": io.StringIO()}
        # TQDM_DISABLE hides bars, not the lines of a log.
        super().__init__(
            total=total, initial=start, desc=title, unit=unit, disable=False, **often, **how
        )
        self._last_line, self._time = last_line, clock
        self.start_t = self.last_print_t = clock()

    def display(self, *place: Any) -> None:
        """Log a line, which tqdm asks for when one is due."""
        say(str(self))

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        """Set the end of the next line."""
        super().set_postfix_str(s, refresh=refresh)

    def close(self) -> None:
        """Log the end, unless the last line showed it."""
        if not self.disable and self._last_line and self.n > self.last_print_n:
            self.display()
        self.disable = True


AnyBar = std.tqdm


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
