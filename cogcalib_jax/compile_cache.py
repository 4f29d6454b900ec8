"""Compiled programs that JAX keeps on disk for the next start, and the memory of the compiler.

JAX finds an entry by a hash of the program, its options and the devices, which ignores the features
of a CPU: code for another one may crash. So each version of jaxlib and each kind of CPU has a
folder of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from cogcalib_jax.files import user_cache

log = logging.getLogger(__name__)

OPTION = "--no-compile-cache"
HELP = f"{OPTION}  compile everything again and store nothing compiled"
# Variables that JAX reads when it is imported.
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# A small model has dozens of programs that take less than JAX's limit of a second each.
SHORTEST_SECONDS = 0.1
CPU_INFO = Path("/proc/cpuinfo")
# JAX's name for the time that a program took to compile, and how many seconds count as long.
COMPILED = "/jax/core/compile/backend_compile_duration"
LONG_SECONDS = 1.0


def without_option(argv: list[str]) -> list[str]:
    """Return `argv` without `--no-compile-cache`, which turns the cache off for this process if
    this is called before JAX is imported."""
    rest = [word for word in argv if word != OPTION]
    if len(rest) < len(argv):
        os.environ[ENABLED] = "false"
    return rest


def enable_compile_cache() -> Path | None:
    """Let JAX store the programs that it compiles, and load them at the next start.

    Call this before anything is compiled: JAX looks for a cache once per process. Programs that
    take a tenth of a second or more to compile are stored. JAX's own settings have priority:
    `JAX_COMPILATION_CACHE_DIR`, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`, and
    `JAX_ENABLE_COMPILATION_CACHE=false`, which turns the cache off.

    Returns:
        The folder. None if the cache is off, or if the folder cannot be written; that is logged as
        a warning.
    """
    # Imported here: reading the command line needs no JAX.
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir is None:
        folder = user_cache() / "compiled" / f"jaxlib-{version('jaxlib')}-{cpu_fingerprint()}"
        if not _can_write(folder):
            log.warning("%s: cannot be written; compiled programs are not stored", folder)
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if SHORTEST not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
    return Path(jax.config.jax_compilation_cache_dir)


@cache
def release_after_compiling() -> None:
    """From now on, return memory that the compiler has freed to the system.

    The C library would keep it: 0.2 GB beside the arrays of a step, in a run that compiled nine
    padded lengths of a model of 135M. The process gives it back after each program that took a
    second or more to compile. That takes about 0.1 s and needs glibc.
    """
    import jax

    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim.argtypes = (ctypes.c_size_t,)

    def release(event: str, seconds: float, **_: object) -> None:
        if event == COMPILED and seconds >= LONG_SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(release)


def cpu_fingerprint(info: Path = CPU_INFO) -> str:
    """Return twelve hexadecimal digits that are equal on CPUs of the same model and features.

    info: the kernel's description of the processors; without it Python's is used.
    """
    words = platform.machine() + platform.processor()
    if info.is_file():
        first, *_ = info.read_text(encoding="utf-8", errors="replace").split("\n\n")
        wanted = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")
        lines = [line for line in first.splitlines() if line.partition("\t")[0].strip() in wanted]
        words += "\n".join(lines)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _can_write(folder: Path) -> bool:
    try:
        # Compiled code is run as it is found, so only its user may write here.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
