"""The gate's NLL as a detector of knowledge, and for how long it is one.

    cogcalib study detector --config world --seeds 0,1

Before fine-tuning and at every validation the gate's NLL is recorded for questions that are trained
on and for validation questions, with the threshold fitted at that moment. It is judged as a
detector of what the base knows (SliCK categories and, in the world, how often the corpus states a
fact) and of right answers. With `known_by` right answers in that form stand in SliCK's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cogcalib_jax.baselines.registry import BASELINES, is_baseline
from cogcalib_jax.cli.method_run import SCORES, Run, known_rows, store_known
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import require_folder, require_writable, resumable
from cogcalib_jax.cli.train import open_run
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.sources import DEFAULT_PRESET, find_preset
from cogcalib_jax.console import say
from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.prompts import CLEAN
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError, check, plain_text
from cogcalib_jax.inference.evaluate import data_hash, provenance, write_json
from cogcalib_jax.inference.forward import completion_logprob, example_losses
from cogcalib_jax.inference.predict import SplitPass
from cogcalib_jax.inference.predictions import write_rows
from cogcalib_jax.method.config import LossConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.settings import style_identity
from cogcalib_jax.studies import study_command
from cogcalib_jax.studies.detector_report import write_results
from cogcalib_jax.studies.detector_results import (
    HELD_OUT,
    KNOWN,
    LABELS,
    NUMBERS,
    PROVENANCE,
    TRAINED,
    UNKNOWN,
    tidy_rows,
)
from cogcalib_jax.studies.suite import Cell, advice, as_run, listing, run_cells
from cogcalib_jax.training.finetune import Trainer, Watch, finetune, style_phase
from cogcalib_jax.training.log import Belief, Followed
from cogcalib_jax.training.storage import Journal

# SliCK: Gekhman et al., "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?", EMNLP
# 2024 (arXiv 2405.05904): section 3, figure 2a, and appendix C for the estimate of P_Correct. It is
# for analysis; no loss and no gate uses it. What differs: docs/results/world_detector.md.
# 10 prompts of 4 solved questions, a greedy answer and 16 samples each:
PROMPTS = 10
SHOTS = 4
SAMPLES = 16
TEMPERATURE = 0.5
MAX_BUCKETS = 4
"""padded lengths of all prompts together"""


@dataclass(frozen=True)
class DetectorConfig(RunConfig):
    """A run whose gate is watched while it trains."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """0 to 4 for developing; 100 to 104, once, for publishing what was frozen"""
    methods: tuple[str, ...] = ("sft",)
    """losses that are trained and watched, each from the same start, named as in compare"""
    shots: int = SHOTS
    """solved questions before each one in SliCK's prompts (the world's have none)"""
    folder: str | None = None
    """folder of runs and results; unset: runs/detector-NAME after the preset's file"""
    out: str | None = None
    """Markdown file for a copy of the tables; unset: in the folder only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.seeds) > 0, "seeds", "must name at least one seed")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", "must name each seed once")
        check(self.shots >= 1, "shots", "must be at least 1")
        check(
            len(self.methods) > 0 and not any(map(is_baseline, self.methods)),
            "methods",
            f"must name at least one loss (not {', '.join(BASELINES.names())})",
        )
        check(
            self.composition.known_share is None,
            "composition.known_share",
            "must be unset: the fine-tuning rows are watched as they are",
        )
        check(self.training.probe_rows > 0, "training.probe_rows", "must be above 0 to watch rows")


class WatchedSeed(Cell):
    """One seed, finished when its numbers are written."""

    @property
    def title(self) -> str:
        return f"seed {self.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / NUMBERS).is_file()


def detector(argv: list[str]) -> None:
    """Watch every seed, write the results and print them.

    Raises:
        UserError: mistakes, before anything runs; and failed seeds, after the results of the others
            were written.
    """
    loaded = load_config(
        DetectorConfig,
        argv,
        prog=study_command("detector"),
        description=__doc__,
        default_preset=find_preset(DEFAULT_PRESET),
    )
    config, preset = loaded.config, loaded.preset
    folder = Path(config.folder) if config.folder else Path("runs") / f"detector-{preset.stem}"
    planned = []
    for seed in config.seeds:
        place = folder / f"seed-{seed}"
        own = {"seed": seed, "compare": config.methods, "run_dir": str(place), "dry_run": False}
        run = as_run(config, **own)
        # The config in the folder repeats its training.
        again = ("--config", str(place / "config.yaml"))
        planned.append(WatchedSeed("as in the preset", seed, run, place, again))
    if config.dry_run:
        print(plain_text(listing(planned)))
        return
    require_folder(folder, "--folder")
    if config.out is not None:
        require_writable(Path(config.out), "--out")
    command = study_command("detector", *argv)
    with resumable(folder, command, begun="."):
        failed = run_cells(planned, folder, partial(watch_seed, shots=config.shots))
    done = {cell.seed: cell.folder for cell in planned if cell not in failed}
    if not done:
        raise UserError(f"{folder}: every seed failed; the first: {failed[0].folder}/failure.txt")
    methods = tuple(planned[0].config.resolved_methods())
    text = write_results(folder, command, done, methods, config.out and Path(config.out))
    if failed:
        raise UserError(f"{folder / 'results.md'} lacks seeds that failed: {advice(failed)}")
    print(plain_text(text))
    print(f"Tables and pictures: {folder / 'results.md'}, {folder / 'results.jsonl'}")


def watch_seed(cell: Cell, config: RunConfig, style: Path | None, shots: int = SHOTS) -> None:
    """Train every method of `config` and record the gate's NLL; `style` is not used."""
    run = open_run(config, "detector", list(cell.argv))
    trainer = run.trainer
    rows = {
        TRAINED: trainer.splits["train"][: config.training.probe_rows],
        HELD_OUT: trainer.splits["validation"],
    }
    write_labels(run, rows, shots)
    say(f"== Style adaptation: {trainer.style_steps} updates of plain cross-entropy")
    start = style_phase(
        trainer, run.assembled.lora, run.folder / "style", style_identity(run.config)
    )
    store_known(run, start)
    methods = run.config.resolved_methods()
    for key, method in methods.items():
        say(f"== {key}, watched: {trainer.total_steps} updates")
        folder = run.folder / key
        watch = Watch(Journal(folder / SCORES), partial(scores, trainer, run.folder))
        finetune(trainer, method, start, run.folder / "style", folder, watch)
    hashes = {data: data_hash(encoded) for data, encoded in rows.items()}
    write_json(run.folder / PROVENANCE, provenance(cell.seed, hashes))
    # Last: it marks the seed as finished.
    write_rows(run.folder / NUMBERS, tidy_rows(cell.seed, run.folder, tuple(methods)))


