"""What a model knows before it is fine-tuned: SliCK categories of questions, several prompts each.

Definition and numbers: `studies/slick_rule.py`. Which prompts: of the world, the texts in which a
fact can stand before its value, all of which its corpus holds (two forms of question, three
statements); of other tasks, solved questions of the style split drawn anew for every prompt, since
that split is neither trained on by a method nor scored. How answers are judged: open ones are
generated and matched exactly, as published; of questions with options the greedy answer and the
probability of the right one at temperature 0.5 are computed exactly, over the whole vocabulary, in
place of 16 samples from its 40 likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import nnx

from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.known_tasks import TASKS, MadeTask
from cogcalib_jax.data.protocols import CLEAN
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.forward import completion_logprob, example_losses
from cogcalib_jax.inference.passes import SplitPass
from cogcalib_jax.method.config import LossConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.runs.method_run import Run
from cogcalib_jax.studies.slick_rule import (
    PROMPTS,
    SAMPLES,
    SHOTS,
    TEMPERATURE,
    slick_categories,
    would_be_sampled,
)
from cogcalib_jax.world.config import RELATIONS

MAX_BUCKETS = 4
"""padded lengths of all prompts together"""


@dataclass(frozen=True)
class Slick:
    """What a model said to each of `n` questions."""

    greedy: np.ndarray
    """[n, prompts] bool: the greedy answer is right"""
    sampled: np.ndarray
    """[n, prompts]: P_correct at `TEMPERATURE`, exact or the share of right samples"""
    category: np.ndarray
    """[n] of `CATEGORIES`"""


class SlickScorer:
    """Categories of a run's questions under LoRA parameters; compiled once a padded length."""

    def __init__(self, run: Run, shots: int = SHOTS):
        """shots: solved questions before each one; the world's prompts have none."""
        self._run = run
        self._shots = shots
        self._answers = run.trainer.answers
        self._pass = SplitPass(run.assembled.model, run.assembled.mesh, _greedy_and_sampled)

    def __call__(self, lora: nnx.State, rows: EncodedSplit) -> Slick:
        """Raises UserError where a question with its solved ones does not fit the model."""
        prompts = list(prompts_of(self._run, rows, self._shots))
        # The same for all prompts: each padded length compiles a pass of its own.
        buckets = length_buckets(np.concatenate([asked.lengths for asked in prompts]), MAX_BUCKETS)
        greedy, sampled = [], []
        for number, asked in enumerate(prompts):
            if rows.is_open:
                right, share = self._generated(lora, asked, number)
            else:
                right, share = self._exact(lora, asked, buckets)
            greedy.append(right)
            sampled.append(share)
        chosen, probability = np.stack(greedy, 1), np.stack(sampled, 1)
        ever = (probability > 0).any(1) if rows.is_open else would_be_sampled(probability)
        return Slick(chosen, probability, slick_categories(chosen, ever))

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
    """Whether greedy decoding gives the right answer, and its log-probability when sampled.

    A sampled answer is drawn token by token, so its probability is the product of its tokens' at
    the temperature.
    """
    right = example_losses(decoder, batch, LossConfig(space="vocab")).correct
    return right, completion_logprob(decoder, batch, temperature)


def prompts_of(run: Run, rows: EncodedSplit, count: int = SHOTS) -> Iterator[EncodedSplit]:
    """`rows` asked anew under one prompt after the other; count: of solved questions.

    Raises UserError where there are too few to show, or the model has no room for them.
    """
    examples = [row.example for row in rows]
    if isinstance(TASKS[run.config.data.task], MadeTask):
        for asked in zip(*map(wordings, examples), strict=True):
            yield encode_split("SliCK", asked, run.tokenizer, run.config.data)[0]
        return
    config, pool = _with_shots(run.config.data, count), run.trainer.splits["style"]
    if len(pool) < count:
        raise UserError(
            f"detector: the style split has {len(pool)} questions, and {count} solved ones are"
            " to be shown before each; raise data.style_fraction, or lower shots"
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
                f"detector: with {count} solved questions a prompt takes {longest} tokens, and with"
                f" its answer more than the model's context of {context}; lower shots"
            )
        yield asked


def wordings(example: Example) -> tuple[Example, ...]:
    """A fact of the world in each of the texts that its corpus may hold before the value."""
    relation = RELATIONS[example.extra["relation"]]
    texts = (relation.form_a, relation.form_b, *relation.statements)
    return tuple(
        replace(example, question=text.format(name=example.group, value="").rstrip())
        for text in texts
    )


def _with_shots(config: DataConfig, count: int) -> DataConfig:
    """Prompts of the task with solved questions; a published protocol's prompt has none."""
    room = config.max_length * (count + 1)
    return replace(config, few_shot=count, protocol=CLEAN, max_length=room, on_bad_row="error")
