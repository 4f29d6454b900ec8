"""Would a preset's training step fit on accelerators that are not here, and how fast could it be?

The very step of train.py is compiled ahead of time, from shapes alone: for TPUs by the TPU's own
compiler (libtpu, extra `tpu`), for GPUs by the CPU's on simulated devices, which is an estimate. No
weight is read and nothing is fetched. Times are floors, from what the compiled program computes and
moves over the chip's published peaks: compiled, not executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogcalib_jax.bench.planning import Attempt, PlanConfig, Planned, plan
from cogcalib_jax.cli.run_config import settle_comparison
from cogcalib_jax.cli.run_folder import refuse_meaningless, require_writable
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import command_line
from cogcalib_jax.inference.evaluate import provenance, write_json
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.parameters import abstract_decoder
from cogcalib_jax.plan.flops import update_flops
from cogcalib_jax.plan.topology import Topology
from cogcalib_jax.plan.work import roofline
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.settings import Role
from cogcalib_jax.sharding import MESH_AXES

LISTED = 8  # collectives that are listed one by one
REFUSED: dict[Role, str] = {
    "adapter": "a step takes as much from any values; say lora.r and lora.target_modules",
    "folder": "no run folder is written; keep the figures with --json FILE",
    "resume": "nothing is run",
}


def bench_plan(argv: list[str], default_preset: Path) -> str:
    """The command `plan`: compile, write --json, and return the table."""
    loaded = load_config(
        PlanConfig,
        spread_mesh(argv),
        prog="bench.py plan",
        description=__doc__ or "",
        default_preset=default_preset,
    )
    refuse_meaningless(loaded, REFUSED, "a benchmark")
    settled = settle_comparison(loaded)
    file = None if settled.json is None else Path(settled.json)
    if file is not None:
        require_writable(file, "--json")
    figures = describe(*plan(settled))
    if file is not None:
        command = command_line("python", "bench.py", "plan", *argv)
        write_json(file, figures | {"command": command})
    return as_text(table(figures))


def spread_mesh(argv: list[str]) -> list[str]:
    """`--mesh fsdp=8,tensor=2` is short for `--mesh.fsdp 8 --mesh.tensor 2`."""
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


def describe(decoder: DecoderConfig, tried: list[Attempt]) -> dict[str, Any]:
    """Everything the JSON file holds; all but `tried` and `would_fit` is of the run asked for."""
    asked, last = tried[0], tried[-1]
    topology, chip = asked.topology, asked.topology.chip
    config, batch, planned = asked.config, asked.config.batch, asked.planned
    examples = batch.examples * batch.accumulation
    flops = update_flops(
        decoder,
        config.lora,
        [batch.tokens] * examples,
        examples * batch.answer_tokens,
        config.classes(decoder),
    )
    figures = {
        "topology": topology.name,
        "chips": asked.mesh.size,
        "source_of_peaks": chip.source,
        "executed": False,
        "estimate": topology.simulated,
        "model": config.model.path or "the world's base",
        "parameters": _parameters(decoder, asked.mesh),
        "method": config.planned_method.label,
        "mesh": dict(asked.mesh.shape),
        "dtype": config.dtype.name,
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
        "flops": {"formula": flops},
        "tried": [
            {"changes": list(a.changes), "peak_bytes": a.peak_bytes, "fits": a.fits}
            for a in tried[1:]
        ],
        "would_fit": list(last.changes) if last.fits and last is not asked else None,
        "versions": provenance(config.seed, {})["versions"],
    }
    if planned is not None:
        figures["per_chip"] |= planned.memory._asdict()
        figures |= _speed(planned, topology, asked.mesh.size, flops, examples * batch.tokens)
        figures["flops"] |= {
            "compiled": planned.work.matmul_flops * asked.mesh.size,
            "xla_loops_once": planned.xla_flops * asked.mesh.size,
        }
    return figures


def _speed(
    planned: Planned, topology: Topology, chips: int, flops: float, tokens: int
) -> dict[str, Any]:
    """What the compiled program moves, and the floor of its time."""
    work = planned.work
    floor = roofline(work, topology.chip)
    largest = sorted(work.collectives, key=lambda one: -one.sent_bytes)[:LISTED]
    return {
        "memory_traffic_bytes": work.memory_bytes,
        "collectives": work.by_kind(),
        "largest_collectives": [
            {
                "kind": one.kind,
                "times": one.times,
                "sent_bytes": one.sent_bytes,
                "result_bytes": one.result_bytes,
                "of": one.of,
            }
            for one in largest
        ],
        "kernels_not_counted": list(work.kernels),
        "loops_counted_once": work.unknown_loops,
        "floor": {
            "compute_s": floor.compute,
            "memory_s": floor.memory,
            "interconnect_s": floor.interconnect,
            "step_s": floor.seconds,
            "bound_by": floor.bound_by,
        },
        "at_most": {
            "tokens_per_s": tokens / floor.seconds,
            "mfu": flops / (chips * topology.chip.peak_flops * floor.seconds),
        },
    }


def _parameters(decoder: DecoderConfig, mesh: Mesh) -> int:
    """Of the base."""
    _, state = abstract_decoder(decoder, None, jnp.dtype("bfloat16"), mesh)
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def table(figures: dict[str, Any]) -> Table:
    """The figures for people."""
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
    batch = figures["batch"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    notes = [
        f"{figures['model']} ({figures['parameters'] / 1e9:.2f} billion parameters) on"
        f" {figures['topology']}, mesh {mesh}; {figures['method']}, {figures['dtype']}, remat"
        f" {figures['remat']}, attention {figures['attention']}.",
        f"An update: {batch['examples']} examples of {batch['tokens']} tokens,"
        f" {batch['answer_tokens']} scored, in {batch['accumulation']} micro-batch(es). Compiled in"
        f" {figures['compile_s']:.0f} s, not executed.",
    ]
    if figures["estimate"]:
        notes.append(
            "ESTIMATE: memory by formula; what is sent, by the CPU's compiler for simulated"
            " devices; of memory traffic only the arguments, read once."
        )
    if "floor" in figures:
        notes += _speed_notes(figures)
    if figures["fits"]:
        notes.append("It FITS.")
        return notes
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
        notes.append(f"What would make it fit: {' '.join(figures['would_fit'])}")
    else:
        notes.append("Nothing that was tried makes it fit: more chips, or a smaller model.")
    return notes


def _speed_notes(figures: dict[str, Any]) -> list[str]:
    flops, floor, most = figures["flops"], figures["floor"], figures["at_most"]
    moved = ", ".join(
        f"{kind} {one['sent_bytes'] / 1e9:.2f} GB in {one['times']:,}"
        for kind, one in figures["collectives"].items()
    )
    notes = [
        f"Operations of an update: {flops['formula']:.3e} by the formula,"
        f" {flops['compiled']:.3e} in the compiled products (what is computed again included),"
        f" {flops['xla_loops_once']:.3e} by XLA's own count, which takes every loop once.",
        f"Each chip sends: {moved or 'nothing'}.",
        f"Floor of a step: compute {1e3 * floor['compute_s']:.1f} ms, memory"
        f" {1e3 * floor['memory_s']:.1f} ms ({figures['memory_traffic_bytes'] / 1e9:.0f} GB),"
        f" interconnect {1e3 * floor['interconnect_s']:.1f} ms: bound by {floor['bound_by']}.",
        f"So at most {most['tokens_per_s']:,.0f} tokens/s and {100 * most['mfu']:.1f} % MFU, were"
        " all three to overlap perfectly.",
    ]
    if figures["kernels_not_counted"]:
        notes.append(f"Not counted: kernels {', '.join(figures['kernels_not_counted'])}.")
    if figures["loops_counted_once"]:
        notes.append(f"{figures['loops_counted_once']} loop(s) of unknown length counted once.")
    return notes
