"""A LoRA training step here and in transformers + PEFT: same weights, rows, adapter and optimiser.

    python benchmarks/peers/train_hf_peft.py --model.path MODEL --data.task openbookqa \
        --data.path ROWS [--dtype bfloat16] [--rounds 8] [--json FILE]

Two peers: *usual* (batches drawn at random, padded to their longest row, logits at every position)
and *tuned* (our batches of like lengths, logits at the answers only). Each side is a process of its
own, so that its peak memory is its own, and takes one step per round in an order drawn anew. First
all sides train on the same batches: their losses must agree before anything is timed. --dtype is
that of the base, on all sides; the peers keep the adapter in float32, as we do (PEFT's default).

MODEL is a folder with weights and tokenizer; any random ones will do
(benchmarks/make_random_checkpoint.py). Every other option is one of `train.py`. Needs the packages
of benchmarks/peers/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.bench.command import RESAMPLES
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.data.stream import TrainStream
from cogcalib_jax.errors import UserError, run_main

AGREEING_STEPS = 4
# Of the loss, relative, after as many updates. bfloat16 keeps 8 bits, and the sides round at
# different places.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
SIDES = ("ours", "tuned", "usual")


def ours(link: Connection, config: RunConfig, batches: list[Batch], adapter: Path) -> None:
    """Our step, jitted; the adapter it starts from is written for the peers."""
    import jax

    from cogcalib_jax.cli.prepare import assemble_model, make_trainable
    from cogcalib_jax.hf.adapter import save_adapter
    from cogcalib_jax.sharding import shard_batch
    from cogcalib_jax.training.loop import jit_step
    from cogcalib_jax.training.step import init_state, learning_rate_schedule, make_optimizer

    imported = peak_bytes()
    assembled = assemble_model(config, config.model.path)
    loaded = peak_bytes()
    save_adapter(adapter, assembled.decoder, config.model.path)
    trainable = make_trainable(config, assembled)
    (method,) = config.resolved_methods().values()
    schedule = learning_rate_schedule(config.training.learning_rate, "constant", 1, 0.0)
    step = jit_step(trainable, schedule, assembled.lora)
    optimizer = make_optimizer(config.training, schedule)
    gated = (trainable.scalar(1.0), jax.tree.map(trainable.scalar, method.build()))
    key = jax.random.key(0)
    state = init_state(assembled.lora, optimizer, assembled.mesh)

    def take(batch: Batch) -> float:
        nonlocal state
        whole = jax.tree.map(lambda x: x[None], (batch, np.zeros(len(batch.row), np.float32)))
        placed = shard_batch(assembled.mesh, whole, batch_axis=1)
        state, metrics = step(state, trainable.model.frozen, *placed, *gated, key)
        return float(metrics.loss)

    for batch in {batch.input_ids.shape: batch for batch in batches}.values():
        take(batch)  # compiled once a padded length, which is said and not part of a step
    state = init_state(assembled.lora, optimizer, assembled.mesh)
    serve(link, take, batches, {"imports": imported, "load": loaded, "compile": peak_bytes()})


def peer(
    link: Connection, config: RunConfig, batches: list[Batch], adapter: Path, how: str
) -> None:
    """transformers + PEFT: a plain PyTorch loop, full logits (`usual`) or not (`tuned`)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    imported = peak_bytes()
    dtype = getattr(torch, config.model.dtype)
    base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=dtype)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.training.learning_rate, weight_decay=0.0)

    def loss_of(batch: Batch) -> torch.Tensor:
        """Mean over examples of the mean over an answer's tokens."""
        width = int(batch.lengths.max())
        ids = torch.tensor(batch.input_ids[:, :width], dtype=torch.long)
        mask = (torch.arange(width) < torch.tensor(batch.lengths)[:, None]).long()
        targets = torch.tensor(batch.targets, dtype=torch.long)
        rows = torch.arange(len(ids))[:, None]
        causal = model.base_model.model
        if how == "usual":
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
            labels = torch.full_like(ids, -100)
            real = torch.tensor(batch.loss_mask) > 0
            labels[rows.expand_as(real)[real], torch.tensor(batch.positions)[real].long()] = (
                targets[real]
            )
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            )
            nll = nll.view(ids.shape)[rows, torch.tensor(batch.positions).long()]
        else:
            hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = causal.lm_head(hidden[rows, torch.tensor(batch.positions).long()]).float()
            nll = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), targets, reduction="none"
            )
        weights = torch.tensor(batch.loss_mask)
        return ((nll * weights).sum(-1) / weights.sum(-1)).mean()

    def take(batch: Batch) -> float:
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.training.clip_norm)
        optimizer.step()
        return float(loss.detach())

    serve(link, take, batches, {"imports": imported, "load": peak_bytes()})


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(link: Connection, take: Any, batches: list[Batch], peaks: dict[str, int]) -> None:
    """Take the steps the parent asks for, by number; None ends with the peak memory after each
    phase, in bytes."""
    link.send("ready")
    while (number := link.recv()) is not None:
        start = time.perf_counter()
        loss = take(batches[number])
        link.send((loss, time.perf_counter() - start))
    link.send(peaks | {"steps": peak_bytes()})


