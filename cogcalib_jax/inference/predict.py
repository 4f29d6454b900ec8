"""The option scores of a split: those of one model, and the constant answer to compare with.

Several questions share a row, and every prompt is computed once. Training scores options in batches
of trees (`forward.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.console import progress_bar
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.data.packing import PackedBatch, packed_batches
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, EvaluationConfig, OptionScore
from cogcalib_jax.inference.forward import gather_positions, row_stats
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import Head
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import batch_parts, fetch, shard_batch


class SplitPass:
    """A function `(decoder, batch, *scalars) -> pytree of [batch, ...]`, compiled once a shape.

    `batch.row` and `batch.weight` are `[batch]`, or `[batch, questions]` where a row holds several
    questions; results begin with the same axes.

    With `members`, LoRA parameters carry a leading axis of members and results a last one: all
    members read the one base, which is neither copied nor read once for each.
    """

    def __init__(
        self, model: FrozenModel, mesh: Mesh, function: Callable[..., Any], *, members: bool = False
    ):
        self._frozen = model.frozen
        self._mesh = mesh

        def run(lora: nnx.State, frozen: nnx.State, batch: Batch, *scalars: Any) -> Any:
            def one(lora: nnx.State) -> Any:
                return function(nnx.merge(model.graphdef, lora, frozen), batch, *scalars)

            return jax.vmap(one, out_axes=-1)(lora) if members else one(lora)

        self._run = jax.jit(run)

    @property
    def compiled_shapes(self) -> int:
        """The number of batch shapes that the function was compiled for."""
        return self._run._cache_size()

    def __call__(
        self, lora: nnx.State, batches: Iterable[Batch | PackedBatch], *scalars: float | jax.Array
    ) -> tuple[np.ndarray, Any]:
        """Return row numbers `[n]` and results `[n, ...]` of all real rows, in the batches' order.

        A batch's results are fetched when the next one is under way, so that the host makes batches
        while devices compute. Results of different batches are padded with NaN to the widest second
        axis (questions may have 3, 4 or 5 options).
        """
        rows, outputs = [], []
        started = None
        for batch in batches:
            keep = batch.weight > 0
            rows.append(batch.row[keep])
            output = self._run(lora, self._frozen, shard_batch(self._mesh, batch), *scalars)
            if started is not None:
                outputs.append(_fetch_real(*started))
            started = output, keep
        outputs.append(_fetch_real(*started))
        return np.concatenate(rows), jax.tree.map(lambda *xs: _concatenate(xs), *outputs)


def _fetch_real(output: Any, keep: np.ndarray) -> Any:
    return jax.tree.map(lambda x: fetch(x)[keep], output)


def _concatenate(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    if len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate(arrays)
    width = max(a.shape[1] for a in arrays)
    further = [(0, 0)] * (arrays[0].ndim - 2)
    return np.concatenate(
        [
            np.pad(a, [(0, 0), (0, width - a.shape[1]), *further], constant_values=np.nan)
            for a in arrays
        ]
    )


def watched(
    batches: Iterable[Batch], questions: int, sequences: int, bar: Callable[..., Any] = progress_bar
) -> Iterator[Batch]:
    """Yield `batches`, with a bar over questions and the time left on stderr.

    sequences: rows of all batches together, several a question where options are scored one by
    one. bar: makes the bar, with the arguments of `progress_bar`. A batch counts as done when the
    next one is asked for.
    """
    done, shown = 0.0, 0
    with bar(questions, "scoring", "question", inner=True) as progress:
        for batch in batches:
            yield batch
            done += float(batch.weight.sum())
            whole = round(questions * done / sequences)
            progress.update(whole - shown)
            shown = whole


Score = Callable[[Iterable[Any]], tuple[np.ndarray, np.ndarray]]
"""A pass over batches: row numbers `[n]` and scores `[n, ...]` of all real rows"""

BY_TEXT, BY_POSITION = "text", "position"


class Predictor:
    """Scores splits with one model; compiled once per shape whatever the LoRA parameters are."""

    def __init__(
        self,
        model: FrozenModel,
        mesh: Mesh,
        config: EvaluationConfig,
        option_score: OptionScore = DEFAULT_OPTION_SCORE,
    ):
        self._config = config
        self._option_score = option_score
        self._multiple = batch_parts(mesh)
        self._pass = SplitPass(model, mesh, packed_logprobs)

    def scored_by(self, option_score: OptionScore) -> Predictor:
        """The same predictor with another rule; nothing is compiled again."""
        other = copy(self)
        other._option_score = option_score
        return other

    def __call__(
        self, lora: nnx.State, encoded: Sequence[Encoded], temperature: float = 1.0
    ) -> Predictions:
        """Return predictions of `encoded`, in one pass also with a temperature.

        The vocabulary's numbers at the temperature come from the same logits as those without it.
        The rule pmi needs an `EncodedSplit` with `pmi_prefix_ids`, and scores its options after
        those alone, too.
        """

        def score(rows: Sequence[Encoded]) -> np.ndarray:
            temperatures = np.array([1.0, temperature], np.float32)
            return packed_scores(
                rows,
                self._config.batch_size,
                self._multiple,
                lambda batches: self._pass(lora, batches, temperatures),
            )

        logprobs, priors = score(encoded), None
        if self._option_score == "pmi":
            priors = prior_scores(encoded, lambda rows: score(rows)[..., 0])
        return replace(
            predictions_of(encoded, logprobs[..., 0], self._option_score, priors),
            temperature=temperature,
            tempered_logprobs=None if temperature == 1.0 else logprobs[..., 1],
        )


def predictions_of(
    encoded: Sequence[Encoded],
    logprobs: np.ndarray,
    option_score: OptionScore,
    priors: np.ndarray | None = None,
) -> Predictions:
    """Return predictions from the log-probabilities of options, and those without questions."""
    return Predictions(
        logprobs=logprobs,
        tokens=option_tokens(encoded),
        answers=np.array([e.answer for e in encoded]),
        option_score=option_score,
        characters=_for_each_option([e.characters for e in encoded]),
        priors=priors,
    )


def option_tokens(encoded: Sequence[Encoded]) -> np.ndarray:
    """Return the tokens of each completion, `[n, k]` int, 0 where there is no option."""
    return _for_each_option([[len(ids) for ids in e.completion_ids] for e in encoded])


def _for_each_option(numbers: Sequence[Sequence[int]]) -> np.ndarray:
    padded = np.zeros((len(numbers), max(map(len, numbers))), int)
    for i, row in enumerate(numbers):
        padded[i, : len(row)] = row
    return padded


def prior_scores(
    encoded: Sequence[Encoded], score: Callable[[Sequence[Encoded]], np.ndarray]
) -> np.ndarray:
    """Return the log-probability of each option without its question, `[n, k, ...]` nats, NaN for
    none.

    An option keeps the token ids that it has after its prompt; `pmi_prefix_ids` stand in the
    prompt's place. score: from rows to log-probabilities `[rows, k, ...]`. Questions with the same
    options are scored once.
    """
    prefix = getattr(encoded, "pmi_prefix_ids", None)
    if prefix is None:
        raise ValueError("option_score = pmi: needs a split that encode_split made of options")
    alone = {e.completion_ids: replace(e, prompt_ids=prefix) for e in encoded}
    place = {options: row for row, options in enumerate(alone)}
    scores = score(EncodedSplit(alone.values()))
    return scores[[place[e.completion_ids] for e in encoded]]


def packed_scores(
    encoded: Sequence[Encoded], batch_size: int, multiple: int, score: Score
) -> np.ndarray:
    """Return the log-probability of each option of each question, `[n, k, ...]` nats, NaN for
    none. Every prompt is computed once.

    multiple: see `packed_batches`; score: of packed batches, `[n, k, ...]`. Further axes are kept
    (members of an ensemble).
    """
    batches = packed_batches(encoded, batch_size, multiple)
    rows, values = score(watched(batches, len(encoded), len(encoded)))
    scores = np.full(values.shape, np.nan)
    scores[rows] = values
    scores[option_tokens(encoded) == 0] = np.nan
    return scores


def packed_logprobs(
    decoder: Decoder, batch: PackedBatch, temperature: jax.Array | float
) -> jax.Array:
    """Return log-probabilities of options, summed over their tokens, in nats.

    They are `[batch, questions, options]` float32, under the vocabulary's softmax.

    The end of a prompt predicts the first token of all its options, an option's token the next one.
    Where a question or an option does not exist the value means nothing. The temperature divides
    every vocabulary logit. Several temperatures `[t]` add a last axis to the result: they share the
    decoder's pass and the products with the head, which are nearly all of the work.
    """
    branches = (batch.question, batch.option)
    hidden = decoder.tree_hidden_states(batch.input_ids, batch.positions, branches)
    hidden = gather_positions(hidden, batch.scored)
    ends = gather_positions(hidden, batch.prompt_end)

    def logprobs(temperature: jax.Array | float) -> jax.Array:
        return _logprobs(decoder.head().replace(temperature=temperature), hidden, ends, batch)

    if jnp.ndim(temperature):
        return jax.vmap(logprobs, out_axes=-1)(temperature)
    return logprobs(temperature)


def _logprobs(head: Head, hidden: jax.Array, ends: jax.Array, batch: PackedBatch) -> jax.Array:
    """The same from hidden states: those at the scored positions, and at the ends of prompts."""
    stats = row_stats(head, hidden, batch.targets)
    rows, questions, options = batch.first_ids.shape
    first_logits = head.option_logits(
        ends.reshape(rows * questions, -1), batch.first_ids.reshape(rows * questions, options)
    )
    denominators = jnp.take_along_axis(stats.logsumexp, batch.prompt_end, axis=1)
    first = first_logits.reshape(rows, questions, options) - denominators[:, :, None]

    # One place more than there are options, for what belongs to none.
    places = questions * options + 1
    nll = jax.vmap(lambda nll, place: jax.ops.segment_sum(nll, place, places))(
        stats.nll, batch.place
    )
    return first - nll[:, :-1].reshape(first.shape)


def commonest_answer(train: Sequence[Encoded], encoded: Sequence[Encoded]) -> Predictions:
    """Predict the same for every question of `encoded`: the smoothed frequencies of right answers.

    Answers are counted by their text if all rows of `train` and `encoded` share one set of option
    texts (yes and no; the relations of a table), else by their position. One is added to each
    count, and the counts of the options that a question has are divided by their sum. The first of
    the options with the largest probability is the prediction.

    Args:
        train: rows with options, at least one.
    """
    by = counted_by(train, encoded)
    counts = Counter(_keys(row, by)[row.answer] for row in train)
    options = np.array([len(row.completions) for row in encoded])
    exists = np.arange(options.max()) < options[:, None]
    probs = np.ones(exists.shape)
    for i, row in enumerate(encoded):
        probs[i, : options[i]] += [counts[key] for key in _keys(row, by)]
    probs = np.where(exists, probs, 0.0)
    probs /= probs.sum(-1, keepdims=True)
    return Predictions(
        # Each option counts as one token, so that no rule for several tokens changes its score.
        logprobs=np.log(probs, out=np.full(probs.shape, np.nan), where=exists),
        tokens=exists.astype(int),
        answers=np.array([row.answer for row in encoded]),
        option_score="sum",
    )


def counted_by(train: Sequence[Encoded], encoded: Sequence[Encoded]) -> str:
    """Return "text" if all rows share one set of option texts, else "position"."""
    texts = {frozenset(row.example.choices) for row in (*train, *encoded)}
    # A published protocol may score more letters than a row has options.
    whole = all(len(row.completions) == len(row.example.choices) for row in (*train, *encoded))
    return BY_TEXT if len(texts) == 1 and whole else BY_POSITION


def _keys(row: Encoded, by: str) -> Sequence[Hashable]:
    return row.example.choices if by == BY_TEXT else range(len(row.completions))