def write_labels(run: Run, rows: Mapping[str, EncodedSplit], shots: int) -> None:
    """Write what the base knows of each question: a line with its SliCK category and exposure.

    With `known_by`, which costs a small part of 40 solved questions a row, there is no category.
    """
    if (run.folder / LABELS).is_file():
        return
    slick = None if run.known else SlickScorer(run, shots)
    if slick is not None:
        say("== SliCK categories, before any training")
    lines: list[dict[str, Any]] = []
    for data, encoded in rows.items():
        found = None if slick is None else slick(run.assembled.lora, encoded)
        for i, row in enumerate(encoded):
            stated = {name: row.example.extra.get(name) for name in ("known", "exposure")}
            lines.append({"data": data, "id": row.id, **stated})
            if found is not None:
                lines[-1] |= {
                    "slick": str(found.category[i]),
                    "greedy": float(found.greedy[i].mean()),
                    "sampled": float(found.sampled[i].mean()),
                }
    write_rows(run.folder / LABELS, lines)


def scores(
    trainer: Trainer, folder: Path, lora: nnx.State, beliefs: Sequence[tuple[Followed, Belief]]
) -> Iterator[dict[str, Any]]:
    """Yield NLL, correctness and the gate's decision for every question that is followed, with the
    threshold of this moment; and what the run in `folder` stored of `known_by`."""
    threshold = trainer.refit(lora).threshold
    for one, belief in beliefs:
        nll, correct = trainer.nll(lora, one.encoded)
        yield {
            "data": one.data,
            "threshold": threshold,
            "nll": nll.tolist(),
            "confidence": belief.confidence.tolist(),
            "correct": correct.astype(int).tolist(),
            "called_known": (nll <= threshold).astype(int).tolist(),
            **from_main(partial(known_rows, folder, one)),
        }


def slick_categories(greedy: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """Return the category of each question, `[rows]` of `CATEGORIES` (figure 2a).

    Args:
        greedy: `[rows, prompts]` bool, the greedy answer is right.
        sampled: `[rows]` bool, an answer sampled at `TEMPERATURE` under any prompt is right.

    Raises:
        ValueError: other shapes.
    """
    greedy, sampled = np.asarray(greedy, bool), np.asarray(sampled, bool)
    if greedy.ndim != 2 or greedy.shape[1] == 0 or sampled.shape != greedy.shape[:1]:
        raise ValueError(
            f"shapes are {greedy.shape} and {sampled.shape}; expected [rows, prompts] and [rows]"
        )
    cases = [greedy.all(1), greedy.any(1), sampled]
    return np.select(cases, KNOWN, default=UNKNOWN)


def would_be_sampled(probability: np.ndarray, samples: int = SAMPLES) -> np.ndarray:
    """Decide from exact probabilities if samples would hold the right answer, `[rows]` bool.

    `samples` answers a prompt hold it with probability 1 - prod_j (1 - p_j)^samples. That is above
    0 for every answer, so the line is drawn at one half, the outcome of most draws.

    Args:
        probability: `[rows, prompts]`, of the right answer at `TEMPERATURE`.
        samples: answers drawn for each prompt.
    """
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):  # log of 0 if an answer is certain
        log_none = samples * np.log1p(-np.minimum(p, 1.0)).sum(1)
    return -np.expm1(log_none) >= 0.5


