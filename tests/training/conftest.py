"""Training tests spend their time on compiling: the same update is compiled once, and roughly."""

from functools import partial

import jax
import pytest

from tests.models.small import QUICK


@pytest.fixture(scope="module")
def quick_compilation(tmp_path_factory):
    """Halves the time of a compilation and takes equal ones from a cache, for one module."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
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
