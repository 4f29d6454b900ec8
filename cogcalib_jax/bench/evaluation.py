"""What an evaluation costs: questions a second, compiling, memory.

The task's test questions are scored again and again by the model of a run, with its LoRA
parameters: from token ids to the log-probability of every option on the host. The first pass
compiles and is told apart from the others. Operations by formula say what the shared prompts save.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.bench.timing import Estimate, median
from cogcalib_jax.bench.train_step import Phases
from cogcalib_jax.cli.prepare import assemble_model, base_path
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import refuse_meaningless, require_writable
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.console import say
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.loading import load_test
from cogcalib_jax.data.packing import pack, packed_batches
from cogcalib_jax.errors import UserError, check
from cogcalib_jax.files import command_line
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.inference.evaluate import data_hash, provenance, write_json
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.plan.flops import forward_flops
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.settings import Role, to_dict
from cogcalib_jax.sharding import batch_parts

REFUSED: dict[Role, str] = {
    "comparison": "scoring takes as long whatever the method",
    "folder": "no run folder is written; keep the figures with --json FILE",
    "resume": "every measurement starts anew",
}


@dataclass(frozen=True)
class EvalBenchConfig(RunConfig):
    """A run, and how the scoring of its test questions is measured."""

    repeats: int = 5
    """timed passes over the questions, after the one that compiles"""
    json: str | None = None
    """file for the figures as JSON; unset: the table only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.repeats >= 1, "repeats", "must be an integer of at least 1")


def bench_eval(argv: list[str], default_preset: Path) -> str:
    """The command `eval`: measure, write --json, and return the table."""
    loaded = load_config(
        EvalBenchConfig,
        argv,
        prog="bench.py eval",
        description=__doc__,
        default_preset=default_preset,
    )
    refuse_meaningless(loaded, REFUSED, "a benchmark")
    file = None if loaded.config.json is None else Path(loaded.config.json)
    if file is not None:
        require_writable(file, "--json")
    figures = measure(loaded.config)
    if file is not None:
        command = command_line("python", "bench.py", "eval", *argv)
        write_json(file, figures | {"command": command})
    return as_text(table(figures))


def measure(config: EvalBenchConfig) -> dict[str, Any]:
    """Everything the JSON file holds; `..._ci95` are bootstrap intervals over passes."""
    phases = Phases()
    base = base_path(config.model, config.world, config.pretrain, config.seed)
    say(f"== Questions and model: {config.data.task} with {base}")
    # A config of training may fit more than what is scored; the test rows are those of eval.py.
    examples, notes = load_test(config.data, config.seed, world=config.world)
    encoded, more = encode_split("test", examples, load_base_tokenizer(base), config.data)
    for note in (*notes, *more):
        say(f"   note: {note}")
    if encoded.is_open:
        raise UserError(f"bench.py eval: {config.data.task} has open questions, without options")
    assembled = assemble_model(config, config.lora, base)
    predictor = Predictor(assembled.model, assembled.mesh, config.evaluation)
    phases.end("loading")

    def take() -> float:
        start = time.perf_counter()
        predictor(assembled.lora, encoded)
        return time.perf_counter() - start

    say("== The first pass, which compiles")
    first = take()
    phases.end("first pass")
    say(f"== {config.repeats} passes over {len(encoded):,} questions")
    seconds = np.array([take() for _ in range(config.repeats)])
    phases.end("passes")

    work = work_of(encoded, assembled.decoder.config, config.lora)
    multiple = batch_parts(assembled.mesh)
    shapes = [
        b.input_ids.shape for b in packed_batches(encoded, config.evaluation.batch_size, multiple)
    ]
    padded = sum(rows * tokens for rows, tokens in shapes)
    return (
        work
        | {
            "questions": len(encoded),
            "padded_tokens": padded,
            "batches": len(shapes),
            "batch_shape": list(shapes[0]),
            "seconds": seconds.tolist(),
            "first_pass_s": first,
            "compile_s": first - median(seconds).value,
            **_with_interval("questions_per_s", median(len(encoded) / seconds)),
            "tokens_per_s": float(np.median(work["tokens"] / seconds)),
            "padded_tokens_per_s": float(np.median(padded / seconds)),
            "model_flop_per_s": float(np.median(work["flop"] / seconds)),
            "phases": phases.ended,
        }
        | provenance(config.seed, {config.data.task: data_hash(encoded)})
        | {"cpus": len(os.sched_getaffinity(0)), "config": to_dict(config)}
    )


