"""Open questions under one model: its greedy answers, their scores, and how sure it seems to be.

Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016; answers without a word as in
SQuAD 2.0). P(True) is that of Kadavath et al. 2022, section 4. None of the confidences is the
probability of being right; a fitted map takes one of them there.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import AnyBar, progress_bar
from cogcalib_jax.data.batching import length_buckets
from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.encoding import Encoder, answer_stop
from cogcalib_jax.data.example import BadRow, Encoded, EncodedSplit, Example
from cogcalib_jax.data.prompts import PROMPTS, chat_template
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.config import Quantise
from cogcalib_jax.models.generate import Generated, SamplingConfig, generate
from cogcalib_jax.models.parameters import FrozenModel

# Padded prompt lengths of a split. Each compiles a loop of its own, which takes longer than a pass.
MAX_BUCKETS = 4
CHOICES = ("True", "False")
# Tokens allowed beyond the question's own: the words around it even for a tokenizer of characters,
# and an answer whose text takes several times the tokens it was generated with (stray bytes).
_WORDS = 160
_TOKENS_PER_TOKEN = 4
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


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
    quantise: Quantise = "none"
    """the form in which the model's base was held"""


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
        """Return answers and confidences of `encoded`; seed: of the samples for `agreement`."""
        samples = self._config.open.samples
        with _bar(len(encoded) * (1 + samples)) as bar:
            answers = self._answers(lora, encoded, bar)
            lengths = np.array([len(tokens) for tokens in answers.tokens])
            confidences = {
                "sequence": np.exp(answers.logprobs),
                "length_normalised": np.exp(answers.logprobs / lengths),
            }
            if samples:
                greedy = [normalise_answer(text) for text in answers.texts]
                confidences["agreement"] = self._share(
                    *(lora, encoded, self._config.open.temperature, samples, seed, bar),
                    lambda text, row: normalise_answer(text) == greedy[row],
                )
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
        """Return greedy answers alone: calibrators and the threshold are fitted on them."""
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
        """Return the share `[n]` of sampled answers that match an accepted one exactly."""
        with _bar(len(encoded) * samples) as bar:
            return self._share(
                *(lora, encoded, temperature, samples, seed, bar),
                lambda text, row: exact_match(text, encoded[row].example.aliases),
            )

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

    def _share(
        self,
        lora: nnx.State,
        encoded: Sequence[Encoded],
        temperature: float,
        samples: int,
        seed: int,
        bar: AnyBar,
        counts: Callable[[str, int], bool],
    ) -> np.ndarray:
        """The share `[n]` of sampled answers that count, by their text and the question's row."""
        found = np.zeros(len(encoded))
        for sample in range(samples):
            of_sample = int(np.random.SeedSequence([seed, sample]).generate_state(1)[0])
            generated = self._generate(lora, encoded, temperature, of_sample, bar)
            found += [counts(self._text(one), row) for row, one in enumerate(generated)]
        return found / samples

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
    """Return the tokens whose text contains `stop`; none for an empty one.

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


class PTrue:
    """P(True), the probability of True over {True, False} for proposed answers.

    The prompt is written as the project writes every choice between options (`letters`, or `chat`
    for questions asked in a chat):

        Question: {question}
        Proposed answer: {answer}
        Is the proposed answer:
        A. True
        B. False
        Answer:
    """

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
        """Return P(True) `[n]` of each question's proposed answer, NaN if it cannot be asked, and a
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


def normalise_answer(text: str) -> str:
    """Return lower case without ASCII punctuation, a, an and the; words parted by one space.

    In this order, as published: "the." loses its point first and then goes as an article. Other
    punctuation (a typographic apostrophe, say) stays, and so do accents.
    """
    words = _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION))
    return " ".join(words.split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Return whether `text` equals any of `answers` (at least one) once both are normalised."""
    normal = normalise_answer(text)
    return any(normal == normalise_answer(answer) for answer in answers)


def token_f1(text: str, answers: Sequence[str]) -> float:
    """The best F1 over `answers` (at least one) of the normalised words, as bags, from 0 to 1.

    A text or answer without words scores 1 against another without words and 0 otherwise.
    """
    return max(_f1(normalise_answer(text).split(), normalise_answer(a).split()) for a in answers)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    # 2PR / (P + R) with P = shared / words and R = shared / wanted.
    return 2 * shared / (len(words) + len(wanted))
