"""SIGTERM: how a cluster asks a program to make room before it kills it.

`listening` turns the first SIGTERM into `Preempted`, raised in the main thread like
KeyboardInterrupt, at once or where the block that is `held_back` ends. A second one kills. Python
runs a signal's handler between two of its instructions, so XLA finishes what it compiles or
computes at that moment first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Preempted(BaseException):
    """SIGTERM came. The message says what is kept and how to go on.

    No Exception: what tries one thing after another must stop, and not take it for a failure.
    """


class _Signal:
    asked = False
    """SIGTERM came while it was held back"""
    holders = 0


_signal = _Signal()


@contextmanager
def listening() -> Iterator[None]:
    """Within the block, SIGTERM raises Preempted. Outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _received)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _signal.asked = False


def _received(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _signal.holders:
        _signal.asked = True
    else:
        raise Preempted


@contextmanager
def held_back() -> Iterator[None]:
    """A block that is finished first; at the end of the outermost one Preempted is raised."""
    _signal.holders += 1
    try:
        yield
    finally:
        _signal.holders -= 1
    if _signal.asked and not _signal.holders:
        _signal.asked = False
        raise Preempted


def requested() -> bool:
    """Whether SIGTERM came and is held back."""
    return _signal.asked
