"""SIGTERM and Ctrl-C end a program once, and never between a block's two halves."""

import signal
import subprocess
import sys
import threading

import pytest

from cogcalib_jax.errors import (
    INTERRUPTED,
    PREEMPTED,
    Interrupted,
    Preempted,
    held_back,
    listening,
    requested,
    run_main,
)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def test_it_is_raised_where_the_program_stands_and_no_error_to_be_caught():
    assert not issubclass(Preempted, Exception)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), listening():
        terminate()
        raise AssertionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_block_that_holds_it_back_is_finished_first():
    done = []
    with pytest.raises(Preempted), listening():
        with held_back():
            with held_back():
                terminate()
                done.append("inner")
            done.append("outer")
            assert requested()
        raise AssertionError
    assert done == ["inner", "outer"]
    assert not requested()


def test_ctrl_c_waits_likewise_and_is_a_keyboard_interrupt():
    done = []
    with pytest.raises(KeyboardInterrupt) as raised, listening():
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
        raise AssertionError
    assert done == ["whole"] and type(raised.value) is Interrupted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_the_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_of_the_block_goes_before_it():
    with pytest.raises(ZeroDivisionError), listening(), held_back():
        terminate()
        raise ZeroDivisionError


def test_what_follows_may_be_held_back_again():
    with pytest.raises(Preempted, match="saved"), listening():
        try:
            terminate()
        except Preempted:
            with held_back():
                pass
            raise Preempted("saved") from None


def test_a_program_says_how_to_go_on_and_has_a_code_of_its_own(capsys):
    def main(argv):
        try:
            terminate()
        except Preempted:
            raise Preempted("saved\nafter update 3; go on") from None

    assert run_main(main, []) == PREEMPTED == 75
    assert capsys.readouterr().err == "stopped by SIGTERM: saved after update 3; go on\n"
    assert run_main(lambda argv: terminate(), []) == PREEMPTED
    assert capsys.readouterr().err == "stopped by SIGTERM: start the same command again\n"


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGTERM, PREEMPTED, "stopped by SIGTERM"),
        (signal.SIGINT, INTERRUPTED, "interrupted"),
    ],
)
def test_the_command_that_goes_on_is_a_line_of_its_own(number, code, told, capsys):
    def main(argv):
        try:
            signal.raise_signal(number)
        except Preempted as stopped:
            raise stopped.with_words(*argv) from None

    command = "python train.py --resume --run-dir 'my  runs/x'"
    assert run_main(main, ["saved after update 3", command]) == code
    assert capsys.readouterr().err == f"{told}: saved after update 3; go on with\n{command}\n"
    assert run_main(main, ["", command]) == code
    assert capsys.readouterr().err == f"{told}; go on with\n{command}\n"


def test_ctrl_c_with_nothing_kept_says_nothing_more(capsys):
    assert run_main(lambda argv: signal.raise_signal(signal.SIGINT), []) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_one_kills(name):
    program = (
        "import signal\n"
        "from cogcalib_jax.errors import run_main\n"
        "from cogcalib_jax.errors import held_back\n"
        "def main(argv):\n"
        "    with held_back():\n"
        f"        signal.raise_signal(signal.{name})\n"
        "        print('saving', flush=True)\n"
        f"        signal.raise_signal(signal.{name})\n"
        "        print('saved', flush=True)\n"
        "run_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.Signals[name]
    assert done.stdout == "saving\n" and done.stderr == ""


def test_another_thread_leaves_the_signal_alone():
    before, codes = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: codes.append(run_main(lambda argv: 4, [])))
    thread.start()
    thread.join()
    assert codes == [4] and signal.getsignal(signal.SIGTERM) is before
