"""Option scores here and in lm-evaluation-harness: same weights, questions, prompts and dtype.

    python benchmarks/peers/lm_eval.py MODEL --rows DATA/openbookqa \
        [--questions 500] [--rounds 5] [--peer-python PYTHON] [--json FILE]

MODEL is a folder in Hugging Face layout with weights and tokenizer. Both sides score the options of
the same OpenBookQA test questions in float32, once asked by letter and once as cloze, from text to
log-probabilities, tokenization included and loading not. The harness runs in a process of its own
with its Hugging Face backend: at its defaults (batch size 1), and at the fastest of several batch
sizes. Its way and ours take turns within rounds; ratios are taken within rounds. Ours compiles on
first use: that pass is the cold one, compared with the harness's first. PYTHON is an interpreter
with benchmarks/peers/requirements.txt; left out, this one.

Both sides are float32, and each rounds: on SmolLM2-135M they differ by up to 2.4e-4 nats, of which
the harness's part is the larger. So options on which they differ by more than `TOLERANCE` are
scored once more by the harness in float64, and the run ends in an error only if ours is more than
`TOLERANCE` from that (transformers computes norms and rotary angles in float32 even there).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.bench.command import interleave, median, paired_ratio
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_test
from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.hf.tokenizer import load_tokenizer
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.sharding import MeshConfig, make_mesh

WORKER = Path(__file__).with_name("lm_eval_worker.py")
PROMPTS = ("letters", "cloze")
TUNED_SIZES = (8, 16, 32, 64)
# Of a summed log-probability in float32 from its value in float64: what tests allow, absolute.
TOLERANCE = 1e-4
# Options scored in float64 for one kind of prompt; those that differ most come first.
MOST_REFERENCES = 200


class Harness:
    """The harness in its process."""

    def __init__(self, python: str, model: Path):
        self._process = subprocess.Popen(
            [python, "-P", str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready = self._ask({"model": str(model)})
        self.load_s, self.versions = ready["seconds"], ready["versions"]
        self.peak_bytes = 0

    def set_questions(self, encoded: EncodedSplit) -> list[list[list[int]]]:
        """Returns the (context, continuation) ids of each option of each question, in order."""
        requests = [[e.prompt, text] for e in encoded for text in e.completions]
        return self._ask({"requests": requests})["ids"]

    def reference(self, chosen: list[int]) -> list[float]:
        """Return the log-probabilities of these options of the questions in float64."""
        return self._ask({"reference": chosen})["logprobs"]

    def run(self, batch_size: int) -> dict[str, Any]:
        done = self._ask({"run": batch_size})
        self.peak_bytes = done["peak_bytes"]
        return done

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(
                "lm-evaluation-harness ended (its message is above); install"
                " benchmarks/peers/requirements.txt, here or where --peer-python points"
            )
        return json.loads(line)


class Ours:
    """This project's scores of questions, from text on."""

    def __init__(self, model: Path):
        start = time.perf_counter()
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        decoder = load_decoder(model, dtype=jnp.float32, mesh=mesh)
        graphdef, self._lora, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
        self._parts = (FrozenModel(graphdef, frozen), mesh, EvaluationConfig())
        self._tokenizer = load_tokenizer(model)
        self.load_s = time.perf_counter() - start

    def fresh(self) -> None:
        """Forget what was compiled."""
        self._predict = Predictor(*self._parts)

    def run(self, data: DataConfig, examples: tuple[Example, ...]) -> np.ndarray:
        encoded, _ = encode_split("test", examples, self._tokenizer, data)
        return self._predict(self._lora, encoded).logprobs


class Judged(NamedTuple):
    """Options that were scored in float64, and the largest errors of both sides there."""

    options: int
    ours: float
    harness: float


class Asked(NamedTuple):
    """The figures of one kind of prompt."""

    questions: int
    ours_s: np.ndarray
    default_s: np.ndarray
    tuned_s: np.ndarray
    tuned_size: int
    ours_cold_s: float
    default_cold_s: float
    same_ids: int
    options: int
    difference: float
    judged: Judged


