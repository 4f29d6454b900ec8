"""Errors that a user can mend, signals, exit codes of programs, and log lines on stderr.

Exit codes: 0 done; 2 a `UserError`, or a full disk, a missing permission, too little memory, in one
line on stderr; 75 stopped by SIGTERM; 130 interrupted; 141 the reader of a pipe went away. Every
other exception is a bug of this project and keeps its traceback.

SIGTERM and Ctrl-C are exceptions, too. `listening` turns the first signal into `Preempted` or
`Interrupted`, raised in the main thread at once, or at the end of a `held_back` block. A second one
kills. Python handles a signal between two of its instructions, so XLA first finishes what it
compiles or computes.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from types import FrameType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

REFUSED = 2
# EX_TEMPFAIL of sysexits.h, "try again". A shell reports 143 for a program that SIGTERM killed,
# which did not save its state.
PREEMPTED = 75
INTERRUPTED = 130
READER_GONE = 141

# Advice on files that the operating system refuses. Other errors, such as a missing file, are
# caught where the file is opened, or are bugs.
_REFUSED = {
    errno.EACCES: "change its permissions, or choose another",
    errno.EPERM: "change its permissions, or choose another",
    errno.EISDIR: "a folder lies where a file belongs: move it away",
    errno.ENOTDIR: "a file lies where a folder belongs: move it away",
    errno.EEXIST: "move it away",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EFBIG: "allow larger files (ulimit -f), or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the links, or choose another",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EIO: "the device fails: choose another place",
}
DAMAGED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""what reading raises where a file, or a template, holds other things than it should"""
_MEMORY = (
    "lower --training.batch-size or --evaluation.batch-size, or spread the model over more devices"
    " (--mesh.fsdp); cogcalib plan shows what a step needs"
)


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what, where, what to do."""


class FieldError(UserError):
    """A value outside a field's range; `field` is relative to the dataclass that raised it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def first_of(names: Sequence[str], most: int = 8) -> str:
    """Return the first names for a message, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def any_of(names: Iterable[str]) -> str:
    """Return "mean, sum or chars"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def check(condition: bool, field: str, message: str) -> None:
    """Raise FieldError unless `condition` holds; for `__post_init__` of config dataclasses.

    Args:
        field: the field's name, or a dotted path below the dataclass that checks.
        message: "must be ...", with what is allowed; loading adds source, path and value.
    """
    if not condition:
        raise FieldError(field, message)


def check_named(config: Any) -> None:
    """Raise FieldError for a value that is none of those that a field's `Literal` type names."""
    for name, allowed in _named_values(type(config)):
        value = getattr(config, name)
        message = f"{value!r:.40} is not one of {', '.join(map(str, allowed))}"
        check(value in allowed, name, message)


@cache
def _named_values(cls: type) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    found = []
    for name, kind in get_type_hints(cls).items():
        parts = [kind] if get_origin(kind) is Literal else [*get_args(kind)]
        if parts and all(get_origin(part) is Literal or part is NoneType for part in parts):
            values = [get_args(part) or (None,) for part in parts]
            found.append((name, tuple(chain.from_iterable(values))))
    return tuple(found)


def check_counts(config: Any, *names: str, least: int = 1, unset: bool = False) -> None:
    """Raise FieldError unless these fields are at least `least`; unset: None is allowed, too."""
    for name in names:
        value = getattr(config, name)
        fits = unset if value is None else value >= least
        message = f"must be an integer of at least {least}{', or unset' if unset else ''}"
        check(fits, name, message)


def refusal(error: OSError) -> str | None:
    """Return a line with what the operating system refuses and advice; None for other errors."""
    if error.errno not in _REFUSED:
        return None
    # A rename has two names; the second one is taken.
    file = error.filename if error.filename2 is None else error.filename2
    where = f"{file}: " if file is not None else ""
    return f"{where}{error.strerror}; {_REFUSED[error.errno]}"


def run_main(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run an entry point and turn its ending into an exit code.

    Args:
        main: receives the arguments without the program's name; None counts as 0.
        argv: the arguments; by default `sys.argv[1:]`.
    """
    try:
        code = _run(main, list(sys.argv[1:] if argv is None else argv))
        # A closed pipe shows only when the buffer is written: here it is caught, at the shutdown of
        # the interpreter it is not.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_is_gone():  # some other pipe: a bug, or a worker that died
            raise
        # Send the rest of the buffer nowhere, or the interpreter's flush at exit fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def _run(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    try:
        with log_lines(), listening():
            return main(argv) or 0
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt as stopped:  # before Preempted: Interrupted is both
        _tell_stop("interrupted", str(stopped), getattr(stopped, "command", ""))
        return INTERRUPTED
    except Preempted as stopped:
        kept = str(stopped) or ("" if stopped.command else "start the same command again")
        _tell_stop("stopped by SIGTERM", kept, stopped.command)
        return PREEMPTED
    except OSError as error:
        refused = refusal(error)
        if refused is None:
            raise
        return _refuse(refused)
    except MemoryError as error:
        return _refuse(f"out of memory ({error or 'on this machine'}); {_MEMORY}")
    except RuntimeError as error:
        # How JAX reports an accelerator's memory; its class is not known in this room.
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).splitlines()[0][:200]
        return _refuse(f"out of memory on the device ({reason}); {_MEMORY}")


class _Lines(logging.Handler):
    """Print records as lines of a program."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"   warning: {text}"
        # A notebook or a test may have replaced the stream.
        print(plain_text(text), file=sys.stderr, flush=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Print the package's log records from level INFO on stderr within the block, also if blocks
    are nested."""
    logger, handler = logging.getLogger(__package__), _Lines()
    if any(isinstance(other, _Lines) for other in logger.handlers):
        yield
        return
    calibration = logging.getLogger(f"{__package__}.calibration")
    before = logger.level, logger.propagate, calibration.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # A program reports calibrators that do not fit itself, with their names.
    calibration.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        level, logger.propagate, of_calibration = before
        logger.setLevel(level)
        calibration.setLevel(of_calibration)


def _tell_stop(what: str, kept: str, command: str) -> None:
    """Print how the program ended; the command to resume is a line of its own, to be copied."""
    line = f"{what}: {_plain_line(kept)}" if kept else what
    print(f"{line}; go on with\n{plain_text(command)}" if command else line, file=sys.stderr)


def _refuse(message: str) -> int:
    print("error:", _plain_line(message), file=sys.stderr)
    return REFUSED


def plain_text(text: str) -> str:
    """Return `text` without characters that control a terminal.

    Names of files and words of data may hold escape sequences or overrides of direction.
    """
    return "".join(
        c if c.isprintable() or c == "\n" else " " if c.isspace() else ascii(c)[1:-1] for c in text
    )


def _plain_line(text: str) -> str:
    return plain_text(" ".join(text.split()))


def _reader_is_gone() -> bool:
    if not hasattr(select, "poll"):  # Windows, where a pipe without a reader is known by its error
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are reported unasked
    return bool(poll.poll(0))


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
    """Stop listening to the signal `number`, which JAX's service handles from now on."""
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
