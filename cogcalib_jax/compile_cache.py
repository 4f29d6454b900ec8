"""Compiled programs kept on disk by JAX, so that the next start need not compile them again.

JAX decides by a hash of the program, its options and the devices whether an entry fits. That hash
knows nothing of the features of a CPU: code for another one may crash. So each version of jaxlib
and each kind of CPU has a folder of its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path

from cogcalib_jax.files import user_cache

log = logging.getLogger(__name__)

OPTION = "--no-compile-cache"
HELP = f"{OPTION}  compile all anew, and keep nothing compiled"
# JAX's own variables, which it reads when it is imported.
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# A small model's programs take less than JAX's second each, and there are dozens of them.
SHORTEST_SECONDS = 0.1
CPU_INFO = Path("/proc/cpuinfo")


def without_option(argv: list[str]) -> list[str]:
    """Return `argv` without `--no-compile-cache`, which turns the cache off for this process.

    Call it before JAX is imported.
    """
    rest = [word for word in argv if word != OPTION]
    if len(rest) < len(argv):
        os.environ[ENABLED] = "false"
    return rest


def enable_compile_cache() -> Path | None:
    """Let JAX keep the programs it compiles from now on, and take them from where they are kept.

    Call it before anything is compiled: JAX looks once a process whether there is a cache. Programs
    that take a tenth of a second or more to compile are kept. What JAX was told before goes first:
    `JAX_COMPILATION_CACHE_DIR`, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`, and
    `JAX_ENABLE_COMPILATION_CACHE=false`, which turns the cache off.

    Returns:
        The folder. None if the cache is off, or if the folder cannot be written, which a warning
        says.
    """
    # Imported here: the command line is read without it.
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir is None:
        folder = user_cache() / "compiled" / f"jaxlib-{version('jaxlib')}-{cpu_fingerprint()}"
        if not _can_write(folder):
            log.warning("%s: cannot be written; nothing compiled is kept", folder)
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if SHORTEST not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
    return Path(jax.config.jax_compilation_cache_dir)


def cpu_fingerprint(info: Path = CPU_INFO) -> str:
    """Return twelve hexadecimal digits that are equal on CPUs of the same model and features.

    info: the kernel's description of the processors; without it, what Python knows is taken.
    """
    told = platform.machine() + platform.processor()
    if info.is_file():
        first, *_ = info.read_text(encoding="utf-8", errors="replace").split("\n\n")
        wanted = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")
        lines = [line for line in first.splitlines() if line.partition("\t")[0].strip() in wanted]
        told += "\n".join(lines)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _can_write(folder: Path) -> bool:
    try:
        # Whoever writes here decides what runs: the folder is its user's alone.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
