"""Time the scoring of a task's test questions: questions a second, compiling, memory.

The model of a run scores them again and again with its LoRA parameters, from token ids to the
log-probability of every option on the host. The first pass compiles and is timed apart. Operations
by formula show what is saved by reading each prompt once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogcalib_jax.bench.command import Phases, cpu_count, median, memory_note, run_benchmark
from cogcalib_jax.bench.hardware import forward_flops
from cogcalib_jax.cli.prepare import assemble_model, base_path
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.console import say
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.loading import load_test
from cogcalib_jax.data.packing import pack, packed_batches
from cogcalib_jax.errors import UserError, check
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.inference.evaluate import data_hash, provenance
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.report.tables import Table
from cogcalib_jax.settings import Role, to_dict
from cogcalib_jax.sharding import batch_parts

REFUSED: dict[Role, str] = {
    "comparison": "scoring takes as long whatever the method",
    "folder": "no run folder is written; keep the figures with --json FILE",
    "resume": "every measurement starts anew",
}


@dataclass(frozen=True)
class EvalBenchConfig(RunConfig):
    """A run, with options of the measurement of its evaluation."""

    repeats: int = 5
    """timed passes over the questions, after the one that compiles"""
    json: str | None = None
    """file for the figures as JSON; unset: the table only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.repeats >= 1, "repeats", "must be an integer of at least 1")


def bench_eval(argv: list[str]) -> str:
    """Run the command `eval` and return its table."""
    return run_benchmark(
        "eval", EvalBenchConfig, argv, measure, table, description=__doc__, refused=REFUSED
    )


def measure(config: EvalBenchConfig) -> dict[str, Any]:
    """Return the figures of the JSON file; `..._ci95` are bootstrap intervals over passes."""
    phases = Phases()
    base = base_path(config.model, config.world, config.pretrain, config.seed)
    say(f"== Questions and model: {config.data.task} with {base}")
    # A config of training may fit more than what is scored; the test rows are those of eval.py.
    examples, notes = load_test(config.data, config.seed, made=config.made)
    encoded, more = encode_split("test", examples, load_base_tokenizer(base), config.data)
    for note in (*notes, *more):
        say(f"   note: {note}")
    if encoded.is_open:
        raise UserError(f"bench.py eval: {config.data.task} has open questions, without options")
    assembled = assemble_model(config, base)
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
            **median(len(encoded) / seconds).named("questions_per_s"),
            "tokens_per_s": float(np.median(work["tokens"] / seconds)),
            "padded_tokens_per_s": float(np.median(padded / seconds)),
            "model_flop_per_s": float(np.median(work["flop"] / seconds)),
            "phases": phases.ended,
        }
        | provenance(config.seed, {config.data.task: data_hash(encoded)})
        | {"cpus": cpu_count(), "config": to_dict(config)}
    )


def work_of(encoded: EncodedSplit, decoder: DecoderConfig, lora: LoraConfig) -> dict[str, Any]:
    """Return the tokens and operations of scoring `encoded`: each prompt once, and for comparison
    with a row for every option.

    Worked examples that all prompts share count once for each question in both.
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


def table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table."""
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
    memory = memory_note(figures["phases"]["passes"])
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
