"""A process that watches over the one that does the work.

Where a process of several is lost, JAX's runtime aborts the others from a thread of its own (signal
SIGABRT, code 134), which no code of theirs can catch. So the work goes on in a child, and what
waits for its end says in one line who was lost and what to do. Python is forked before it has
threads of its own or a JAX backend: neither imports nor configuration are repeated.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

# EX_PROTOCOL of sysexits.h: the other side does not answer.
LOST_PEER = 76

# A cluster may send SIGTERM to both, and the second one that a program gets kills it.
FORWARD_AFTER = 1.0
_POLL = 0.2

# What JAX's coordination service writes when it fails, up to its stack trace (jaxlib 0.10 to 0.12).
_FAILING = re.compile(
    rb"JAX distributed service detected fatal errors|coordination_service|preemption_sync_manager"
)
_SILENT = re.compile(rb"[Tt]ask:?(?:\s|/)?(\d+) heartbeat timeout|heartbeats\):\s*([^\n]*)")
_COORDINATOR_GONE = b"Failed to send RPC to coordination service"


def continue_in_child(heartbeat_seconds: int) -> Link:
    """Fork. Returns in the child, which goes on with the program; the parent ends when it does,
    with its exit code, or with LOST_PEER."""
    sys.stdout.flush()
    sys.stderr.flush()
    above, below = socket.socketpair()
    read, write = os.pipe()
    child = os.fork()
    if child:
        below.close()
        os.close(write)
        os._exit(_Watch(child, above, read, heartbeat_seconds).to_the_end())
    above.close()
    os.close(read)
    # A group of its own: Ctrl-C reaches the parent alone, which passes it on once.
    os.setpgid(0, 0)
    # What the runtime writes goes through the parent; Python keeps the terminal.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(write, 2)
    os.close(write)
    link = Link(below)
    threading.Thread(target=link.listen, name="supervisor", daemon=True).start()
    return link


class Link:
    """The child's connection to what watches over it."""

    def __init__(self, below: socket.socket):
        self._below = below

    def tell_processes(self, process: int, processes: int) -> None:
        """Which of how many this is; a cluster told only the child."""
        self._below.sendall(f"{process} {processes}\n".encode())

    def listen(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while self._below.recv(1):
                # Unless it came here, too: its handler takes itself away.
                if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
                    os.kill(os.getpid(), signal.SIGTERM)
        # The parent was killed, so nobody would hear of this process's end.
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class _Watch:
    """Over one child, until it ends."""

    child: int
    above: socket.socket
    stderr: int
    heartbeat_seconds: int
    held: bytes = b""
    """what the failing runtime has written; said only where it is not understood"""
    terminated: list[float] = field(default_factory=list)
    """when SIGTERM came that was not passed on yet"""
    terminations: int = 0

    def to_the_end(self) -> int:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._forward)
        signal.signal(signal.SIGTERM, self._terminate)
        ended = False
        while not ended:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            self._relay(0.0 if ended else _POLL)
            if self.terminated and time.monotonic() - self.terminated[0] > FORWARD_AFTER:
                self.terminated.clear()
                self._send(b"T")
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGABRT and (lost := lost_peer(self.held)) is not None:
            print(self._words(*lost), file=sys.stderr, flush=True)
            return LOST_PEER
        self._write(self.held)
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, frame: FrameType | None) -> None:
        os.kill(self.child, number)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminations += 1
        if self.terminations == 1:
            self.terminated.append(time.monotonic())
        else:
            os.kill(self.child, number)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended in between
            self.above.sendall(message)

    def _relay(self, seconds: float) -> None:
        """Pass on what the child's runtime wrote, waiting at most `seconds` for more."""
        while select.select([self.stderr], [], [], seconds)[0]:
            text = os.read(self.stderr, 1 << 16)
            if not text:
                time.sleep(seconds)
                return
            if self.held or _FAILING.search(text):
                self.held += text
            else:
                self._write(text)
            seconds = 0.0

    @staticmethod
    def _write(text: bytes) -> None:
        while text:
            text = text[os.write(2, text) :]

    def _words(self, lost: tuple[int, ...], silent: bool) -> str:
        self.above.setblocking(False)
        told = b""
        with contextlib.suppress(BlockingIOError):
            told = self.above.recv(1 << 10)
        of = f" of {told.split()[1].decode()}" if told else ""
        why = f"no heartbeat for {self.heartbeat_seconds} s" if silent else "its connection closed"
        if len(lost) == 1:
            what = f"process {lost[0]}{of} was lost ({why})"
        elif lost:
            what = f"processes {', '.join(map(str, lost))}{of} were lost ({why})"
        else:
            what = f"another process{of} was lost ({why})"
        return f"error: {what}; start all processes again with the same options and --resume"


def lost_peer(text: bytes) -> tuple[tuple[int, ...], bool] | None:
    """Which processes JAX's runtime says are lost, and whether their heartbeats stopped (True) or
    the coordinator's connection closed; None where `text` says nothing of the kind.

    The runtime's own wording is all there is to go by: without it, nobody is named.
    """
    silent = [a + b for a, b in _SILENT.findall(text)]
    if silent:
        numbers = {int(n) for words in silent for n in re.findall(rb"\d+", words.split(b"[")[0])}
        return tuple(sorted(numbers)), True
    if _COORDINATOR_GONE in text:
        return (0,), False
    return ((), True) if _FAILING.search(text) else None
