"""Several processes, usually one per host, that make one run.

All of them execute the same program on the same config and the same files, so they take the same
decisions, meet in the same collective operations, and fail alike. What happens once (choosing a
folder, writing, printing) the main process does alone: functions that only write are `main_only`,
and what is read from files that a run writes comes `from_main`. Where a process ends alone, the
others wait in their next collective until JAX's coordination service ends them, within minutes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cogcalib_jax.configlib import check
from cogcalib_jax.errors import UserError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# How long processes wait for one that works alone: long, since a dead one is noticed by heartbeats.
WAIT_SECONDS = 3600
# A process that ends waits this long for the others, then all are ended: one failed alone.
ENDING_SECONDS = 60
_barriers = count()
_working_alone = False


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find one another; all unset: there is one."""

    coordinator: str | None = None
    """address of process 0 as host:port, the same for all"""
    processes: int | None = None
    """how many processes there are, the same for all"""
    process: int | None = None
    """the number of this one, from 0"""
    auto: bool = False
    """take all three from the cluster: TPU pods, Slurm, Open MPI"""

    def __post_init__(self) -> None:
        given = [x for x in (self.coordinator, self.processes, self.process) if x is not None]
        check(
            len(given) in (0, 3),
            "coordinator",
            "must be given together with processes and process (or auto alone)",
        )
        check(not (self.auto and given), "auto", "must be alone: the cluster says the rest")
        if given:
            check(":" in self.coordinator, "coordinator", "must be host:port")
            check(self.processes >= 1, "processes", "must be an integer of at least 1")
            check(
                0 <= self.process < self.processes,
                "process",
                f"must be from 0 to {self.processes - 1}",
            )


def start_processes(config: DistributedConfig) -> None:
    """Meet the other processes, before anything asks JAX for its devices; once per process.

    Raises UserError where `auto` finds no cluster.
    """
    if jax.distributed.is_initialized() or not (config.auto or config.coordinator):
        return
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            shutdown_timeout_seconds=ENDING_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"distributed.auto: no cluster tells this process of others ({error}); give"
            " distributed.coordinator, .processes and .process, or leave it out"
        ) from error


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
    if _working_alone or not _several():
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
    if not _several():
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


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1
