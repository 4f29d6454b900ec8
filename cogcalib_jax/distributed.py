"""Several processes, usually one per host, that make one run.

All of them execute the same program on the same config and the same files, so they take the same
decisions, meet in the same collective operations, and fail alike. What happens once (choosing a
folder, writing, printing) the main process does alone: functions that only write are `main_only`,
and what is read from files that a run writes comes `from_main`.

Where a process fails alone, it tells the others (`_tell`), which end then. One that is killed is
missed by its heartbeats: JAX's runtime aborts the others, and what watches over each of them
(supervision.py) says so.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # there is no public way to its key-value store
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cogcalib_jax.errors import UserError, on_failure
from cogcalib_jax.machines import DistributedConfig
from cogcalib_jax.supervision import LOST_PEER, continue_in_child

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# How long processes wait for one that works alone: long, since a dead one is noticed by heartbeats.
WAIT_SECONDS = 3600
# A process that ends waits this long for the others, then all are ended.
ENDING_SECONDS = 60
# How long one that hears of another's failure may take to end by itself: a mistake that all make
# is told by each in its own words.
GRACE_SECONDS = 5
# The key of JAX's coordination service under which a process says that it fails.
_FAILED = "cogcalib_jax/failed"
ASK_SECONDS = 1
# How a collective fails whose other end went away, on a CPU, a GPU, a TPU.
_BROKEN_COLLECTIVE = re.compile(r"\bGloo\b|\bNCCL\b|\bUNAVAILABLE\b")
_ending = threading.Event()
_barriers = count()
_working_alone = False
_heartbeat_seconds = 0


def start_processes(config: DistributedConfig) -> None:
    """Meet the other processes, before anything asks JAX for its devices; once per process.

    The program goes on in a child of this process, which watches over it.
    Raises UserError if `auto` finds no cluster, and on Windows, which has no `fork`.
    """
    if jax.distributed.is_initialized() or not (config.auto or config.coordinator):
        return
    if not hasattr(os, "fork"):
        raise UserError(
            "distributed: several processes need Linux or macOS; leave out the distributed options"
        )
    global _heartbeat_seconds
    _heartbeat_seconds = config.heartbeat_seconds
    link = continue_in_child(config.heartbeat_seconds)
    # The service would take SIGTERM for itself, and tell Python nothing of it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            shutdown_timeout_seconds=ENDING_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"distributed.auto: no cluster tells this process of others ({error}); give"
            " distributed.coordinator, .processes and .process, or leave it out"
        ) from error
    link.tell_processes(global_state.process_id, global_state.num_processes)
    on_failure(_tell)
    listener = threading.Thread(target=_listen, name="failures", daemon=True)
    listener.start()
    # Before JAX takes leave of the others, which it registered to do earlier.
    atexit.register(_stop, listener)


def _stop(listener: threading.Thread) -> None:
    _ending.set()
    listener.join(GRACE_SECONDS)


def _tell(error: BaseException) -> None:
    """Tell the other processes that this one fails: they would wait for it in their next
    collective, for as long as its heartbeats go on."""
    if not is_one_of_several():
        return
    if _BROKEN_COLLECTIVE.search(str(error)):
        # Because another process went away: the runtime, or that process, says which one.
        time.sleep(_heartbeat_seconds + GRACE_SECONDS)
    reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
    told = json.dumps({"process": jax.process_index(), "reason": reason})
    global_state.client.key_value_set(_FAILED, told, allow_overwrite=True)


def _listen() -> None:
    """Wait for a process to say that it fails, and end after it."""
    # Asked again and again: a call that waits could not be ended, and a thread that is inside the
    # runtime when the interpreter ends aborts the process (seen with JAX 0.12).
    while not _ending.wait(ASK_SECONDS):
        try:
            told = global_state.client.key_value_try_get(_FAILED)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the coordinator is gone, which the runtime notices itself
        failed = json.loads(told)
        if failed["process"] != global_state.process_id:
            _end_after(**failed)
        return


def _end_after(process: int, reason: str) -> None:
    """End because another process did, unless this one does so by itself."""
    if _ending.wait(GRACE_SECONDS):
        return
    print(
        f"error: process {process} of {global_state.num_processes} failed ({reason});"
        " see what it printed, then start all processes again with --resume",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    # The one that failed waits for the others before it ends.
    jax.distributed.shutdown()
    os._exit(LOST_PEER)


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def main_only(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A function that writes or prints and does nothing else: other processes skip it."""

    @functools.wraps(function)
    def only(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if is_main():
            function(*args, **kwargs)

    return only


def from_main(function: Callable[[], Result]) -> Result:
    """What `function` returns in the main process, or the UserError it raises, in all processes.

    All of them call this in the same order; what it calls in turn may do so, too. The result is
    sent as JSON.
    """
    global _working_alone
    if _working_alone or not is_one_of_several():
        return function()
    outcome: dict[str, Any] = {}
    if is_main():
        _working_alone = True
        try:
            outcome = {"result": function()}
        except UserError as error:
            outcome = {"mistake": str(error)}
        finally:
            _working_alone = False
    # Collectives on a CPU give up after 30 seconds; this barrier waits as long as the work takes.
    multihost.get_barrier_sync_fn()(
        key=f"from_main_{next(_barriers)}", timeout_ms=1000 * WAIT_SECONDS
    )
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8).astype(np.int32)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = multihost_utils.broadcast_one_to_all(text if is_main() else np.zeros(size, np.int32))
    outcome = json.loads(np.asarray(sent).astype(np.uint8).tobytes())
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    return outcome["result"]


def require_agreement(what: str, value: Callable[[], Any]) -> None:
    """Refuse processes that were given different things: they would drift apart without a word.

    value: JSON; not asked for where there is one process. All processes raise alike.
    """
    if not is_one_of_several():
        return
    digest = hashlib.sha256(json.dumps(value(), sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8).astype(np.int32))
    different = [i for i, other in enumerate(digests) if (other != digests[0]).any()]
    if different:
        numbers = ", ".join(map(str, different))
        raise UserError(
            f"distributed: {what} of process {numbers} is not that of process 0; start all"
            " processes with the same options and let them read the same files"
        )


def is_one_of_several() -> bool:
    """Whether this run has other processes, which must not be left waiting."""
    return jax.distributed.is_initialized() and jax.process_count() > 1
