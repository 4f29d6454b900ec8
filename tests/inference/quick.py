"""Tests of whole runs spend their time on compiling: roughly will do, and once for equal code."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import pytest

from tests.models.small import QUICK


@contextmanager
def quick_compilation(cache: Path) -> Iterator[None]:
    """Halves the time of every compilation (measured: 3.4 s to 1.6 s for an update) and keeps
    what was compiled in `cache`."""
    settings = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICK))
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    for name, value in before.items():
        jax.config.update(name, value)
