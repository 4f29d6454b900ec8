"""SliCK: categories of what a model knows, from its answers under several prompts.

Gekhman et al., "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?", EMNLP 2024
(arXiv 2405.05904): section 3, figure 2a, and appendix C for the estimate of P_Correct. It is for
analysis; no loss and no gate uses it. What differs from the paper: docs/results/world_detector.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import nnx

from cogcalib_jax.cli.method_run import Run
from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.prompts import CLEAN
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.forward import completion_logprob, example_losses
from cogcalib_jax.inference.passes import SplitPass
from cogcalib_jax.method.config import LossConfig
from cogcalib_jax.models.decoder import Decoder

# Section 3 and appendix C: 10 prompts of 4 solved questions, a greedy answer and 16 samples each.
PROMPTS = 10
SHOTS = 4
SAMPLES = 16
TEMPERATURE = 0.5
MAX_BUCKETS = 4
"""padded lengths of all prompts together"""

UNKNOWN = "Unknown"
KNOWN = ("HighlyKnown", "MaybeKnown", "WeaklyKnown")
CATEGORIES = (*KNOWN, UNKNOWN)


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
