"""The same as test_bad_input.py in processes of their own, as a shell starts them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.outcome import snapshot
from tests.reliability.place import WEIGHTS, cut
from tests.reliability.test_bad_input import GUARD_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
# One for each program, from the first look at the words to the bytes of a model; and what is said.
COMMANDS = {
    "train.py --config none.yaml": "none.yaml: cannot be read",
    "eval.py --run adapter --run-dir new": "adapter: no config.yaml",
    "bench.py speed": "bench.py: 'speed' is no command",
    "-m cogcalib_jax study none.yaml": "none.yaml: cannot be read",
    "-m cogcalib_jax.hf.merge --adapter adapter --model.path base --out merged": (
        "base/model.safetensors: not a whole safetensors file"
    ),
}


@pytest.fixture(scope="module")
def ended(good, tmp_path_factory):
    """Command -> (exit code, stdout, stderr, what it left). All run at once: they mostly import."""
    started = {}
    for command in COMMANDS:
        folder = tmp_path_factory.mktemp("process")
        for name in ("base", "adapter"):
            shutil.copytree(good / name, folder / name)
        cut(folder / "base" / WEIGHTS)
        words = command.split()
        if words[0] != "-m":
            words[0] = str(REPOSITORY / words[0])
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started[command] = (process, folder, snapshot(folder))
    outcomes = {}
    for command, (process, folder, before) in started.items():
        out, err = process.communicate(timeout=GUARD_SECONDS)
        outcomes[command] = (process.returncode, out, err, snapshot(folder) == before)
    return outcomes


@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_ends_with_code_2_and_one_line_and_leaves_nothing(ended, command):
    code, out, err, is_clean = ended[command]
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.startswith(f"error: {COMMANDS[command]}"), err
    assert is_clean
