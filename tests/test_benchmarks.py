"""Every benchmark and example loads: what it imports of the package is there."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What it imports of its peer is installed in the peer's own environment alone.
ELSEWHERE = ("lm_eval_worker.py",)
FILES = [
    file
    for folder in ("benchmarks", "benchmarks/peers", "examples")
    for file in sorted((ROOT / folder).glob("*.py"))
    if file.name not in ELSEWHERE
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_loads(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    spec = importlib.util.spec_from_file_location(f"loaded_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up there.
    monkeypatch.setitem(sys.modules, spec.name, module)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("cogcalib_jax", "benchmarks"):
            raise
        pytest.skip(f"{error.name} is not installed")
