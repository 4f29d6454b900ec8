"""The error a user's mistake raises, and how an entry point ends.

Exit codes: 0 done, 2 a user's mistake told in one line on stderr, 130 interrupted, 141 the reader
of a pipe went away. Every other exception is a bug of this project and keeps its traceback.
"""

import os
import select
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what, where, what to do."""


def run_main(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run an entry point and turn its ending into an exit code.

    Args:
        main: receives the arguments without the program's name; None counts as 0.
        argv: the arguments; `sys.argv[1:]` where absent.

    Returns:
        The exit code, for `sys.exit`.
    """
    try:
        code = _run(main, list(sys.argv[1:] if argv is None else argv))
        # A closed pipe shows itself only when the buffer is written: here, where it is caught,
        # and not while the interpreter shuts down.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_is_gone():  # some other pipe: a bug, or a worker that died
            raise
        # What is still buffered must go nowhere, or the interpreter's own flush at exit complains
        # about the same pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    try:
        return main(argv) or 0
    except UserError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are reported unasked
    return bool(poll.poll(0))
