"""P(True): a model's belief that its own answer is right, asked of itself.

Kadavath et al. 2022, "Language Models (Mostly) Know What They Know", section 4: the question, the
proposed answer, and a choice between (A) True and (B) False. Written here as the project writes
every choice between options (prompt `letters`; `chat` where the question was asked in a chat):

    Question: {question}
    Proposed answer: {answer}
    Is the proposed answer:
    A. True
    B. False
    Answer:
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.encoding import Encoder
from cogcalib_jax.data.example import BadRow, Encoded, EncodedSplit, Example
from cogcalib_jax.data.prompts import PROMPTS, chat_template
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.predict import Predictor

CHOICES = ("True", "False")
# Tokens allowed beyond the question's own: the words around it even for a tokenizer of characters,
# and an answer whose text takes several times the tokens it was generated with (stray bytes).
_WORDS = 160
_TOKENS_PER_TOKEN = 4


class PTrue:
    """Probability of True over {True, False} for proposed answers, by the model's option scores."""

    def __init__(self, data: DataConfig, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int):
        """data: how the questions themselves are asked; it is asked without solved ones before it.

        Raises UserError where the tokenizer cannot tell the two options apart.
        """
        template = PROMPTS["letters"]
        if data.prompt == CHAT:
            template = chat_template(template, tokenizer, ())
        longest = data.max_length + _TOKENS_PER_TOKEN * max_new_tokens + _WORDS
        self._encoder = Encoder(
            tokenizer, replace(data, max_length=longest, few_shot=0), template, ()
        )
        (probe,) = self._encoder.encode([proposal(Example("probe", "question", (), 0), "answer")])
        if isinstance(probe, BadRow):
            raise UserError(
                f"P(True) cannot be asked with tokenizer {tokenizer.name_or_path} ({probe}); leave"
                " it out with --evaluation.open.p-true false"
            )

    def __call__(
        self,
        predictor: Predictor,
        lora: nnx.State,
        encoded: Sequence[Encoded],
        proposed: Sequence[str],
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """P(True) `[n]` of each question's proposed answer, NaN where it cannot be asked, and a
        note on those."""
        questions = [proposal(e.example, text) for e, text in zip(encoded, proposed, strict=True)]
        asked: dict[int, Encoded] = {}
        refused: list[BadRow] = []
        for row, result in enumerate(self._encoder.encode(questions)):
            if isinstance(result, BadRow):
                refused.append(result)
            else:
                asked[row] = result
        found = np.full(len(encoded), np.nan)
        if asked:
            found[list(asked)] = predictor(lora, EncodedSplit(asked.values())).probs[:, 0]
        if not refused:
            return found, ()
        note = f"P(True) cannot be asked of {len(refused)} of {len(encoded)} answers; the first:"
        return found, (f"{note} {refused[0]}",)


def proposal(example: Example, answer: str) -> Example:
    """The question whether `answer` is the answer to `example`."""
    question = f"Question: {example.question}\nProposed answer: {answer}\nIs the proposed answer:"
    return Example(example.id, question, CHOICES, 0, passage=example.passage)
