"""What a user can get wrong, as the user sees it: exit code 2, one line, nothing left behind."""

import faulthandler
import signal
from contextlib import contextmanager

import pytest

from tests.reliability.outcome import run_case
from tests.reliability.table import ALL, CASES, agrees, documented

# Every case ends in about a second on a free core.
GUARD_SECONDS = 120


@contextmanager
def guard():
    def stop(*_):
        raise TimeoutError(f"hangs: not done after {GUARD_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(GUARD_SECONDS)
    # Code that is not Python's hears no signal until it returns: then the process ends.
    faulthandler.dump_traceback_later(2 * GUARD_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "key", [pytest.param(key, id="-".join(key).replace(" ", "_")) for key in ALL]
)
def test_it_is_refused_in_one_line_and_leaves_nothing_behind(key, good, tmp_path):
    with guard():
        outcome = run_case(ALL[key], good, tmp_path)
    assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.stderr
    message = outcome.errors[0]
    *progress, last = outcome.stderr.splitlines()
    assert last == f"error: {message}"
    assert all(line.startswith(("== ", "   ")) for line in progress), outcome.stderr
    assert message.isprintable()
    assert agrees(message, documented()[key]), message
    assert outcome.after == outcome.before


def test_there_are_cases_of_every_kind_and_the_document_shows_them():
    assert len(ALL) == sum(map(len, CASES.values())) >= 50
    assert all(len(cases) >= 5 for cases in CASES.values())
    assert list(documented()) == list(ALL)