def prepare(config: RunConfig, rounds: int) -> dict[str, list[Batch]]:
    """Side -> its batches: first those all sides share, then its own."""
    from cogcalib_jax.cli.questions import encode_splits
    from cogcalib_jax.hf.tokenizer import load_base_tokenizer

    train = encode_splits(config.data, load_base_tokenizer(config.model.path), config.seed)["train"]
    size = config.training.batch_size
    steps = len(train) // size
    stream = TrainStream(train, config.seed, size)
    # Rounds spread over the epoch: batches of all lengths.
    chosen = np.random.default_rng(config.seed).choice(
        steps, AGREEING_STEPS + rounds, replace=False
    )
    alike = [stream.batch(int(step)) for step in chosen]
    order = np.random.default_rng(config.seed).permutation(len(train))
    mixed = TrainStream(train, config.seed, len(train)).batch(0)
    usual = alike[:AGREEING_STEPS]
    for i in range(rounds):
        rows = order[i * size : (i + 1) * size]
        fields = (None if field is None else np.asarray(field)[rows] for field in mixed)
        usual.append(Batch(*fields))
    return {"ours": alike, "tuned": alike, "usual": usual}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dtype", choices=list(TOLERANCES), default="float32")
    parser.add_argument("--json", type=Path)
    own, rest = parser.parse_known_args(argv)
    preset = Path(__file__).parents[2] / "configs" / "stories260k_openbookqa.yaml"
    start = ["--method.name", "sft", "--model.dtype", own.dtype]
    if not any(option.startswith("--lora.target") for option in rest):
        start += ["--lora.target-modules", "all-linear"]
    config = load_config(
        RunConfig, [*start, *rest], prog="train_hf_peft.py", description="", default_preset=preset
    ).config
    batches = prepare(config, own.rounds)
    context = multiprocessing.get_context("spawn")
    links, processes = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "adapter"
        for side in SIDES:
            links[side], theirs = context.Pipe()
            target, more = (ours, ()) if side == "ours" else (peer, (side,))
            arguments = (theirs, config, batches[side], adapter, *more)
            processes.append(context.Process(target=target, args=arguments, daemon=True))
            begun = time.perf_counter()
            processes[-1].start()
            links[side].recv()  # ready: the peers read the adapter that our side writes
            print(
                f"== {side}: ready after {time.perf_counter() - begun:.0f} s (loading"
                + (", compiling)" if side == "ours" else ")"),
                file=sys.stderr,
                flush=True,
            )
        tolerance = TOLERANCES[own.dtype]
        figures = measure(links, own.rounds, config.training.batch_size, tolerance)
        for process in processes:
            process.join()
    print(text(figures))
    if own.json is not None:
        own.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(
    links: dict[str, Connection], rounds: int, batch_size: int, tolerance: float
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(AGREEING_STEPS + rounds):
        for place in rng.permutation(len(SIDES)):
            side = SIDES[place]
            links[side].send(number)
            loss, took = links[side].recv()
            losses[side].append(loss)
            seconds[side].append(took)
        line = ", ".join(
            f"{side} {losses[side][-1]:.6f} in {seconds[side][-1]:.1f} s" for side in SIDES
        )
        print(f"   step {number + 1}: loss {line}", file=sys.stderr, flush=True)
    for side in SIDES:
        ours_then, theirs = losses["ours"][:AGREEING_STEPS], losses[side][:AGREEING_STEPS]
        if not np.allclose(ours_then, theirs, rtol=tolerance, atol=0):
            raise UserError(f"peers: losses differ: ours {ours_then}, {side} {theirs}")
    for link in links.values():
        link.send(None)
    memory = {side: links[side].recv() for side in SIDES}
    timed = {side: np.array(times[AGREEING_STEPS:]) for side, times in seconds.items()}
    draws = rng.integers(rounds, size=(RESAMPLES, rounds))
    figures: dict[str, Any] = {"losses": {s: v[:AGREEING_STEPS] for s, v in losses.items()}}
    for side in SIDES:
        ratios = timed[side][draws].sum(-1) / timed["ours"][draws].sum(-1)
        figures[side] = {
            "examples_per_s": batch_size * rounds / timed[side].sum(),
            "ours_times_as_fast": timed[side].sum() / timed["ours"].sum(),
            "ours_times_as_fast_ci95": np.quantile(ratios, [0.025, 0.975]).tolist(),
            "peak_bytes": memory[side]["steps"],
            "peak_bytes_after": memory[side],
            "our_share_of_peak": memory["ours"]["steps"] / memory[side]["steps"],
            "seconds": timed[side].tolist(),
        }
    return figures


def text(figures: dict[str, Any]) -> str:
    lines = [f"{'':8}{'examples/s':>12}{'ours is faster by':>26}{'peak GB':>10}{'ours / its':>12}"]
    for side in SIDES:
        one = figures[side]
        low, high = one["ours_times_as_fast_ci95"]
        faster = f"{one['ours_times_as_fast']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(
            f"{side:8}{one['examples_per_s']:12.2f}{faster:>26}{one['peak_bytes'] / 1e9:10.2f}"
            f"{one['our_share_of_peak']:12.2f}"
        )
    for side in SIDES:
        peaks = figures[side]["peak_bytes_after"].items()
        lines.append(f"{side}, peak GB after " + ", ".join(f"{k} {v / 1e9:.2f}" for k, v in peaks))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_main(main))
