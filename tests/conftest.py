"""Settings every test relies on; they must stand before jax is imported for the first time."""

import os
import tempfile
from pathlib import Path

from tests import QUICK

# Eight simulated devices, so that every sharding is tested on any machine. Only the CPU: results
# must not depend on the accelerator that happens to be present.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [QUICK, os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
os.environ["HF_HUB_OFFLINE"] = "1"
# What one test compiles serves the others, in all workers and in the programs they start: these
# inherit the variables. The folder is the tests' own, and goes with them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="cogcalib-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest  # noqa: E402

from cogcalib_jax.errors import log_lines  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def shown_log_lines():
    """Log lines appear on stderr, as in a program."""
    with log_lines():
        yield


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real checkpoints, tokenizers and rows beside the repository, where present."""
    folder = REPOSITORY.parent / "shared" / "realdata"
    if not folder.is_dir():
        pytest.skip("no ../shared/realdata beside the repository")
    return folder
