"""SIGTERM and Ctrl-C: how a cluster and a person ask a program to stop.

`listening` turns the first of them into `Preempted` or `Interrupted`, raised in the main thread at
once, or at the end of the block that is `held_back`. A second one kills. Python runs a signal's
handler between two of its instructions, so XLA finishes what it compiles or computes at that
moment first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Preempted(BaseException):
    """SIGTERM came. The message says what is kept.

    No Exception: what tries one thing after another must stop, and not take it for a failure.
    """

    def __init__(self, kept: str = "", command: str = "") -> None:
        """kept: what a later start goes on from. command: what goes on from there; empty: there is
        nothing to resume."""
        super().__init__(kept)
        self.command = command

    def with_words(self, kept: str, command: str = "") -> Preempted:
        """The same signal, told in other words."""
        return type(self)(kept, command)


class Interrupted(Preempted, KeyboardInterrupt):
    """Ctrl-C came. Code that knows only KeyboardInterrupt takes it for that."""


class _Signal:
    asked: type[Preempted] | None = None
    """What came while it was held back."""
    holders = 0


_signal = _Signal()
_KINDS = {signal.SIGTERM: Preempted, signal.SIGINT: Interrupted}


def leave_to_jax(number: signal.Signals) -> None:
    """Listen to `number` no more: JAX's service has taken it from Python."""
    del _KINDS[number]


@contextmanager
def listening() -> Iterator[None]:
    """Within the block the signals raise. Outside the main thread nothing changes.

    Ctrl-C stays ignored if it was: a shell starts what runs in the background so.
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
    """A block that is finished first; at the end of the outermost one the signal is raised."""
    _signal.holders += 1
    try:
        yield
    finally:
        _signal.holders -= 1
    if _signal.asked is not None and not _signal.holders:
        raised, _signal.asked = _signal.asked, None
        raise raised


def requested() -> type[Preempted] | None:
    """Return what came and is held back; None if nothing did."""
    return _signal.asked
