"""What a training step costs, method by method, interleaved in one run.

All methods take single steps over the same batches, in an order drawn anew each round, after all of
them were compiled. A step is the one train.py makes, timed from call to finished result; making
batches is timed apart. Plain fine-tuning (sft) is what the others are divided by; it runs twice,
and the ratio of the two says what the machine's noise alone does to such a ratio.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from cogcalib_jax.bench.peak import Peak, peak_flops
from cogcalib_jax.bench.timing import Estimate, interleave, median, paired_ratio
from cogcalib_jax.cli.prepare import prepare
from cogcalib_jax.cli.run_config import RunConfig, check_entries
from cogcalib_jax.cli.run_folder import refuse_meaningless, require_writable
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.console import say
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import check
from cogcalib_jax.files import command_line
from cogcalib_jax.inference.evaluate import provenance, write_json
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.plan.flops import update_flops
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.settings import Role, to_dict
from cogcalib_jax.training.loop import jit_step, micro_batches, train_stream
from cogcalib_jax.training.state import Trainable
from cogcalib_jax.training.step import init_state, learning_rate_schedule, make_optimizer

WARMUP = 5
BASE = "sft"
CONTROL = "sft (again)"
# Options of a run that mean nothing here, and what to write instead.
REFUSED: dict[Role, str] = {
    "comparison": "name the methods with --methods",
    "methods": "name the methods with --methods",
    "adapter": "a step takes as long from any values; say lora.r and lora.target_modules",
    "folder": "no run folder is written; keep the figures with --json FILE",
    "resume": "every measurement starts anew",
}


@dataclass(frozen=True)
class TrainBenchConfig(RunConfig):
    """A run, and how its training step is measured."""

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
        """The run that is measured, as a comparison of its methods with sft first."""
        others = tuple(entry for entry in self.methods if entry.partition("=")[0] != BASE)
        values = {field.name: getattr(self, field.name) for field in fields(RunConfig)}
        return RunConfig(**values | {"compare": (BASE, *others), "also": ()})


def bench_train(argv: list[str], default_preset: Path) -> str:
    """The command `train`: measure, write --json, and return the table."""
    loaded = load_config(
        TrainBenchConfig,
        argv,
        prog="bench.py train",
        description=__doc__,
        default_preset=default_preset,
    )
    refuse_meaningless(loaded, REFUSED, "a benchmark")
    file = None if loaded.config.json is None else Path(loaded.config.json)
    if file is not None:
        require_writable(file, "--json")
    figures = measure(loaded.config)
    if file is not None:
        command = command_line("python", "bench.py", "train", *argv)
        write_json(file, figures | {"command": command})
    return as_text(table(figures))


class Prepared(NamedTuple):
    """A batch on its devices, and what it holds."""

    batch: Batch
    labels: jax.Array
    tokens: int
    """real tokens"""
    padded_tokens: int
    flops: float
    seconds: float
    """to make it and bring it to its devices"""


class Measured(NamedTuple):
    """The times of one method."""

    seconds: np.ndarray
    """[rounds] float64"""
    compile_s: float
    """summed over all shapes"""


def measure(config: TrainBenchConfig) -> dict[str, Any]:
    """Everything the JSON file holds; see `_figures`."""
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
    measured = {name: Measured(times, compile_s[name]) for name, times in seconds.items()}
    data = {run.data.task: ready.hashes["train"]}
    return (
        _figures(measured, control, prepared[WARMUP:], run.training.batch_size, peak)
        | {"phases": phases.ended, "peak_host_bytes": _peak_host_bytes()}
        | {"shapes": sorted(list(shape) for shape in shapes)}
        | provenance(run.seed, data)
        | {"cpus": len(os.sched_getaffinity(0)), "config": to_dict(config)}
    )


def _batches(
    run: RunConfig, trainable: Trainable, train: EncodedSplit, decoder: DecoderConfig, steps: int
) -> list[Prepared]:
    """The batches of all rounds, warm-up included."""
    method = list(run.resolved_methods().values())[-1]
    stream = train_stream(trainable, train, WARMUP + steps, method)
    known = np.zeros(len(train), np.float32)  # none of the methods' gates reads fixed labels
    in_vocab = run.loss.space == "vocab" or not train.single_token_options
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
    return (np.asarray(batch.tree.place) < batch.tree.length.shape[-1]).sum()


def _stepper(
    trainable: Trainable, method: MethodConfig, lora: nnx.State
) -> Callable[[Prepared], None]:
    """A function that makes one update and waits for it; it keeps the training state."""
    training = trainable.training
    # The rate is that of a run's peak; what it is changes no time.
    schedule = learning_rate_schedule(training.learning_rate, "constant", 1, 0.0)
    step = jit_step(trainable, schedule, lora)
    state = init_state(lora, make_optimizer(training, schedule), trainable.mesh)
    # The gate multiplies by 0 or 1: where the threshold lies changes no time either.
    gated = (trainable.scalar(1.0), trainable.method(method))
    key = jax.random.key(trainable.seed)

    def take(one: Prepared) -> None:
        nonlocal state
        state, metrics = step(state, trainable.model.frozen, one.batch, one.labels, *gated, key)
        jax.block_until_ready((state, metrics))

    return take


def _first_call(take: Callable[[Prepared], None], one: Prepared) -> float:
    """Seconds the first call with a shape takes longer than the second: tracing and compiling."""
    start = time.perf_counter()
    take(one)
    first = time.perf_counter()
    take(one)
    return (first - start) - (time.perf_counter() - first)


def _figures(
    measured: dict[str, Measured],
    control: np.ndarray,
    batches: list[Prepared],
    examples: int,
    peak: Peak,
) -> dict[str, Any]:
    """Medians over rounds; `..._ci95` are their bootstrap intervals. Ratios are taken within rounds
    first, so that `ratio_to_sft` is close to, but not, the ratio of two `step_ms`."""
    tokens = np.array([b.tokens for b in batches])
    padded = np.array([b.padded_tokens for b in batches])
    flops = np.array([b.flops for b in batches])
    base = measured[BASE].seconds
    methods = {}
    for name, (seconds, compile_s) in measured.items():
        ratio = paired_ratio(seconds, base)
        methods[name] = {
            **_with_interval("step_ms", median(1e3 * seconds)),
            "step_ms_quartiles": np.quantile(1e3 * seconds, [0.25, 0.75]).tolist(),
            **_with_interval("ratio_to_sft", ratio),
            "examples_per_s": float(np.median(examples / seconds)),
            "tokens_per_s": float(np.median(tokens / seconds)),
            "padded_tokens_per_s": float(np.median(padded / seconds)),
            "model_flop_per_s": float(np.median(flops / seconds)),
            **_with_interval("mfu", median(flops / seconds / peak.flop_per_s)),
            "compile_s": compile_s,
        }
    return {
        "methods": methods,
        "control": _with_interval("ratio_to_sft", paired_ratio(control, base)),
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


class Phases:
    """What the parts of a measurement took, one after the other."""

    def __init__(self) -> None:
        self.ended: dict[str, dict[str, Any]] = {}
        self._start = time.perf_counter()

    def end(self, name: str) -> None:
        """The part that began where the last one ended (or with this object) is over."""
        now = time.perf_counter()
        self.ended[name] = {
            "seconds": now - self._start,
            "peak_host_bytes": _peak_host_bytes(),
            "peak_device_bytes": _peak_device_bytes(),
        }
        self._start = now


def _with_interval(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_ci95": [estimate.low, estimate.high]}


def _peak_host_bytes() -> int:
    """The most memory this process has held, loading and compiling included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def _peak_device_bytes() -> int | None:
    """The most memory a device has held so far; None where it keeps no account, as a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return max(peaks, default=None)


def table(figures: dict[str, Any]) -> Table:
    """The figures for people."""

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
            "Seconds and peak memory so far: " + "; ".join(_phase_notes(figures["phases"])) + ".",
            "sft against itself, the noise of a ratio:"
            f" {interval(figures['control'], 'ratio_to_sft', 3)}.",
        ]
    )
    return Table(header, tuple(rows), note)


def _phase_notes(phases: dict[str, dict[str, Any]]) -> list[str]:
    notes = []
    for name, one in phases.items():
        memory = f"host {one['peak_host_bytes'] / 2**20:,.0f} MiB"
        if one["peak_device_bytes"] is not None:
            memory += f", device {one['peak_device_bytes'] / 2**20:,.0f} MiB"
        notes.append(f"{name} {one['seconds']:.1f} s, {memory}")
    return notes
