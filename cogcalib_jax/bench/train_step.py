"""Time the training step of several methods, side by side in one run.

All methods take single steps over the same batches, in an order drawn anew each round, after all
were compiled. A step is that of train.py, timed from call to finished result; making batches is
timed apart. Times are divided by those of plain fine-tuning (sft), which runs twice: the ratio of
the two shows the noise of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from cogcalib_jax.bench.command import (
    Phases,
    cpu_count,
    interleave,
    median,
    memory_note,
    paired_ratio,
    peak_host_bytes,
    run_benchmark,
)
from cogcalib_jax.bench.hardware import Peak, peak_flops, update_flops
from cogcalib_jax.cli.prepare import prepare
from cogcalib_jax.cli.run_config import RunConfig, check_entries
from cogcalib_jax.console import say
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import check
from cogcalib_jax.inference.evaluate import provenance
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.report.tables import Table
from cogcalib_jax.settings import Role, to_dict
from cogcalib_jax.training.loop import jit_step, micro_batches, train_stream
from cogcalib_jax.training.state import Trainable
from cogcalib_jax.training.step import init_state, learning_rate_schedule

WARMUP = 5
BASE = "sft"
CONTROL = "sft (again)"
# Options of a run that mean nothing here, each with what to write instead.
REFUSED: dict[Role, str] = {
    "comparison": "name the methods with --methods",
    "methods": "name the methods with --methods",
    "adapter": "a step takes as long from any values; give lora.r and lora.target_modules",
    "folder": "no run folder is written; keep the figures with --json FILE",
    "resume": "every measurement starts anew",
}


@dataclass(frozen=True)
class TrainBenchConfig(RunConfig):
    """A run, with options of the measurement of its training step."""

    methods: tuple[str, ...] = ("sft", "ls", "cols")
    """methods to measure, each NAME or NAME=WEIGHT; sft is always measured beside them"""
    steps: int = 200
    """rounds: timed steps of each method"""
    json: str | None = None
    """file for the figures as JSON; unset: the table only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_entries(self.methods, "methods")
        check(self.steps >= 10, "steps", "must be at least 10, or a median has no interval")

    def run_config(self) -> RunConfig:
        """Return the run that is measured, a comparison of its methods with sft first."""
        others = tuple(entry for entry in self.methods if entry.partition("=")[0] != BASE)
        values = {field.name: getattr(self, field.name) for field in fields(RunConfig)}
        return RunConfig(**values | {"compare": (BASE, *others), "also": ()})


def bench_train(argv: list[str]) -> str:
    """Run the command `train` and return its table."""
    return run_benchmark(
        "train", TrainBenchConfig, argv, measure, table, description=__doc__, refused=REFUSED
    )


class Prepared(NamedTuple):
    """A batch on its devices with its counts."""

    batch: Batch
    labels: jax.Array
    tokens: int
    """real tokens"""
    padded_tokens: int
    flops: float
    seconds: float
    """to make it and move it to its devices"""


def measure(config: TrainBenchConfig) -> dict[str, Any]:
    """Return the figures of the JSON file; `..._ci95` are bootstrap intervals over rounds."""
    run, phases = config.run_config(), Phases()
    ready = prepare(run)
    assembled, trainable = ready.assembled, ready.trainer.trainable
    train = ready.trainer.splits["train"]
    phases.end("loading")
    prepared = _batches(run, trainable, train, ready.base.config, config.steps)
    phases.end("batches")
    shapes = {p.batch.input_ids.shape: p for p in prepared}

    steppers, compile_s = {}, {}
    for name, method in run.resolved_methods().items():
        say(f"== Compiling {name} for {len(shapes)} shape(s)")
        steppers[name] = _stepper(trainable, method, assembled.lora)
        compile_s[name] = sum(_first_call(steppers[name], one) for one in shapes.values())
    steppers[CONTROL] = steppers[BASE]
    phases.end("compiling")

    say(f"== {config.steps} rounds of single steps: {', '.join(steppers)}")
    work = {
        name: lambda number, take=step: take(prepared[number]) for name, step in steppers.items()
    }
    seconds = interleave(work, config.steps, warmup=WARMUP, seed=run.seed)
    phases.end("steps")
    control = seconds.pop(CONTROL)
    peak = peak_flops(assembled.mesh, assembled.decoder.dtype)
    data = {run.data.task: ready.hashes["train"]}
    return (
        _figures(seconds, compile_s, control, prepared[WARMUP:], run.training.batch_size, peak)
        | {"phases": phases.ended, "peak_host_bytes": peak_host_bytes()}
        | {"shapes": sorted(list(shape) for shape in shapes)}
        | provenance(run.seed, data)
        | {"cpus": cpu_count(), "config": to_dict(config)}
    )


def _batches(
    run: RunConfig, trainable: Trainable, train: EncodedSplit, decoder: DecoderConfig, steps: int
) -> list[Prepared]:
    method = list(run.resolved_methods().values())[-1]
    stream = train_stream(trainable, train, WARMUP + steps, method)
    known = np.zeros(len(train), np.float32)  # no method's gate reads fixed labels
    in_vocab = run.loss.space == "vocab" or train.needs_trees(run.option_score)
    classes = decoder.vocab_size if in_vocab else train.options
    prepared = []
    for step in range(WARMUP + steps):
        start = time.perf_counter()
        tokens, batch, labels = jax.block_until_ready(micro_batches(trainable, stream, step, known))
        seconds = time.perf_counter() - start
        flops = update_flops(
            decoder,
            run.lora,
            np.asarray(batch.lengths).ravel(),
            int(_scored(batch)),
            classes,
        )
        prepared.append(Prepared(batch, labels, tokens, batch.input_ids.size, flops, seconds))
    return prepared