def measure(ours: Ours, harness: Harness, data: DataConfig, rounds: int) -> Asked:
    examples, _ = load_test(data, 0)
    say(f"== {data.prompt}: the first pass of each")
    ours.fresh()
    start = time.perf_counter()
    logprobs = ours.run(data, examples)
    cold = time.perf_counter() - start
    encoded, _ = encode_split("test", examples, ours._tokenizer, data)
    ids = harness.set_questions(encoded)
    first = harness.run(1)
    say(f"   ours {cold:.1f} s, compiling included; harness {first['seconds']:.1f} s")
    pairs = compare(encoded, logprobs, ids, first["logprobs"])
    judged = judge(harness, pairs)

    tried = {size: harness.run(size)["seconds"] for size in TUNED_SIZES}
    best = min(tried, key=tried.get)
    say("   harness by batch size: " + ", ".join(f"{n}: {s:.1f} s" for n, s in tried.items()))
    work = {
        "ours": lambda _: ours.run(data, examples),
        "default": lambda _: harness.run(1),
        "tuned": lambda _: harness.run(best),
    }
    say(f"   {rounds} rounds of all three")
    seconds = interleave(work, rounds, warmup=0)
    return Asked(
        len(encoded),
        *(seconds[name] for name in work),
        best,
        cold,
        first["seconds"],
        len(pairs),
        len(ids),
        max(abs(a - b) for a, b in pairs.values()),
        judged,
    )


def compare(
    encoded: EncodedSplit, logprobs: np.ndarray, ids: list[Any], theirs: list[float]
) -> dict[int, tuple[float, float]]:
    """Return place of an option -> its log-probability here and there, if its ids are the same."""
    ours = [float(logprobs[i, k]) for i, e in enumerate(encoded) for k in range(len(e.completions))]
    own_ids = [[list(e.prompt_ids), list(one)] for e in encoded for one in e.completion_ids]
    rows = enumerate(zip(ours, theirs, own_ids, ids, strict=True))
    pairs = {place: (a, b) for place, (a, b, x, y) in rows if x == y}
    if not pairs:
        raise UserError("no option has the same token ids on both sides: nothing can be compared")
    return pairs


def judge(harness: Harness, pairs: dict[int, tuple[float, float]]) -> Judged:
    """Score in float64 the options on which the sides differ by more than `TOLERANCE`.

    Where they differ by less, each is as far from float64 as the other's error allows: that is not
    looked into.
    """
    apart = {place: abs(a - b) for place, (a, b) in pairs.items() if abs(a - b) > TOLERANCE}
    if not apart:
        return Judged(0, 0.0, 0.0)
    chosen = sorted(apart, key=apart.get, reverse=True)[:MOST_REFERENCES]
    exact = harness.reference(chosen)
    errors = [
        (abs(pairs[place][0] - value), abs(pairs[place][1] - value))
        for place, value in zip(chosen, exact, strict=True)
    ]
    ours, theirs = map(max, zip(*errors, strict=True))
    return Judged(len(chosen), ours, theirs)


def figures_of(asked: Asked) -> dict[str, Any]:
    n = asked.questions
    figures: dict[str, Any] = {
        "questions": n,
        "options": asked.options,
        "options_with_same_ids": asked.same_ids,
        "largest_logprob_difference": asked.difference,
        "options_scored_in_float64": asked.judged.options,
        "our_largest_error_there": asked.judged.ours,
        "harness_largest_error_there": asked.judged.harness,
        "tuned_batch_size": asked.tuned_size,
        "ours_cold_s": asked.ours_cold_s,
        "default_cold_s": asked.default_cold_s,
        "cold_ratio_to_default": asked.default_cold_s / asked.ours_cold_s,
    }
    for name in ("ours", "default", "tuned"):
        seconds = getattr(asked, f"{name}_s")
        figures[f"{name}_seconds"] = seconds.tolist()
        figures[f"{name}_questions_per_s"] = n / median(seconds).value
        if name != "ours":
            ratio = paired_ratio(seconds, asked.ours_s)
            figures[f"ratio_to_{name}"] = ratio.value
            figures[f"ratio_to_{name}_ci95"] = [ratio.low, ratio.high]
    return figures


