"""What a program makes of one case: its exit code, its words, and the files it leaves."""

import hashlib
import io
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import bench
import eval as eval_program
import train
from cogcalib_jax import studies
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf import merge
from tests.reliability.case import BENCH, EVAL, MERGE, STUDY, TRAIN, Case
from tests.reliability.place import Place

PROGRAMS = {
    TRAIN: train.main,
    EVAL: eval_program.main,
    BENCH: bench.main,
    MERGE: merge.main,
    STUDY: studies.main,
}


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    code: int
    stderr: str
    before: dict[str, str]
    """every file's hash, once the case was arranged"""
    after: dict[str, str]

    @property
    def errors(self) -> list[str]:
        """The messages, without the word that opens them."""
        mark = "error: "
        lines = self.stderr.splitlines()
        return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def run_case(case: Case, good: Path, folder: Path) -> Outcome:
    """Arrange `case` in the empty `folder`, beside copies of what lies in `good`, and run it."""
    words = io.StringIO()
    with chdir(folder), redirect_stderr(words), redirect_stdout(io.StringIO()):
        argv = case.arrange(Place(good))
        before = snapshot(folder)
        words.truncate(words.seek(0))
        code = run_main(PROGRAMS[case.program], argv)
    return Outcome(code, words.getvalue(), before, snapshot(folder))


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder: names, and hashes of files; but for the empty files that are locks."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        )
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }
