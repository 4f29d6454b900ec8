"""Kill runs at random moments, resume them, and compare with runs that nobody touched.

    python tests/reliability/soak.py --kills 30 --seed 0

A moment is drawn over the time that the run takes once its model is loaded; one signal in five is
SIGTERM. A run is killed and resumed until it is through, then compared, and another one begins.
Prints a line per kill and a table at the end; ends with code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from cogcalib_jax.errors import PREEMPTED  # noqa: E402
from tests.cli.small_base import write_base  # noqa: E402
from tests.reliability.resumed import command, differences, environment  # noqa: E402

VARIANTS = {
    "cols": ("--method.name", "cols"),
    "comparison with MC-dropout and ensemble": (
        *("--compare", "sft,combls,mc_dropout,ensemble", "--ensemble-members", "2"),
        *("--evaluation.mc-passes", "2", "--checkpoint.every", "9", "--training.epochs", "8"),
    ),
    "oracle gate, two micro-batches, best adapter": (
        *("--method.term", "ecp", "--method.gate", "oracle", "--training.accumulation", "2"),
        *("--checkpoint.every", "4", "--checkpoint.keep-best", "true", "--training.keep", "best"),
    ),
}


class Run:
    """`train.py` in a folder, watched until its model is loaded."""

    def __init__(self, words: list[str], here: Path, compiled: Path):
        self.loaded = threading.Event()
        self.said: list[str] = []
        here.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *words],
            cwd=here,
            env=environment(compiled),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("== Style"):
                self.loaded.set()
        self.loaded.set()

    def end(self) -> int:
        code = self.process.wait()
        self._reader.join()
        return code


def standing(run: Path) -> str:
    """Where a run is, by what lies in its folder."""
    if any(run.rglob(".*.partial")):
        return "checkpoint"
    if (run / "report.html").is_file():
        return "its last moment"
    if any(run.rglob("eval.json")) or any(run.rglob("predictions")):
        return "evaluation"
    if any(p.parent.parent.name != "style" for p in run.rglob("checkpoints/*")):
        return "fine-tuning, later"
    if (run / "style" / "checkpoints").is_dir():
        return "fine-tuning, first updates"
    return "style" if run.is_dir() else "loading"


def soak(variant: str, kills: int, draw: random.Random, place: Path) -> tuple[Counter, int, list]:
    """(moments, runs compared, differences) of one variant, killed so many times."""
    compiled, base = place / "compiled", place / "base"
    words = command(base, *VARIANTS[variant])
    here = place / "killed"
    # Twice: the first one compiles, and the second must be the same.
    for folder in (place / "whole", here):
        run = Run(words, folder, compiled)
        run.loaded.wait()
        start = time.monotonic()
        assert run.end() == 0, "".join(run.said)
        seconds = time.monotonic() - start
    print(f"{variant}: {seconds:.0f} s once it is loaded", flush=True)
    moments, compared, different = Counter(), 1, _compared(variant, run, place, here)
    while kills > 0:
        begun = (here / "run" / "config.yaml").is_file()
        run = Run([*words, *(["--resume"] if begun else [])], here, compiled)
        run.loaded.wait()
        start = time.monotonic()
        number = signal.SIGTERM if draw.random() < 0.2 else signal.SIGKILL
        try:
            run.process.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            moment = standing(here / "run")
            run.process.send_signal(number)
            code = run.end()
            if code not in (0, PREEMPTED, -number):
                different.append((variant, f"code {code}", "".join(run.said)[-2000:]))
            if code != 0:
                kills -= 1
                moments[f"{number.name} in {moment}"] += 1
                print(f"  {number.name}, {moment}: code {code}", flush=True)
                continue
        if not begun:  # a machine is not always as busy
            seconds = time.monotonic() - start
        different += _compared(variant, run, place, here)
        compared += 1
    run = Run([*words, *(["--resume"] if (here / "run/config.yaml").is_file() else [])],
              here, compiled)  # fmt: skip
    different += _compared(variant, run, place, here)
    return moments, compared + 1, different


def _compared(variant: str, run: Run, place: Path, here: Path) -> list:
    code = run.end()
    if code != 0:
        return [(variant, f"code {code}", "".join(run.said)[-2000:])]
    found = differences(place / "whole" / "run", here / "run")
    print(f"  compared: {found or 'the same'}", flush=True)
    shutil.rmtree(here)
    return [(variant, name) for name in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=VARIANTS, help="one of the runs, for all kills")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    different = []
    print("| run | killed | compared | moments |\n|---|---|---|---|")
    table = []
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        write_base(Path(scratch) / "base")
        variants = [options.only] if options.only else list(VARIANTS)
        for number, variant in enumerate(variants):
            place = Path(scratch) / str(number)
            place.mkdir()
            shutil.copytree(Path(scratch) / "base", place / "base")
            share = options.kills // len(variants) + (number < options.kills % len(variants))
            moments, compared, found = soak(variant, share, draw, place)
            different += found
            listed = ", ".join(f"{name} {n}" for name, n in sorted(moments.items()))
            table.append(f"| {variant} | {share} | {compared} | {listed} |")
    print("\n".join(table))
    for found in different:
        print("DIFFERENT:", *found)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
