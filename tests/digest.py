"""Compare what two revisions compute, bit for bit.

    python -m tests.digest REV          this checkout against REV
    python -m tests.digest REV --only NAME

A set of small runs is made with both, each in a process of its own. Adapters, metrics without
times, thresholds, predictions and numbers must be equal. Nothing is stored, so a machine and a
jaxlib are only ever compared with themselves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.cli.small_base import WORLD, write_base

HERE = Path(__file__).parents[1]
# Fields that an earlier revision does not know say nothing about what both compute.
TIMES = ("examples_per_s", "tokens_per_s")
# Names that both revisions read: old ones are accepted for one release.
SIZES = {f"data.world.{name}": getattr(WORLD, name) for name in (
    "entities", "train", "test", "validation", "calibration", "style")}  # fmt: skip
COMMON = SIZES | {
    "lora.rank": 2,
    "training.epochs": 2,
    "training.batch-size": 8,
    "training.learning-rate": 0.01,
    "training.style-steps": 2,
    "training.log-every": 1,
    "evaluation.resamples": 100,
}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"method.name": "sft"},
    **{name: {"method.name": name} for name in ("ls", "mbls", "ecp", "cols", "coecp")},
    "random": {"method.term": "ls", "method.gate": "random"},
    "frozen labels": {"method.term": "ls", "method.gate": "frozen_labels"},
    "oracle": {"method.term": "ls", "method.gate": "oracle"},
    "options space": {"method.name": "cols", "method.space": "options", "loss.space": "options"},
    "sum of tokens": {"method.name": "cols", "loss.tokens": "sum"},
    "dropout": {"method.name": "cols", "lora.dropout": 0.1},
    "accumulation": {"method.name": "cols", "training.accumulation": 4},
    "eight devices": {"method.name": "cols", "mesh.fsdp": 8},
    "comparison": {"compare": "sft,cols"},
    "dropout passes": {"compare": "sft,mc_dropout"},
    "ensemble": {"compare": "sft,ensemble", "ensemble-members": 2},
    "laplace": {"compare": "sft,laplace_lora"},
    "blob": {"compare": "sft,blob"},
}


def run(revision: Path, base: Path, folder: Path, case: dict[str, Any]) -> None:
    """Run `train.py` of a revision; its output appears where it fails."""
    options = COMMON | case | {"model.path": base, "run-dir": folder}
    words = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    devices = 8 if "mesh.fsdp" in case else 1
    done = subprocess.run(
        [sys.executable, str(revision / "train.py"), *words],
        cwd=folder.parent,
        env=os.environ
        | {
            "PYTHONPATH": str(revision),
            # With what importing the package set here: both compile in the same way.
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')}"
            f" --xla_force_host_platform_device_count={devices}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{revision}: {' '.join(words)}\n{done.stderr[-3000:]}")


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """What a run folder holds, by file, as values that can be compared."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.name == "adapter_model.safetensors":
            arrays = load_file(file)
            yield name, {k: hashlib.sha256(arrays[k].tobytes()).hexdigest() for k in sorted(arrays)}
        elif file.name in ("metrics.jsonl", "dynamics.jsonl") or file.parent.name == "predictions":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            yield name, [{k: v for k, v in x.items() if k not in TIMES} for x in lines]
        elif file.name == "eval.json":
            yield name, {k: v for k, v in json.loads(file.read_text()).items() if k != "provenance"}


def differences(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """The places at which two values differ; a key that only one of them has is none."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() & theirs.keys():
            yield from differences(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif ours != theirs:
        yield f"{place}: {str(ours)[:60]} and {str(theirs)[:60]}"


def main() -> None:
    """Print a line for each case: equal, or the first places that differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("revision")
    parser.add_argument("--only", choices=CASES)
    args = parser.parse_args()
    worst = 0
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        theirs = place / "revision"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--detach", str(theirs), args.revision], check=True)
        try:
            base = write_base(place / "base")
            for name, case in CASES.items():
                if args.only not in (None, name):
                    continue
                found = []
                for revision, folder in ((HERE, place / "ours"), (theirs, place / "theirs")):
                    folder.mkdir(exist_ok=True)
                    run(revision, base, folder / name, case)
                    found.append(dict(contents(folder / name)))
                both = found[0].keys() & found[1].keys()
                wrong = [d for key in sorted(both) for d in differences(
                    found[0][key], found[1][key], key)]  # fmt: skip
                worst |= bool(wrong)
                print(f"{name}: {len(both)} files equal" if not wrong else f"{name}: {wrong[:3]}")
        finally:
            subprocess.run([*git, "remove", "--force", str(theirs)], check=False)
    raise SystemExit(worst)


if __name__ == "__main__":
    main()
