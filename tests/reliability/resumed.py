"""Runs that are stopped at chosen moments, and whether two runs are the same, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests import QUICK
from tests.cli.small_base import arguments

# Not that of conftest.py, which would give this program more devices than train.py has.
REPOSITORY = Path(__file__).resolve().parents[2]
# A busy machine compiles slowly; a process that hangs would do so for ever.
PATIENCE = 900
# Times differ between two runs; nothing else may.
TIMES = ("examples_per_s", "tokens_per_s")
BY_BYTES = (
    "config.yaml",
    "command.txt",
    "comparison.json",
    "base.json",
    "recommended.json",
    "validation.jsonl",
    "*/validation.jsonl",
    "*/predictions/*.jsonl",
    "laplace.json",
    "tfb.json",
    "predictions/*.jsonl",
    "adapter/*",
)


def environment(compiled: Path, devices: int = 1) -> dict[str, str]:
    """Of a program that shares what it compiles with others."""
    return os.environ | {
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(REPOSITORY),
    }


def command(base: Path, *more: str) -> list[str]:
    """Sixty updates with dropout in two padded lengths, thresholds fitted again and checkpoints."""
    options = ("training.epochs", 20), ("checkpoint.every", 15), ("training.refit-every", 10)
    words = [str(part) for name, value in options for part in (f"--{name}", value)]
    return arguments(base, Path("run"), *words, "--training.validate-every", "30", *more)


def train(
    words: list[str],
    here: Path,
    compiled: Path,
    stop: tuple[signal.Signals, str, int] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python train.py WORDS` in the folder `here`; it gets the signal when it calls the function
    of that dotted name for that time."""
    program = [str(REPOSITORY / "train.py")]
    if stop is not None:
        number, function, time = stop
        program = [str(Path(__file__)), str(int(number)), function, str(time)]
    here.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=here,
        env=environment(compiled),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def differences(one: Path, other: Path) -> list[str]:
    """In what two run folders differ, apart from times, pictures and the report."""
    places = {path.parent.relative_to(one) for path in one.rglob("config.yaml")}
    different = [] if places else ["no run"]
    for place in sorted(places):
        for pattern in (*BY_BYTES, *_READ, "*/eval.json", "style/metrics.jsonl"):
            read = _READ.get(Path(pattern).name, Path.read_bytes)
            theirs = {p.relative_to(other): read(p) for p in (other / place).glob(pattern)}
            ours = {p.relative_to(one): read(p) for p in (one / place).glob(pattern)}
            names = ours.keys() | theirs.keys()
            different += [str(name) for name in names if ours.get(name) != theirs.get(name)]
    if leaves(one) != leaves(other):
        different.append("checkpoints")
    return different


def leaves(run: Path) -> dict[str, dict[str, str]]:
    """Checksums of the arrays of every phase's newest checkpoint."""
    found = {}
    for place in run.rglob("checkpoints"):
        newest = max(int(path.name) for path in place.iterdir() if path.name.isdigit())
        manifest = json.loads((place / str(newest) / "manifest.json").read_text())
        found[str(place.relative_to(run))] = {"step": newest} | manifest["leaves"]
    return found


def _lines(path: Path) -> list[dict]:
    lines = path.read_text().split("\n")
    assert lines.pop() == "", f"{path}: a torn line"
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def _results(path: Path) -> dict:
    """All but the commit of the source, which may change while the tests run."""
    content = json.loads(path.read_text())
    del content["provenance"]["commit"]
    return content


_READ = {"metrics.jsonl": _lines, "dynamics.jsonl": _lines, "eval.json": _results}


def main(number: str, function: str, time: str, *argv: str) -> None:
    import importlib

    sys.path.insert(0, str(REPOSITORY))
    import train
    from cogcalib_jax.errors import run_main

    path, _, name = function.rpartition(".")
    try:
        holder = importlib.import_module(path)
    except ModuleNotFoundError:  # a method of a class
        path, _, owner = path.rpartition(".")
        holder = getattr(importlib.import_module(path), owner)
    original, calls = getattr(holder, name), []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == int(time):
            os.kill(os.getpid(), int(number))
        return original(*args, **kwargs)

    setattr(holder, name, stopped)
    sys.exit(run_main(train.main, list(argv)))


if __name__ == "__main__":
    main(*sys.argv[1:])
