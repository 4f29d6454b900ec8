"""A training step compiled for a machine that is not here, and what would make it fit there."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogcalib_jax.cli.prepare import say
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.errors import UserError, check
from cogcalib_jax.hf.weights import read_config
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.plan.memory import update_memory
from cogcalib_jax.plan.plan import (
    BatchShape,
    CompiledMemory,
    OutOfMemory,
    compile_step,
    memory_of,
)
from cogcalib_jax.plan.topology import Topology, find_topology, next_larger
from cogcalib_jax.plan.work import Work, read_work
from cogcalib_jax.sharding import batch_parts, make_mesh
from cogcalib_jax.training.step import learning_rate_schedule, make_optimizer
from cogcalib_jax.world.base import base_architecture
from cogcalib_jax.world.corpus import build_tokenizer

SHAPES = Path(__file__).parents[2] / "configs" / "models"
# Padded lengths on accelerators are multiples of this (sharding.length_multiple).
TILE = 8


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
    """where the step does not fit: changes that are compiled, until one makes it fit"""
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
        """An update's examples."""
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
        """Of a comparison the first method with a term, which costs what the others do or more."""
        methods = list(self.resolved_methods().values())
        return next((method for method in methods if method.term != "none"), methods[0])

    def classes(self, decoder: DecoderConfig) -> int:
        """Logits formed at a scored position."""
        return decoder.vocab_size if self.loss.space == "vocab" else self.options

    @property
    def dtype(self) -> jnp.dtype:
        """Of the base: on accelerators, whatever compiles for them."""
        return jnp.dtype("bfloat16" if self.model.dtype == "auto" else self.model.dtype)


def architecture(config: PlanConfig) -> DecoderConfig:
    """The model's shape, from a file: nothing is fetched.

    Raises UserError where none is known under the model's name.
    """
    if config.shape is not None:
        return _shape_file(Path(config.shape))
    name = config.model.path
    if name is None:
        return base_architecture(config.pretrain, build_tokenizer(config.world))
    if Path(name).is_dir():
        return read_config(name)
    kept = {
        json.loads(file.read_text(encoding="utf-8"))["_name_or_path"]: file
        for file in sorted(SHAPES.glob("*.json"))
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


class Planned(NamedTuple):
    """A step as its compiler laid it out."""

    memory: CompiledMemory
    """for simulated devices by formula, as the CPU's compiler lays it out another way"""
    work: Work
    xla_flops: float
    """on each device, by XLA's count, which takes the body of a loop once"""


class Attempt(NamedTuple):
    """A step that was compiled, and whether it fits."""

    changes: tuple[str, ...]
    """options that make it of the run that was asked for"""
    config: PlanConfig
    topology: Topology
    mesh: Mesh
    planned: Planned | None
    """None where the compiler refused the step"""
    peak_bytes: int
    """on each device; where the compiler refused, what it said it would need"""
    available_bytes: int
    """on each device; where the compiler refused, what it said it may use"""
    fits: bool
    seconds: float
    """that compiling took"""


def plan(config: PlanConfig) -> tuple[DecoderConfig, list[Attempt]]:
    """The run as it was asked for and, where that does not fit, changes up to the first that does.

    Raises UserError for a topology, mesh or batch that cannot be.
    """
    # What is here is not looked at: a TPU or GPU that is present stays free for others.
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
            f" {parts} devices (mesh data x fsdp); choose a multiple of {parts}, or a larger"
            " mesh.tensor"
        )
    shown = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    say(f"== Compiling for {topology.name}, mesh {shown}; {' '.join(changes) or 'as asked for'}")
    start, planned, available = time.perf_counter(), None, topology.chip.hbm_bytes
    try:
        planned = _compile(config, decoder, mesh, topology)
    except OutOfMemory as refused:
        peak, available = refused.needed, refused.available
    else:
        peak = planned.memory.peak
    fits = planned is not None and peak <= available
    seconds = time.perf_counter() - start
    say(f"   {peak / 1e9:.2f} GB on each chip {'fit' if fits else 'DO NOT FIT'}")
    return Attempt(changes, config, topology, mesh, planned, peak, available, fits, seconds)