def work_of(encoded: EncodedSplit, decoder: DecoderConfig, lora: LoraConfig) -> dict[str, Any]:
    """Tokens and operations that scoring `encoded` asks for: each prompt once, and for comparison
    with a row for every option.

    What the questions' prompts share (worked examples) counts once for each question in both.
    """
    rows = [(len(e.prompt_ids), [len(ids) for ids in e.completion_ids]) for e in encoded]
    # A completion's last token is scored and never read.
    options = np.array([prompt + n - 1 for prompt, lengths in rows for n in lengths])
    again = np.repeat([prompt for prompt, _ in rows], [len(lengths) - 1 for _, lengths in rows])
    every_token = sum(n for _, lengths in rows for n in lengths)
    # All options' first tokens are read off one position.
    scored = every_token - len(again)
    vocab = decoder.vocab_size
    repeated = forward_flops(decoder, lora, options, every_token, vocab)
    shared = forward_flops(decoder, lora, options, scored, vocab) - forward_flops(
        decoder, lora, again, 0, vocab
    )
    return {
        "tokens": int(options.sum() - again.sum()),
        "tokens_row_per_option": int(options.sum()),
        "shared_beginning": pack(encoded).shared,
        "flop": shared,
        "flop_row_per_option": repeated,
    }


def _with_interval(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_ci95": [estimate.low, estimate.high]}


def table(figures: dict[str, Any]) -> Table:
    """The figures for people."""
    low, high = figures["questions_per_s_ci95"]
    header = (
        "task",
        "questions a second\n[95 %]",
        "real tokens\na second",
        "with padding\na second",
        "model\nGFLOP/s",
        "first pass\ns",
        "of it\ncompiling, s",
    )
    row = (
        figures["config"]["data"]["task"],
        f"{figures['questions_per_s']:,.1f} [{low:,.1f}, {high:,.1f}]",
        f"{figures['tokens_per_s']:,.0f}",
        f"{figures['padded_tokens_per_s']:,.0f}",
        f"{figures['model_flop_per_s'] / 1e9:,.2f}",
        f"{figures['first_pass_s']:.2f}",
        f"{figures['compile_s']:.2f}",
    )
    peaks = [one["peak_host_bytes"] for one in figures["phases"].values()]
    devices = [one["peak_device_bytes"] for one in figures["phases"].values()]
    memory = f"host {max(peaks) / 2**20:,.0f} MiB"
    if devices[-1] is not None:
        memory += f", device {devices[-1] / 2**20:,.0f} MiB"
    share = figures["tokens"] / figures["padded_tokens"]
    batch = " x ".join(map(str, figures["batch_shape"]))
    note = "\n".join(
        [
            f"{figures['devices']} x {figures['device']}, {figures['cpus']} CPU cores;"
            f" {figures['questions']:,} questions, median of {len(figures['seconds'])} passes, in"
            f" {figures['batches']} batches of {batch} tokens, all of one shape.",
            f"{figures['tokens']:,} real of {figures['padded_tokens']:,} computed tokens"
            f" ({100 * share:.0f} %); a row for every option would read"
            f" {figures['tokens_row_per_option']:,} and take"
            f" {figures['flop_row_per_option'] / figures['flop']:.2f} times the operations.",
            f"Peak memory, loading and compiling included: {memory}.",
        ]
    )
    return Table(header, (row,), note)
