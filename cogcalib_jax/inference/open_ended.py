"""Open questions under one model: its greedy answers, and how sure of them it seems to be.

None of the confidences is the probability of being right; `calibrators` maps one of them there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import AnyBar, progress_bar
from cogcalib_jax.data.batching import length_buckets
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import answer_stop
from cogcalib_jax.data.example import Encoded
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.open_answers import exact_match, normalise_answer, token_f1
from cogcalib_jax.inference.p_true import PTrue
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.generate import Generated, SamplingConfig, generate
from cogcalib_jax.models.parameters import FrozenModel

# Padded prompt lengths of a split. Each compiles a loop of its own, which takes longer than a pass.
MAX_BUCKETS = 4


class Answers(NamedTuple):
    """Greedy answers to `n` questions, in their order."""

    texts: tuple[str, ...]
    """what stands before the stop, stripped"""
    tokens: tuple[tuple[int, ...], ...]
    """as generated, the token that ended it included where one was reached"""
    logprobs: np.ndarray
    """[n] float64 nats: of all those tokens together. The ending is part of the answer: without
    it "New" would be as likely as all that begins so"""
    exact_match: np.ndarray
    """[n] bool, with any accepted answer"""
    f1: np.ndarray
    """[n] float64, the best over the accepted answers"""


@dataclass(frozen=True)
class OpenPredictions:
    """All that is known of `n` open questions."""

    answers: Answers
    confidences: dict[str, np.ndarray]
    """name -> [n] float64 in [0, 1], NaN where there is none"""
    reference_logprobs: np.ndarray
    """[n] float64 nats: of the reference answer with its stop"""
    reference_tokens: np.ndarray
    """[n] int"""
    notes: tuple[str, ...] = ()
    """what was left out and why, a line each"""


class OpenPredictor:
    """Answers one task's open questions; compiled once a shape whatever the LoRA parameters are.

    Confidences, by name:

    - `sequence`: probability of the greedy answer's tokens, the one that ended it included.
    - `length_normalised`: their geometric mean.
    - `agreement`: share of `samples` sampled answers that equal the greedy one once normalised
      (`open.temperature`, nothing cut off).
    - `p_true`: see `PTrue`.
    """

    def __init__(
        self,
        model: FrozenModel,
        config: EvaluationConfig,
        data: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        predictor: Predictor,
    ):
        """data: prompts of the task. predictor: of the same model.

        Raises UserError where the tokenizer cannot write the stop, or the question of P(True).
        """
        self._model = model
        self._config = config
        stop = answer_stop(data, tokenizer)
        # Some chat templates (Llama 2's) write a space before the end-of-turn. The end-of-turn
        # alone ends an answer.
        self._stop = stop.strip() or stop
        self._stop_tokens = stop_tokens(tokenizer, self._stop)
        self._tokenizer = tokenizer
        self._predictor = predictor
        new = config.open.max_new_tokens
        self._p_true = PTrue(data, tokenizer, new) if config.open.p_true else None

    def __call__(
        self, lora: nnx.State, encoded: Sequence[Encoded], *, seed: int = 0
    ) -> OpenPredictions:
        """Answers and confidences of `encoded`; seed: of the samples for `agreement`."""
        samples = self._config.open.samples
        with _bar(len(encoded) * (1 + samples)) as bar:
            answers = self._answers(lora, encoded, bar)
            lengths = np.array([len(tokens) for tokens in answers.tokens])
            confidences = {
                "sequence": np.exp(answers.logprobs),
                "length_normalised": np.exp(answers.logprobs / lengths),
            }
            if samples:
                confidences["agreement"] = self._agreement(lora, encoded, answers, seed, bar)
        notes: tuple[str, ...] = ()
        if self._p_true is not None:
            confidences["p_true"], notes = self._p_true(
                self._predictor, lora, encoded, answers.texts
            )
        reference = self._predictor(lora, encoded)
        return OpenPredictions(
            answers, confidences, reference.logprobs[:, 0], reference.tokens[:, 0], notes
        )

    def answers(self, lora: nnx.State, encoded: Sequence[Encoded]) -> Answers:
        """Greedy answers alone: what calibrators and the threshold are fitted on."""
        with _bar(len(encoded)) as bar:
            return self._answers(lora, encoded, bar)

    def sampled_matches(
        self,
        lora: nnx.State,
        encoded: Sequence[Encoded],
        *,
        temperature: float,
        samples: int,
        seed: int = 0,
    ) -> np.ndarray:
        """Share `[n]` of `samples` sampled answers that match an accepted one exactly."""
        matches = np.zeros(len(encoded))
        with _bar(len(encoded) * samples) as bar:
            for texts in self._sampled(lora, encoded, temperature, samples, seed, bar):
                matches += [
                    exact_match(text, e.example.aliases)
                    for text, e in zip(texts, encoded, strict=True)
                ]
        return matches / samples

    def _answers(self, lora: nnx.State, encoded: Sequence[Encoded], bar: AnyBar) -> Answers:
        generated = self._generate(lora, encoded, 0.0, 0, bar)
        texts = tuple(self._text(one) for one in generated)
        pairs = [(text, e.example.aliases) for text, e in zip(texts, encoded, strict=True)]
        return Answers(
            texts,
            tuple(one.tokens for one in generated),
            np.array([sum(one.logprobs) for one in generated], np.float64),
            np.array([exact_match(*pair) for pair in pairs], bool),
            np.array([token_f1(*pair) for pair in pairs], np.float64),
        )

    def _agreement(
        self,
        lora: nnx.State,
        encoded: Sequence[Encoded],
        answers: Answers,
        seed: int,
        bar: AnyBar,
    ) -> np.ndarray:
        greedy = [normalise_answer(text) for text in answers.texts]
        agreeing = np.zeros(len(encoded))
        settings = self._config.open
        for texts in self._sampled(
            lora, encoded, settings.temperature, settings.samples, seed, bar
        ):
            agreeing += [
                normalise_answer(text) == wanted for text, wanted in zip(texts, greedy, strict=True)
            ]
        return agreeing / settings.samples

    def _sampled(
        self,
        lora: nnx.State,
        encoded: Sequence[Encoded],
        temperature: float,
        samples: int,
        seed: int,
        bar: AnyBar,
    ) -> Iterator[list[str]]:
        """`samples` times an answer to each of `encoded`."""
        for sample in range(samples):
            of_sample = int(np.random.SeedSequence([seed, sample]).generate_state(1)[0])
            generated = self._generate(lora, encoded, temperature, of_sample, bar)
            yield [self._text(one) for one in generated]

    def _generate(
        self,
        lora: nnx.State,
        encoded: Sequence[Encoded],
        temperature: float,
        seed: int,
        bar: AnyBar,
    ) -> list[Generated]:
        """Continuations in the order of `encoded`, made in batches of like lengths."""
        decoder = self._model.merge(lora)
        sampling = SamplingConfig(self._config.open.max_new_tokens, temperature)
        lengths = np.array([len(e.prompt_ids) for e in encoded])
        buckets = np.array(length_buckets(lengths, MAX_BUCKETS))
        order = np.argsort(lengths, kind="stable")
        size = self._config.batch_size
        made: dict[int, Generated] = {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            bucket = int(buckets[np.searchsorted(buckets, lengths[rows].max())])
            continuations = generate(
                decoder,
                [encoded[row].prompt_ids for row in rows],
                sampling,
                seed=int(np.random.SeedSequence([seed, start]).generate_state(1)[0]),
                stop=self._stop_tokens,
                pad_to=(size, bucket),
            )
            made |= zip(rows.tolist(), continuations, strict=True)
            bar.update(len(rows))
        return [made[row] for row in range(len(encoded))]

    def _text(self, generated: Generated) -> str:
        text = self._tokenizer.decode(
            list(generated.tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return (text.partition(self._stop)[0] if self._stop else text).strip()


@lru_cache(maxsize=8)
def stop_tokens(tokenizer: PreTrainedTokenizerBase, stop: str) -> frozenset[int]:
    """Tokens whose text contains `stop`; none for an empty one.

    Raises UserError where no token does, so that generation would never end there.
    """
    if not stop:
        return frozenset()
    ids = sorted(tokenizer.get_vocab().values())
    texts = tokenizer.batch_decode(
        [[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    found = frozenset(i for i, text in zip(ids, texts, strict=True) if stop in text)
    if not found:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: none of its tokens contains {stop!r}, which ends"
            " the answer of an open question, so a model with it could not end one; use another"
            " tokenizer, or a prompt with another stop"
        )
    return found


def _bar(answers: int) -> AnyBar:
    return progress_bar(answers, "answering", "answer", inner=True)
