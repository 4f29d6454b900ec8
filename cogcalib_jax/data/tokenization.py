"""Prompts as token ids: BOS once, completions in context, long passages cut as text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import BadRow, Encoded, EncodedSplit, Example
from cogcalib_jax.data.prompts import PROMPTS, Prompt, Template
from cogcalib_jax.data.registry import TASKS
from cogcalib_jax.errors import UserError

# Texts handed to the tokenizer at once: enough for its threads, little enough to hold.
_CHUNK = 1000
# A passage is cut at white space, and within it only where a "word" is longer than this (text
# in scripts without spaces, or no text at all).
_UNIT = re.compile(r"\s*\S{1,32}")


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a Hub id; code from the Hub is never run.

    Raises:
        UserError: not found, not reachable, damaged, or in need of its own code.
    """
    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:
        # The tokenizers library raises the bare `Exception` for a damaged tokenizer.json, and
        # transformers stumbles over damaged content with the types below; others are bugs.
        expected = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
        if type(error) is not Exception and not isinstance(error, expected):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{source}: cannot load a tokenizer ({reason}); name a local folder with "
            "tokenizer.json and tokenizer_config.json, or a model on the Hugging Face Hub"
        ) from error


def template_of(config: DataConfig, is_open: bool) -> Template:
    """The prompt template `config.prompt` names; auto is the task's own, or qa where that has
    options and the questions are open (`is_open`)."""
    if config.prompt != "auto":
        return PROMPTS[config.prompt]
    template = PROMPTS[TASKS[config.task].prompt]
    return PROMPTS["qa"] if is_open and not template.stop else template


def encode_split(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
) -> tuple[EncodedSplit, tuple[str, ...]]:
    """Token ids of a split, and notes on what was cut or left out.

    Args:
        name: the split's name, for messages.
        examples: its rows; `Batch.row` counts those that could be encoded.
        tokenizer: as `load_tokenizer` gives it.
        config: prompt template, `max_length`, and what to do with a row that cannot be encoded.

    Raises:
        UserError: a row whose question does not fit, or whose options cannot be told apart or
            are not tokenised in context (`on_bad_row: error`); no row left.
    """
    is_open = any(example.is_open for example in examples)
    encoder = Encoder(tokenizer, template_of(config, is_open), config.max_length)
    encoded: list[Encoded] = []
    refused: list[str] = []
    for start in range(0, len(examples), _CHUNK):
        for result in encoder.encode(examples[start : start + _CHUNK]):
            if isinstance(result, Encoded):
                encoded.append(result)
            elif config.on_bad_row == "error":
                raise UserError(
                    f"{name} split of {config.task}: {result}; mend it or leave such rows out "
                    "with --data.on-bad-row skip"
                )
            else:
                refused.append(str(result))
    if examples and not encoded:
        raise UserError(
            f"{name} split of {config.task}: no row can be encoded; the first: {refused[0]}"
        )
    notes = []
    if refused:
        notes.append(
            f"{name}: {len(refused)} of {len(examples)} rows cannot be encoded and were left "
            f"out; the first: {refused[0]}"
        )
    if encoder.truncated:
        notes.append(
            f"{name}: {encoder.truncated} of {len(examples)} passages lost their middle to fit "
            f"into {config.max_length} tokens"
        )
    return EncodedSplit(encoded), tuple(notes)


def single_token_options(encoded: Sequence[Encoded]) -> bool:
    """Whether every option is one token, and another one for every option of a row."""
    return EncodedSplit.of(encoded).single_token_options


class _Ids(NamedTuple):
    """Token ids of a prompt, and of the prompt with each completion."""

    prompt: list[int]
    whole: list[list[int]]


