"""Several processes, usually one per host, that make one run.

All execute the same program on the same config and files, so they take the same decisions and meet
in the same collective operations. The main process alone chooses folders, writes and prints:
functions that only write are `main_only`, and what is read from a run's files comes `from_main`.
If a process is lost, JAX's heartbeats end the others; whoever started them starts them again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import signal
from collections.abc import Callable
from itertools import count
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cogcalib_jax.errors import UserError, leave_to_jax, requested
from cogcalib_jax.machines import DistributedConfig

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# How long processes wait for one that works alone: long, since heartbeats find a dead one.
WAIT_SECONDS = 3600
# A process that ends waits this long for the others, then JAX ends all.
ENDING_SECONDS = 60
_barriers, _updates = count(), count()
_working_alone = False


def start_processes(config: DistributedConfig) -> None:
    """Connect to the other processes of the run. Call this before JAX looks for devices.

    From then on JAX's service hears SIGTERM in this process, for `stops_after_update`.

    Raises:
        UserError: `auto` is set and no cluster is found.
    """
    if jax.distributed.is_initialized() or not (config.auto or config.coordinator):
        return
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
            f"distributed.auto is true; expected a cluster that names the processes ({error}). Give"
            " distributed.coordinator, .processes and .process, or leave it out"
        ) from error
    leave_to_jax(signal.SIGTERM)


def is_one_of_several() -> bool:
    """Return whether this run has other processes, which must not be left waiting."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Return whether this process is the one that writes and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def main_only(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Return `function`, which only writes or prints, as one that other processes skip."""

    @functools.wraps(function)
    def only(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if is_main():
            function(*args, **kwargs)

    return only


def from_main(function: Callable[[], Result]) -> Result:
    """Return in all processes what `function` returns in the main one.

    All processes call this in the same order, also from within `function`. The result travels as
    JSON.

    Raises:
        UserError: `function` raised it; then all processes do.
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


def in_main(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return `function` as one that the main process runs; all get its result (`from_main`)."""

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return from_main(lambda: function(*args, **kwargs))

    return run


def require_agreement(what: str, value: Callable[[], Any]) -> None:
    """Refuse processes whose values differ; `value` returns JSON and is called only if there are
    several processes.

    Raises:
        UserError: in all processes alike.
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


def stops_after_update() -> bool:
    """Return whether this update is the last because SIGTERM or Ctrl-C reached any process.

    All processes call this after every update. Several stop together a second or so later.
    """
    if not is_one_of_several():
        return requested() is not None
    if requested():  # Ctrl-C, of which JAX's service knows nothing
        signal.raise_signal(signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(next(_updates))


def stops_after_phase() -> bool:
    """Return whether Ctrl-C reached any process; all call this at the end of a phase."""
    asked = requested() is not None
    if not is_one_of_several():
        return asked
    return bool(multihost_utils.process_allgather(np.bool_(asked)).any())
