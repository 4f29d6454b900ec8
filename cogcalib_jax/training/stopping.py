"""When the processes of a run stop together, though only one of them may have been told to."""

from __future__ import annotations

import jax
import numpy as np
from jax._src.distributed import global_state  # there is no public way to its key-value store
from jax.experimental import multihost_utils

from cogcalib_jax import preemption

# A process that asks after update n has seen the metrics of update n - 1, so all the others have
# begun that one, and asked after update n - 2. What is said after update m is therefore heard by
# all at m + 2 at the latest, and may take effect one later. JAX has such an agreement of its own
# (reached_preemption_sync_point), but to hear of SIGTERM it takes the signal away from Python, and
# then nothing outside of updates hears of it.
NOTICE = 3
_PLACE = "cogcalib_jax/stop_after"
_asked = 0
_said = False


def several() -> bool:
    """Whether this run has other processes, which must not be left waiting."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def stop_after_update() -> bool:
    """Return whether this update is the last, by SIGTERM or Ctrl-C to any process.

    All ask after every update. If there are several, that costs a question to the coordinator, some
    tenths of a millisecond.
    """
    global _asked, _said
    _asked += 1
    if not several():
        return preemption.requested() is not None
    if preemption.requested() and not _said:
        _said = True
        number = str(_asked + NOTICE)
        global_state.client.key_value_set(f"{_PLACE}/{jax.process_index()}", number)
    said = global_state.client.key_value_dir_get(_PLACE)
    return any(_asked >= int(number) for _, number in said)


def stop_after_phase() -> bool:
    """The same at the end of a phase, where all wait for one another."""
    if not several():
        return preemption.requested() is not None
    return bool(
        multihost_utils.process_allgather(np.bool_(preemption.requested() is not None)).any()
    )