def _compile(config: PlanConfig, decoder: DecoderConfig, mesh: Mesh, topology: Topology) -> Planned:
    training, batch = config.training, config.batch
    # The rate changes no size.
    schedule = learning_rate_schedule(training.learning_rate, training.schedule, 100, 0.06)
    compiled = compile_step(
        decoder,
        mesh,
        lora=config.lora,
        method=config.planned_method,
        loss=config.loss,
        optimizer=make_optimizer(training, schedule),
        shape=batch,
        dtype=config.dtype,
        remat=config.model.remat,
        attention=config.model.attention,
    )
    memory = memory_of(compiled)
    if topology.simulated:
        estimate = update_memory(
            decoder,
            mesh,
            lora=config.lora,
            shape=batch,
            dtype=config.dtype,
            classes=config.classes(decoder),
            remat=config.model.remat,
            attention=config.model.attention,
        )
        beside = estimate.total - estimate.base - estimate.adapter // 2
        memory = CompiledMemory(memory.arguments, beside, memory.outputs, estimate.total)
    work = read_work(compiled.as_text())
    if topology.simulated:
        work = _as_a_gpu_moves(work, memory.arguments, config.dtype)
    cost = compiled.cost_analysis() or {}
    return Planned(memory, work, cost.get("flops", 0.0))


def _as_a_gpu_moves(work: Work, arguments: int, dtype: jnp.dtype) -> Work:
    """What a CPU's program tells of a GPU's: a floor of memory traffic, and what is sent.

    The CPU's fusions say nothing of a GPU's traffic, but what a step is given it reads once. And
    the CPU carries bfloat16 as float32, so that half of what it sends is sent: for Llama-3-70B on
    8 devices 35 + 38 GB were left, where a TPU's compiler sends 38 + 34 GB.
    """
    share = 0.5 if dtype == jnp.bfloat16 else 1.0
    sent = tuple(replace(one, sent_bytes=share * one.sent_bytes) for one in work.collectives)
    return replace(work, memory_bytes=float(arguments), collectives=sent)


def changes_that_save(
    config: PlanConfig, mesh: Mesh
) -> Iterator[tuple[tuple[str, ...], PlanConfig]]:
    """What would take less memory, each beside those before it, from what costs a run least to
    what costs it most."""
    options: dict[str, str] = {}

    def written() -> tuple[str, ...]:
        return tuple(f"{option} {value}" for option, value in options.items())

    if config.model.remat != "layer":
        options["--model.remat"] = "layer"
        config = replace(config, model=replace(config.model, remat="layer"))
        yield written(), config
    # No copies of the model, then one example at a time, then several devices to an example.
    batch, asked = config.training.batch_size, tuple(mesh.shape.values())
    seen = {(asked, config.training.accumulation)}
    for tensor in dict.fromkeys((asked[2], 4, 8)):
        if tensor < asked[2] or mesh.size % tensor:
            continue
        fsdp = mesh.size // tensor
        for accumulation in (config.training.accumulation, batch // fsdp):
            cut = ((1, fsdp, tensor), accumulation)
            if cut in seen or accumulation == 0 or batch % (accumulation * fsdp):
                continue
            seen.add(cut)
            if cut[0] != asked:
                options["--mesh"] = f"data=1,fsdp={fsdp},tensor={tensor}"
            options["--training.accumulation"] = str(accumulation)
            config = _cut(config, fsdp, tensor, accumulation)
            yield written(), config
    larger = next_larger(config.topology)
    if larger is not None:
        tensor = asked[2]
        fsdp = math.prod(int(side) for side in larger.partition(":")[2].split("x")) // tensor
        if batch % fsdp == 0:
            beside = {key: value for key, value in options.items() if key == "--model.remat"}
            beside |= {"--topology": larger, "--mesh": f"data=1,fsdp={fsdp},tensor={tensor}"}
            accumulation = batch // fsdp
            beside["--training.accumulation"] = str(accumulation)
            words = tuple(f"{option} {value}" for option, value in beside.items())
            yield words, _cut(replace(config, topology=larger), fsdp, tensor, accumulation)
    tokens = config.batch.tokens
    for shorter in (tokens // 2, tokens // 4):
        if shorter >= TILE:
            options["--tokens"] = str(shorter)
            answers = min(config.answer_tokens, shorter)
            if answers < config.answer_tokens:
                options["--answer-tokens"] = str(answers)
            config = replace(config, tokens=shorter, answer_tokens=answers)
            yield written(), config


def _cut(config: PlanConfig, fsdp: int, tensor: int, accumulation: int) -> PlanConfig:
    """`config` on another mesh without copies of the model."""
    return replace(
        config,
        mesh=replace(config.mesh, data=1, fsdp=fsdp, tensor=tensor),
        training=replace(config.training, accumulation=accumulation),
    )