@dataclass(frozen=True)
class Slick:
    """A model's answers to `n` questions."""

    greedy: np.ndarray
    """[n, prompts] bool: the greedy answer is right"""
    sampled: np.ndarray
    """[n, prompts]: P_Correct at `TEMPERATURE`, exact or the share of right samples"""
    category: np.ndarray
    """[n] of `CATEGORIES`"""


class SlickScorer:
    """A function from parameters and questions to categories; compiled once a padded length."""

    def __init__(self, run: Run, shots: int = SHOTS):
        """shots: solved questions before each one; the world's prompts have none."""
        self._run = run
        self._shots = shots
        self._answers = run.trainer.answers
        self._pass = SplitPass(run.assembled.model, run.assembled.mesh, _greedy_and_sampled)

    def __call__(self, lora: nnx.State, rows: EncodedSplit) -> Slick:
        """Return the answers and categories of `rows`.

        Raises:
            UserError: a question with its solved ones does not fit the model.
        """
        prompts = list(prompts_of(self._run, rows, self._shots))
        # The same for all prompts: each padded length compiles a pass of its own.
        buckets = length_buckets(np.concatenate([asked.lengths for asked in prompts]), MAX_BUCKETS)
        answered = [
            self._generated(lora, asked, number)
            if rows.is_open
            else self._exact(lora, asked, buckets)
            for number, asked in enumerate(prompts)
        ]
        greedy, sampled = (np.stack(values, 1) for values in zip(*answered, strict=True))
        ever = (sampled > 0).any(1) if rows.is_open else would_be_sampled(sampled)
        return Slick(greedy, sampled, slick_categories(greedy, ever))

    def _generated(
        self, lora: nnx.State, asked: EncodedSplit, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        seed = int(np.random.SeedSequence([self._run.config.seed, number]).generate_state(1)[0])
        return self._answers.answers(lora, asked).exact_match, self._answers.sampled_matches(
            lora, asked, temperature=TEMPERATURE, samples=SAMPLES, seed=seed
        )

    def _exact(
        self, lora: nnx.State, asked: EncodedSplit, buckets: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        batches = eval_batches(asked, self._run.config.evaluation.batch_size, buckets)
        rows, (right, logprob) = self._pass(lora, batches, TEMPERATURE)
        order = np.argsort(rows)
        return right[order] > 0, np.exp(logprob[order].astype(np.float64))


def _greedy_and_sampled(
    decoder: Decoder, batch: Batch, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return if the greedy answer is right, and the log-probability of the right one, `[rows]`.

    A sampled answer is drawn token by token, so its probability is the product of its tokens' at
    the temperature.
    """
    right = example_losses(decoder, batch, LossConfig(space="vocab")).correct
    return right, completion_logprob(decoder, batch, temperature)


def prompts_of(run: Run, rows: EncodedSplit, count: int = SHOTS) -> Iterator[EncodedSplit]:
    """Yield `rows` under one prompt after the other, each with `count` solved questions.

    Tasks that make their rows have wordings of their own, without solved questions. Others draw the
    solved ones anew for every prompt from the style split, which no method trains on after style
    adaptation and none is scored on.

    Raises:
        UserError: too few solved questions, or no room for them in the model's context.
    """
    examples = [row.example for row in rows]
    task = TASKS[run.config.data.task]
    if isinstance(task, MadeTask):
        for asked in zip(*map(task.wordings, examples), strict=True):
            yield encode_split("SliCK", asked, run.tokenizer, run.config.data)[0]
        return
    config, pool = _with_shots(run.config.data, count), run.trainer.splits["style"]
    if len(pool) < count:
        raise UserError(
            f"detector: the style split has {len(pool)} questions; expected at least {count}, to be"
            " shown before each one. Raise data.style_fraction, or lower shots"
        )
    context = run.assembled.decoder.config.max_position_embeddings
    new = run.config.evaluation.open.max_new_tokens if rows.is_open else 0
    for number in range(PROMPTS):
        rng = np.random.default_rng([run.config.seed, number])
        shots = [pool[i].example for i in rng.choice(len(pool), count, replace=False)]
        asked, _ = encode_split("SliCK", examples, run.tokenizer, config, shots)
        longest = max(len(row.prompt_ids) for row in asked) if rows.is_open else asked.lengths.max()
        if longest + new > context:
            raise UserError(
                f"detector: a prompt with {count} solved questions is {longest} tokens long, too"
                f" long with its answer for the model's context of {context}; lower shots"
            )
        yield asked


def _with_shots(config: DataConfig, count: int) -> DataConfig:
    """The task's own prompt with solved questions; a published protocol's has none."""
    room = config.max_length * (count + 1)
    return replace(config, few_shot=count, protocol=CLEAN, max_length=room, on_bad_row="error")
