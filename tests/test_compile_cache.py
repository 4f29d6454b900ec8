"""The cache of compiled programs: what a second process finds, and how it is turned off."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

from cogcalib_jax.compile_cache import COMPILED, cpu_fingerprint, release_after_compiling
from tests.cli.small_base import arguments, write_base
from tests.conftest import REPOSITORY

CPU = """\
processor\t: {number}
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9B14
cpu MHz\t\t: {mhz}
flags\t\t: {flags}

processor\t: 9
flags\t\t: of another one
"""
# Compiles one program, and says how often JAX found it in a cache.
PROGRAM = """
import sys
from cogcalib_jax.cli import run_program
from cogcalib_jax.compile_cache import enable_compile_cache
def main(argv):
    folder = enable_compile_cache()
    import jax
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
    jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((3, 3), "float32")).compile()
    print(argv, folder, len(hits))
sys.exit(run_program(main))
"""


def environment(**more):
    """That of a program of its own, without the folder that the tests share."""
    off = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in off}
    # All that is compiled is kept, however fast this machine is.
    return kept | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | more


def run(*argv, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        env=environment(**variables),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def entries(folder):
    return {path.name for path in folder.rglob("*-cache")}


def test_a_second_process_takes_what_the_first_one_compiled(tmp_path):
    first = run("-c", PROGRAM, COGCALIB_CACHE=str(tmp_path))
    (folder,) = (tmp_path / "compiled").iterdir()
    assert folder.name == f"jaxlib-{version('jaxlib')}-{cpu_fingerprint()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    kept = entries(folder)
    assert len(kept) == 1 and first.stdout == f"[] {folder} 0\n"
    second = run("-c", PROGRAM, COGCALIB_CACHE=str(tmp_path))
    assert entries(folder) == kept and second.stdout == f"[] {folder} 1\n"
    # jaxlib 0.10.0 finds that a CPU lacks features that are none ("prefer-no-gather").
    told = [line for line in second.stderr.splitlines() if "cpu_aot_loader" not in line]
    assert first.stderr == "" and not told


def test_an_option_or_a_variable_turns_it_off(tmp_path):
    done = run("-c", PROGRAM, "--no-compile-cache", "--seed", 1, COGCALIB_CACHE=str(tmp_path))
    assert done.stdout == "['--seed', '1'] None 0\n"
    off = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert run("-c", PROGRAM, COGCALIB_CACHE=str(tmp_path), **off).stdout == "[] None 0\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_given_to_jax_goes_first(tmp_path):
    own, cache = tmp_path / "own", tmp_path / "cache"
    done = run("-c", PROGRAM, JAX_COMPILATION_CACHE_DIR=str(own), COGCALIB_CACHE=str(cache))
    assert done.stdout == f"[] {own} 0\n" and len(entries(own)) == 1 and not cache.exists()


def test_a_folder_that_cannot_be_written_costs_a_line(tmp_path):
    (tmp_path / "file").touch()
    done = run("-c", PROGRAM, COGCALIB_CACHE=str(tmp_path / "file"))
    assert done.stdout == "[] None 0\n"
    assert "cannot be written; compiled programs are not stored" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({"number": "5", "mhz": "3700.000"}, True),
        ({"flags": "fpu sse2 avx2"}, False),
    ],
)
def test_a_cpu_is_known_by_its_features(change, equal, tmp_path):
    info = {"number": "0", "mhz": "2596.1", "flags": "fpu sse2"}
    digests = []
    for name, values in (("a", info), ("b", info | change)):
        file = tmp_path / name
        file.write_text(CPU.format(**values))
        digests.append(cpu_fingerprint(file))
    assert (digests[0] == digests[1]) == equal
    assert len(cpu_fingerprint(tmp_path / "none")) == 12


@pytest.mark.slow
def test_a_run_that_is_started_again_compiles_nothing_and_gives_the_same(tmp_path):
    base, cache = write_base(tmp_path / "base"), tmp_path / "cache"
    found = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        run("train.py", *arguments(base, folder, "--compare", "sft"), COGCALIB_CACHE=str(cache))
        metrics = json.loads((folder / "sft" / "eval.json").read_text())
        found.append((entries(cache), metrics["world"]))
    assert len(found[0][0]) > 5 and found[0] == found[1]


def held_mb() -> float:
    """The memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries are left alone")
def test_memory_that_was_freed_is_given_back_after_a_long_compilation():
    release_after_compiling()
    blocks = [bytes(1_000) for _ in range(100_000)]
    top = bytes(1_000)  # keeps the C library from giving back what lies below
    held = held_mb()
    del blocks
    jax.monitoring.record_event_duration_secs(COMPILED, 0.5)
    jax.monitoring.record_event_duration_secs("/another/event", 2.0)
    assert held_mb() > held - 20
    jax.monitoring.record_event_duration_secs(COMPILED, 2.0)
    assert held_mb() < held - 80
    assert len(top) == 1_000


def test_jax_reports_compilations_under_the_name_that_is_listened_to():
    seen = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
    jax.jit(lambda x: x + 1.25)(jax.numpy.ones(3))
    assert COMPILED in seen
