"""SIGTERM and Ctrl-C as exceptions.

`listening` turns the first signal into `Preempted` or `Interrupted`, raised in the main thread at
once, or at the end of a `held_back` block. A second one kills. Python handles a signal between two
of its instructions, so XLA first finishes what it compiles or computes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Preempted(BaseException):
    """SIGTERM was received. The message names what is saved.

    It is no Exception: code that tries one thing after another must not take it for a failure.
    """

    def __init__(self, kept: str = "", command: str = "") -> None:
        """kept: what a later start resumes. command: the command that resumes it, or empty."""
        super().__init__(kept)
        self.command = command

    def with_words(self, kept: str, command: str = "") -> Preempted:
        """Return the same exception with another message."""
        return type(self)(kept, command)


class Interrupted(Preempted, KeyboardInterrupt):
    """Ctrl-C was received. It is a KeyboardInterrupt, too."""


class _Signal:
    asked: type[Preempted] | None = None
    """the signal that was received while held back"""
    holders = 0


_signal = _Signal()
_KINDS = {signal.SIGTERM: Preempted, signal.SIGINT: Interrupted}


def leave_to_jax(number: signal.Signals) -> None:
    """Listen to `number` no more: JAX's service has taken it from Python."""
    del _KINDS[number]


@contextmanager
def listening() -> Iterator[None]:
    """Raise on signals within the block. Outside the main thread nothing changes.

    An ignored Ctrl-C stays ignored: a shell starts background processes so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    numbers = [number for number in _KINDS if not (number == signal.SIGINT and ignored)]
    before = {number: signal.signal(number, _received) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signal.asked = None


def _received(number: int, frame: FrameType | None) -> None:
    for each in _KINDS:
        if signal.getsignal(each) is _received:
            signal.signal(each, signal.SIG_DFL)
    kind = _KINDS[signal.Signals(number)]
    if _signal.holders:
        _signal.asked = kind
    else:
        raise kind


@contextmanager
def held_back() -> Iterator[None]:
    """Finish the block first; a signal is raised at the end of the outermost one."""
    _signal.holders += 1
    try:
        yield
    finally:
        _signal.holders -= 1
    if _signal.asked is not None and not _signal.holders:
        raised, _signal.asked = _signal.asked, None
        raise raised


def requested() -> type[Preempted] | None:
    """Return the class of the signal that is held back, or None."""
    return _signal.asked
