"""Compile a preset's training step for accelerators that are not here: does it fit?

The step of train.py is compiled ahead of time, from shapes alone: for TPUs by the TPU's own
compiler (libtpu, extra `tpu`), for GPUs by the CPU's on simulated devices, with memory by formula:
an estimate. No weight is read, nothing is fetched, and nothing is executed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogcalib_jax.bench.command import run_benchmark
from cogcalib_jax.bench.compile import (
    BatchShape,
    CompiledStep,
    OutOfMemory,
    compile_step,
    update_memory,
)
from cogcalib_jax.bench.hardware import Topology, find_topology, next_larger, update_flops
from cogcalib_jax.cli.run_config import RunConfig, settle_comparison
from cogcalib_jax.configlib.sources import preset_folder
from cogcalib_jax.console import say
from cogcalib_jax.errors import UserError, check
from cogcalib_jax.hf.weights import read_config
from cogcalib_jax.inference.evaluate import provenance
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.models.parameters import abstract_decoder
from cogcalib_jax.report.tables import Table
from cogcalib_jax.settings import Role
from cogcalib_jax.sharding import MESH_AXES, batch_parts, make_mesh, mesh_words
from cogcalib_jax.training.step import learning_rate_schedule, make_optimizer
from cogcalib_jax.training.variant import variant_of
from cogcalib_jax.world.base import base_architecture
from cogcalib_jax.world.corpus import build_tokenizer

# Padded lengths on accelerators are multiples of this (sharding.length_multiple).
TILE = 8
REFUSED: dict[Role, str] = {
    "adapter": "a step takes as much from any values; give lora.r and lora.target_modules",
    "folder": "no run folder is written; keep the figures with --json FILE",
    "resume": "nothing is run",
}


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    """A run, and the machine it is planned for."""

    topology: str | None = None
    """chips and how they are wired: v5e:4x4, v5p:4x4x4, h100:8"""
    shape: str | None = None
    """config.json of the model; unset: the one of configs/models/ that names model.path"""
    tokens: int | None = None
    """padded length of the batch; unset: data.max_length"""
    answer_tokens: int = 1
    """scored positions of an example; the padded length for every one"""
    options: int = 4
    """single-token options of a question; 0 where options have several tokens"""
    attempts: int = 6
    """most changes that are compiled, one after the other, if the step does not fit"""
    json: str | None = None
    """file for the figures as JSON; unset: the table only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.topology is not None, "topology", "must name chips, such as v5e:4x4 or h100:8")
        check(self.tokens is None or self.tokens >= 1, "tokens", "must be at least 1, or unset")
        check(self.answer_tokens >= 1, "answer_tokens", "must be an integer of at least 1")
        check(self.options >= 0, "options", "must be an integer of at least 0")
        check(self.attempts >= 0, "attempts", "must be an integer of at least 0")

    @property
    def batch(self) -> BatchShape:
        """The examples of an update."""
        accumulation = self.training.accumulation
        tokens = self.data.max_length if self.tokens is None else self.tokens
        return BatchShape(
            examples=self.training.batch_size // accumulation,
            tokens=-(-tokens // TILE) * TILE,
            answer_tokens=self.answer_tokens,
            options=self.options,
            accumulation=accumulation,
        )

    @property
    def planned_method(self) -> MethodConfig:
        """The first method of a comparison that has a term: it costs what the others do or more."""
        methods = list(self.resolved_methods().values())
        return next((method for method in methods if method.term != "none"), methods[0])

    def classes(self, decoder: DecoderConfig) -> int:
        """Return the number of logits formed at a scored position."""
        return decoder.vocab_size if self.loss.space == "vocab" else self.options

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the base; `auto` is bfloat16, as on accelerators."""
        return jnp.dtype("bfloat16" if self.model.dtype == "auto" else self.model.dtype)


class Attempt(NamedTuple):
    """A step that was compiled, and whether it fits."""

    changes: tuple[str, ...]
    """options that lead to it from the run that was asked for"""
    config: PlanConfig
    topology: Topology
    mesh: Mesh
    step: CompiledStep | None
    """None if the compiler refused it"""
    peak_bytes: int
    """on each device: needed"""
    available_bytes: int
    """on each device: usable"""
    fits: bool
    seconds: float
    """of compiling"""


def bench_plan(argv: list[str]) -> str:
    """Run the command `plan` and return its table."""
    return run_benchmark(
        "plan",
        PlanConfig,
        spread_mesh(argv),
        lambda config: describe(*plan(config)),
        table,
        description=__doc__,
        refused=REFUSED,
        settle=settle_comparison,
    )


def spread_mesh(argv: list[str]) -> list[str]:
    """Return `argv` with `--mesh fsdp=8,tensor=2` as `--mesh.fsdp 8 --mesh.tensor 2`."""
    spread, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        if argument != "--mesh" and not argument.startswith("--mesh="):
            spread.append(argument)
            continue
        word = argument.removeprefix("--mesh").removeprefix("=") or (rest.pop(0) if rest else "")
        for part in word.split(","):
            axis, _, size = part.partition("=")
            if axis not in MESH_AXES or not size:
                raise UserError(
                    f"command line: --mesh {word}: must be AXIS=SIZE with commas between, such as"
                    f" fsdp=8,tensor=2 (axes: {', '.join(MESH_AXES)})"
                )
            spread += [f"--mesh.{axis}", size]
    return spread


def architecture(config: PlanConfig) -> DecoderConfig:
    """Return the model's shape from a file (UserError: none is known); nothing is fetched."""
    if config.shape is not None:
        return _shape_file(Path(config.shape))
    name = config.model.path
    if name is None:
        return base_architecture(config.pretrain, build_tokenizer(config.world))
    if Path(name).is_dir():
        return read_config(name)
    kept = {
        json.loads(file.read_text(encoding="utf-8"))["_name_or_path"]: file
        for file in sorted((preset_folder() / "models").glob("*.json"))
    }
    if name not in kept:
        raise UserError(
            f"model.path = {name}: no shape of it is kept here; give its config.json with --shape"
            f" FILE (kept: {', '.join(sorted(kept))})"
        )
    return _shape_file(kept[name])


def _shape_file(file: Path) -> DecoderConfig:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give a model's config.json") from error
    return from_hf(raw, str(file))


def plan(config: PlanConfig) -> tuple[DecoderConfig, list[Attempt]]:
    """Return the run as asked for and, if it does not fit, changes up to the first that does
    (UserError: an impossible topology, mesh or batch)."""
    # A TPU or GPU that is present stays free for others.
    jax.config.update("jax_platforms", "cpu")
    decoder = architecture(config)
    tried = [_attempt((), config, decoder)]
    for changes, changed in changes_that_save(config, tried[0].mesh):
        if tried[-1].fits or len(tried) > config.attempts:
            break
        tried.append(_attempt(changes, changed, decoder))
    return decoder, tried


def _attempt(changes: tuple[str, ...], config: PlanConfig, decoder: DecoderConfig) -> Attempt:
    topology = find_topology(config.topology)
    mesh = make_mesh(config.mesh, topology.devices)
    batch, parts = config.batch, batch_parts(mesh)
    if batch.examples % parts:
        raise UserError(
            f"training.batch_size / training.accumulation = {batch.examples}: cannot be spread over"
            f" {parts} devices (mesh data x fsdp x expert); choose a multiple of {parts}, or a"
            " larger mesh.tensor"
        )
    shown = mesh_words(mesh.devices.shape)
    say(f"== Compiling for {topology.name}, mesh {shown}; {' '.join(changes) or 'as asked for'}")
    start, step, available = time.perf_counter(), None, topology.chip.hbm_bytes
    try:
        step = _compile(config, decoder, mesh, topology)
    except OutOfMemory as refused:
        peak, available = refused.needed, refused.available
    else:
        peak = step.memory.peak
    fits = step is not None and peak <= available
    seconds = time.perf_counter() - start
    say(f"   {peak / 1e9:.2f} GB on each chip {'fit' if fits else 'DO NOT FIT'}")
    return Attempt(changes, config, topology, mesh, step, peak, available, fits, seconds)


def _compile(
    config: PlanConfig, decoder: DecoderConfig, mesh: Mesh, topology: Topology
) -> CompiledStep:
    training = config.training
    # The learning rate changes no size.
    schedule = learning_rate_schedule(training.learning_rate, training.schedule, 100, 0.06)
    variant = variant_of(training.optimizer)
    shared = {
        "lora": config.lora,
        "shape": config.batch,
        "dtype": config.dtype,
        "remat": config.model.remat,
        "attention": config.model.attention,
        "quantise": config.model.quantise,
    }
    step = compile_step(
        decoder,
        mesh,
        method=config.planned_method,
        loss=config.loss,
        optimizer=variant.optimizer(
            make_optimizer(training, schedule), schedule, training.learning_rate
        ),
        variant=variant,
        activations=config.dtype if topology.simulated else None,
        **shared,
    )
    if topology.simulated:
        # The CPU's compiler lays memory out in another way, and holds bfloat16 in float32.
        estimate = update_memory(decoder, mesh, classes=config.classes(decoder), **shared)
        peak = sum(estimate)
        beside = peak - estimate.base - estimate.adapter // 2
        step = step._replace(memory=step.memory._replace(temporaries=beside, peak=peak))
    return step


def changes_that_save(
    config: PlanConfig, mesh: Mesh
) -> Iterator[tuple[tuple[str, ...], PlanConfig]]:
    """Yield changes that take less memory, each beside those before it, cheap ones first."""
    options: dict[str, str] = {}

    def written(options: dict[str, str]) -> tuple[str, ...]:
        return tuple(f"{option} {value}" for option, value in options.items())

    def cut(fsdp: int, tensor: int, accumulation: int) -> PlanConfig:
        """Return `config` on another mesh without copies of the model."""
        return replace(
            config,
            mesh=replace(config.mesh, data=1, fsdp=fsdp, tensor=tensor),
            training=replace(config.training, accumulation=accumulation),
        )

    if config.model.remat != "layer":
        options["--model.remat"] = "layer"
        config = replace(config, model=replace(config.model, remat="layer"))
        yield written(options), config
    # No copies of the model, then one example at a time, then several devices to an example. The
    # cut of experts stays.
    batch, asked = config.training.batch_size, tuple(mesh.shape.values())
    expert = asked[3]
    experts = f",expert={expert}" if expert > 1 else ""
    seen = {(asked, config.training.accumulation)}
    for tensor in dict.fromkeys((asked[2], 4, 8)):
        if tensor < asked[2] or mesh.size % (tensor * expert):
            continue
        parts = mesh.size // tensor
        fsdp = parts // expert
        for accumulation in (config.training.accumulation, batch // parts):
            place = ((1, fsdp, tensor, expert), accumulation)
            if place in seen or accumulation == 0 or batch % (accumulation * parts):
                continue
            seen.add(place)
            if place[0] != asked:
                options["--mesh"] = f"data=1,fsdp={fsdp},tensor={tensor}{experts}"
            options["--training.accumulation"] = str(accumulation)
            config = cut(fsdp, tensor, accumulation)
            yield written(options), config
    larger = next_larger(config.topology)
    if larger is not None:
        tensor = asked[2]
        parts = math.prod(int(side) for side in larger.partition(":")[2].split("x")) // tensor
        fsdp = parts // expert
        if batch % parts == 0 and parts % expert == 0:
            beside = {key: value for key, value in options.items() if key == "--model.remat"}
            beside |= {
                "--topology": larger,
                "--mesh": f"data=1,fsdp={fsdp},tensor={tensor}{experts}",
                "--training.accumulation": str(batch // parts),
            }
            yield written(beside), replace(cut(fsdp, tensor, batch // parts), topology=larger)
    tokens = config.batch.tokens
    for shorter in (tokens // 2, tokens // 4):
        if shorter >= TILE:
            options["--tokens"] = str(shorter)
            answers = min(config.answer_tokens, shorter)
            if answers < config.answer_tokens:
                options["--answer-tokens"] = str(answers)
            config = replace(config, tokens=shorter, answer_tokens=answers)
            yield written(options), config


def describe(decoder: DecoderConfig, tried: list[Attempt]) -> dict[str, Any]:
    """Return the figures of the JSON file; all but `tried` and `would_fit` describe the run that
    was asked for."""
    asked, last = tried[0], tried[-1]
    config, batch, chip = asked.config, asked.config.batch, asked.topology.chip
    examples = batch.examples * batch.accumulation
    classes = config.classes(decoder)
    lengths = [batch.tokens] * examples
    _, base = abstract_decoder(decoder, None, jnp.dtype("bfloat16"), asked.mesh)
    figures = {
        "topology": asked.topology.name,
        "chips": asked.mesh.size,
        "source_of_peaks": chip.source,
        "executed": False,
        "estimate": asked.topology.simulated,
        "model": config.model.path or "the world's base",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(base)),
        "method": config.planned_method.label,
        "mesh": dict(asked.mesh.shape),
        "dtype": config.dtype.name,
        "quantise": config.model.quantise,
        "remat": config.model.remat,
        "attention": config.model.attention,
        "batch": {
            "examples": examples,
            "accumulation": batch.accumulation,
            "tokens": batch.tokens,
            "answer_tokens": batch.answer_tokens,
        },
        "fits": asked.fits,
        "per_chip": {
            "peak_bytes": asked.peak_bytes,
            "available_bytes": asked.available_bytes,
            "hbm_bytes": chip.hbm_bytes,
        },
        "compile_s": asked.seconds,
        "flops": {
            "formula": update_flops(
                decoder, config.lora, lengths, examples * batch.answer_tokens, classes
            )
        },
        "tried": [
            {"changes": list(a.changes), "peak_bytes": a.peak_bytes, "fits": a.fits}
            for a in tried[1:]
        ],
        "would_fit": list(last.changes) if last.fits and last is not asked else None,
        "versions": provenance(config.seed, {})["versions"],
    }
    if asked.step is not None:
        figures["per_chip"] |= asked.step.memory._asdict()
        figures["flops"]["step"] = asked.step.product_flops
        figures["kernels_not_counted"] = asked.step.kernels
    return figures


def table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table."""
    chip, rows = figures["per_chip"], []
    for name, what in (
        ("arguments", "arguments (base, adapter, optimizer, batch)"),
        ("temporaries", "temporaries"),
        ("outputs", "outputs"),
        ("peak_bytes", "peak"),
    ):
        if name in chip:
            share = chip[name] / chip["hbm_bytes"]
            rows.append((what, f"{chip[name] / 1e9:.2f}", f"{100 * share:.1f}"))
    header = ("each chip", "GB", f"% of {chip['hbm_bytes'] / 1e9:.1f} GB")
    return Table(header, tuple(rows), "\n".join(_notes(figures)))


def _notes(figures: dict[str, Any]) -> list[str]:
    batch, flops = figures["batch"], figures["flops"]
    mesh = mesh_words(list(figures["mesh"].values()))
    kind = figures["quantise"]
    held = figures["dtype"] + ("" if kind == "none" else f", base held in {kind}")
    notes = [
        f"{figures['model']} ({figures['parameters'] / 1e9:.2f} billion parameters) on"
        f" {figures['topology']}, mesh {mesh}; {figures['method']}, {held}, remat"
        f" {figures['remat']}, attention {figures['attention']}.",
        f"An update: {batch['examples']} examples of {batch['tokens']} tokens,"
        f" {batch['answer_tokens']} scored, in {batch['accumulation']} micro-batch(es). Compiled in"
        f" {figures['compile_s']:.0f} s, not executed.",
    ]
    if figures["estimate"]:
        notes.append("ESTIMATE: memory by formula; the compiler of these chips is not available.")
    if "step" in flops:
        kernels = "; hand-written kernels not counted" if figures["kernels_not_counted"] else ""
        notes.append(
            f"Operations of an update: {flops['formula']:.3e} by the formula, {flops['step']:.3e}"
            f" in the step's products (what is computed again included{kernels})."
        )
    if figures["fits"]:
        return [*notes, "It FITS."]
    needed, usable = (figures["per_chip"][key] / 1e9 for key in ("peak_bytes", "available_bytes"))
    notes.append(
        f"It DOES NOT FIT: {needed:.2f} GB are needed on each chip, {usable:.2f} GB can be used."
    )
    notes += [
        f"   {' '.join(one['changes'])}: {one['peak_bytes'] / 1e9:.2f} GB,"
        f" {'fits' if one['fits'] else 'does not fit'}"
        for one in figures["tried"]
    ]
    if figures["would_fit"]:
        return [*notes, f"What would make it fit: {' '.join(figures['would_fit'])}"]
    return [*notes, "Nothing that was tried makes it fit: more chips, or a smaller model."]