def _scored(batch: Batch) -> np.ndarray:
    """The number of positions whose logits an update forms, padding left out."""
    if batch.tree is None:
        return np.asarray(batch.loss_mask).sum()
    return (np.asarray(batch.tree.place) < batch.tree.divisor.shape[-1]).sum()


def _stepper(
    trainable: Trainable, method: MethodConfig, lora: nnx.State
) -> Callable[[Prepared], None]:
    """Return a function that makes one update and waits for it; it keeps the training state."""
    training = trainable.training
    # The learning rate changes no time.
    schedule = learning_rate_schedule(training.learning_rate, "constant", 1, 0.0)
    step = jit_step(trainable, schedule, lora)
    state = init_state(lora, trainable.optimizer(schedule), trainable.mesh)
    # The gate multiplies by 0 or 1, so the threshold changes no time either.
    gated = (trainable.scalar(1.0), jax.tree.map(trainable.scalar, method.build()))
    key = jax.random.key(trainable.seed)

    def take(one: Prepared) -> None:
        nonlocal state
        state, metrics = step(state, trainable.model.frozen, one.batch, one.labels, *gated, key)
        jax.block_until_ready((state, metrics))

    return take


def _first_call(take: Callable[[Prepared], None], one: Prepared) -> float:
    """Return the seconds of tracing and compiling: the first call with a shape less the second."""
    start = time.perf_counter()
    take(one)
    first = time.perf_counter()
    take(one)
    return (first - start) - (time.perf_counter() - first)


def _figures(
    seconds: dict[str, np.ndarray],
    compile_s: dict[str, float],
    control: np.ndarray,
    batches: list[Prepared],
    examples: int,
    peak: Peak,
) -> dict[str, Any]:
    # Ratios are taken within rounds first: `ratio_to_sft` is not quite the ratio of two `step_ms`.
    tokens = np.array([b.tokens for b in batches])
    padded = np.array([b.padded_tokens for b in batches])
    flops = np.array([b.flops for b in batches])
    base = seconds[BASE]
    methods = {}
    for name, times in seconds.items():
        methods[name] = {
            **median(1e3 * times).named("step_ms"),
            **paired_ratio(times, base).named("ratio_to_sft"),
            "examples_per_s": float(np.median(examples / times)),
            "tokens_per_s": float(np.median(tokens / times)),
            "padded_tokens_per_s": float(np.median(padded / times)),
            "model_flop_per_s": float(np.median(flops / times)),
            **median(flops / times / peak.flop_per_s).named("mfu"),
            "compile_s": compile_s[name],
        }
    return {
        "methods": methods,
        "control": paired_ratio(control, base).named("ratio_to_sft"),
        "rounds": len(batches),
        "batch": {
            "examples": examples,
            "tokens": float(tokens.mean()),
            "padded_tokens": float(padded.mean()),
            "model_flop": float(flops.mean()),
            "ms": 1e3 * float(np.median([b.seconds for b in batches])),
        },
        "peak": peak._asdict(),
    }


def table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table."""

    def interval(m: dict[str, Any], name: str, digits: int) -> str:
        low, high = m[f"{name}_ci95"]
        return f"{m[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    rows = []
    for name, m in figures["methods"].items():
        rows.append(
            (
                name,
                interval(m, "step_ms", 2),
                "1" if name == BASE else interval(m, "ratio_to_sft", 3),
                f"{m['examples_per_s']:,.1f}",
                f"{m['tokens_per_s']:,.0f}",
                f"{m['padded_tokens_per_s']:,.0f}",
                f"{m['model_flop_per_s'] / 1e9:,.2f}",
                f"{100 * m['mfu']:.1f}",
                f"{m['compile_s']:.1f}",
            )
        )
    header = (
        "method",
        "step ms\n[95 %]",
        "times sft\n[95 %]",
        "examples\na second",
        "real tokens\na second",
        "with padding\na second",
        "model\nGFLOP/s",
        "MFU\n%",
        "compiling\ns",
    )
    batch = figures["batch"]
    device = f"{figures['devices']} x {figures['device']}"
    note = "\n".join(
        [
            f"{device}, {figures['cpus']} CPU cores; medians over {figures['rounds']} rounds of"
            f" single steps; {len(figures['shapes'])} padded shape(s).",
            f"A batch: {batch['examples']} examples, {batch['tokens']:,.0f} real of"
            f" {batch['padded_tokens']:,.0f} computed tokens; making one takes {batch['ms']:.2f} ms"
            " (not in the step).",
            f"MFU: of {figures['peak']['flop_per_s'] / 1e9:,.1f} GFLOP/s"
            f" ({figures['peak']['source']}).",
            "Seconds and peak memory so far: "
            + "; ".join(
                f"{name} {one['seconds']:.1f} s, {memory_note(one)}"
                for name, one in figures["phases"].items()
            )
            + ".",
            "sft against itself, the noise of a ratio:"
            f" {interval(figures['control'], 'ratio_to_sft', 3)}.",
        ]
    )
    return Table(header, tuple(rows), note)