class Encoder:
    """Examples to token ids with one tokenizer and template; counts the passages it cut."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int):
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        self._prefix = special_prefix(tokenizer)
        self._special_text = _special_text(tokenizer)
        self.truncated = 0

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRow]:
        """Each example encoded, or why it cannot be; the reason names its id."""
        results: list[Encoded | BadRow] = []
        prompts = [self._render(example) for example in examples]
        good = iter(self._tokenise([p for p in prompts if isinstance(p, Prompt)]))
        for example, prompt in zip(examples, prompts, strict=True):
            try:
                if isinstance(prompt, BadRow):
                    raise prompt
                ids = next(good)
                if self._too_long(ids):
                    prompt, ids = self._shorten(example)
                results.append(_encoded(example, prompt, ids))
            except BadRow as reason:
                results.append(BadRow(f"row {example.id}: {reason}"))
        return results

    def _render(self, example: Example) -> Prompt | BadRow:
        for text in (example.question, example.passage, *example.choices):
            # A special token written out in a text would become that token: a second BOS, say.
            if found := self._special_text(text):
                return BadRow(f"its text holds the tokenizer's special token {found.group()!r}")
        try:
            return self._template(example)
        except BadRow as reason:
            return reason

    def _tokenise(self, prompts: Sequence[Prompt]) -> list[_Ids]:
        texts = [
            text for p in prompts for text in (p.prompt, *(p.prompt + c for c in p.completions))
        ]
        if not texts:
            return []
        ids = iter(
            self._tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
        )
        return [
            _Ids(self._prefix + next(ids), [self._prefix + next(ids) for _ in p.completions])
            for p in prompts
        ]

    def _too_long(self, ids: _Ids) -> bool:
        return max(map(len, ids.whole)) > self._max_length

    def _shorten(self, example: Example) -> tuple[Prompt, _Ids]:
        """The prompt with as much of the passage's two ends as fits.

        The cut is made in the text, so that the text in a prediction row gives the same ids
        again. What fits is found by bisection over the number of units that stay.
        """
        units = _UNIT.findall(example.passage)

        def keep(n: int) -> tuple[Prompt, _Ids]:
            head, tail = "".join(units[: n - n // 2]), "".join(units[len(units) - n // 2 :])
            passage = f"{head.strip()} ... {tail.strip()}".strip() if n else ""
            prompt = self._template(replace(example, passage=passage))
            return prompt, self._tokenise([prompt])[0]

        best = keep(0)
        if self._too_long(best[1]):
            without = " even without its passage" if units else ""
            raise BadRow(
                f"question and options take {max(map(len, best[1].whole))} tokens{without}, more "
                f"than the {self._max_length} of data.max_length"
            )
        # A unit is seldom less than a token: 4 a token spare a megabyte's bisection.
        low, high = 0, min(len(units) - 1, 4 * self._max_length)
        while low < high:
            middle = (low + high + 1) // 2
            candidate = keep(middle)
            if self._too_long(candidate[1]):
                high = middle - 1
            else:
                low, best = middle, candidate
        self.truncated += 1
        return best


def _encoded(example: Example, prompt: Prompt, ids: _Ids) -> Encoded:
    n = len(ids.prompt)
    if n == 0:
        raise BadRow("its prompt has no tokens")
    completions = []
    for name, whole in zip(prompt.completions, ids.whole, strict=True):
        if whole[:n] != ids.prompt or len(whole) == n:
            raise BadRow(
                f"option {name!r:.60} cannot be scored after this prompt: the tokens of the "
                "prompt alone are not the beginning of the tokens of both together"
            )
        completions.append(tuple(whole[n:]))
    if len(set(completions)) != len(completions):
        raise BadRow("two of its options have the same tokens, so they cannot be told apart")
    return Encoded(
        id=example.id,
        prompt=prompt.prompt,
        completions=prompt.completions,
        prompt_ids=tuple(ids.prompt),
        completion_ids=tuple(completions),
        answer=example.answer,
        example=example,
    )


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text (BOS, or nothing); what it appends is left."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a")["input_ids"]
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return list(special[:start])
    raise UserError(
        f"tokenizer {tokenizer.name_or_path}: a text has other tokens with special tokens around "
        "it than alone, so prompts cannot be continued; use another tokenizer"
    )


def _special_text(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], re.Match[str] | None]:
    """A search for the tokenizer's special tokens written out as text (unknown excepted)."""
    tokens = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    tokens -= {str(tokenizer.unk_token)}
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(pattern or r"(?!)").search