def table(figures: dict[str, Any]) -> Table:
    header = (
        "prompts",
        "ours\nquestions/s",
        "harness, batch 1\nquestions/s",
        "harness, tuned\nquestions/s",
        "ours is faster\nthan batch 1 by",
        "ours is faster\nthan tuned by",
        "first pass, with\ncompiling, by",
        "largest difference\nof log-probabilities",
    )
    rows = []
    for name, f in figures["prompts"].items():

        def faster(way: str, f: dict[str, Any] = f) -> str:
            low, high = f[f"ratio_to_{way}_ci95"]
            return f"{f[f'ratio_to_{way}']:.2f} [{low:.2f}, {high:.2f}]"

        rows.append(
            (
                name,
                f"{f['ours_questions_per_s']:.2f}",
                f"{f['default_questions_per_s']:.2f}",
                f"{f['tuned_questions_per_s']:.2f} (batch {f['tuned_batch_size']})",
                faster("default"),
                faster("tuned"),
                f"{f['cold_ratio_to_default']:.2f} ({f['ours_cold_s']:.1f} s)",
                f"{f['largest_logprob_difference']:.1e}",
            )
        )
    same = ", ".join(
        f"{name} {f['options_with_same_ids']} of {f['options']}"
        for name, f in figures["prompts"].items()
    )
    judged = "; ".join(
        f"{name} {f['options_scored_in_float64']} options, ours off"
        f" {f['our_largest_error_there']:.1e} at most, harness"
        f" {f['harness_largest_error_there']:.1e}"
        for name, f in figures["prompts"].items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    note = "\n".join(
        [
            f"{figures['model']}, float32, {figures['cpus']} CPU cores, {figures['questions']}"
            f" questions, {figures['rounds']} rounds; medians, ratios taken within rounds [95 %].",
            f"Options with the same token ids on both sides, and so compared: {same}.",
            f"Where the sides differ by more than {TOLERANCE:.0e}, against float64: {judged}.",
            f"Loading: ours {figures['ours_load_s']:.1f} s, harness"
            f" {figures['harness_load_s']:.1f} s. Peak host memory: ours"
            f" {figures['ours_peak_bytes'] / 1e9:.2f} GB, harness"
            f" {figures['harness_peak_bytes'] / 1e9:.2f} GB.",
            f"{versions}, jax {jax.__version__}.",
        ]
    )
    return Table(header, tuple(rows), note)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="folder with test.jsonl")
    parser.add_argument("--questions", type=int, default=500, help="of the test split")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)

    ours = Ours(options.model)
    harness = Harness(options.peer_python, options.model)
    base = DataConfig(
        task="openbookqa",
        path=str(options.rows),
        prompt=PROMPTS[0],
        max_length=2048,
        test_rows=options.questions,
    )
    asked = {
        prompt: measure(ours, harness, replace(base, prompt=prompt), options.rounds)
        for prompt in PROMPTS
    }
    harness.close()
    figures = {
        "model": options.model.name,
        "questions": options.questions,
        "rounds": options.rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "versions": harness.versions,
        "ours_load_s": ours.load_s,
        "harness_load_s": harness.load_s,
        "ours_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "harness_peak_bytes": harness.peak_bytes,
        "prompts": {prompt: figures_of(one) for prompt, one in asked.items()},
    }
    if options.json is not None:
        write_json(options.json, figures)
    print(as_text(table(figures)))
    worst = max(one.judged.ours for one in asked.values())
    if worst > TOLERANCE:
        raise UserError(
            f"our log-probabilities are off by {worst:.1e} from float64; expected at most"
            f" {TOLERANCE}"
        )


if __name__ == "__main__":
    sys.exit(run_main(main))
