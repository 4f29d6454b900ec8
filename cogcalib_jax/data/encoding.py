"""Prompts as token ids: BOS once, completions in context, long passages cut as text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.example import BadRow, Encoded, EncodedSplit, Example, question_key
from cogcalib_jax.data.prompts import (
    CLEAN,
    PROMPTS,
    Prompt,
    Template,
    chat_notes,
    chat_template,
    published,
    verbaliser_notes,
)
from cogcalib_jax.data.tasks import TASKS
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.tokenizer import WITHOUT_EMBEDDING

# Examples tokenised at once: enough for the tokenizer's threads, little enough to hold.
_CHUNK = 1000
_PADDING = re.compile(r"[\W_]*pad[\W_]*", re.IGNORECASE)
# A passage is cut at white space, or inside a longer "word" (scripts without spaces).
_UNIT = re.compile(r"\s*\S{1,32}")


def template_of(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    shots: Sequence[Example] = (),
    *,
    is_open: bool,
) -> Template:
    """Return the template of every prompt, with the solved questions before it.

    Args:
        config: names it; auto is the task's own, or qa if `is_open` and the task's has options.
        tokenizer: decides the chat format, and the published ends of some protocols.
        shots: solved questions to show, as many as `config.few_shot`.
        is_open: True for open questions.

    Raises:
        UserError: as `chat_template`; a solved question that cannot be shown.
    """
    if len(shots) != config.few_shot:
        raise ValueError(f"{len(shots)} solved questions given, data.few_shot is {config.few_shot}")
    if found := published(config.protocol, config.task):
        return found.template_for(tokenizer)
    name = TASKS[config.task].prompt if config.prompt in ("auto", CHAT) else config.prompt
    template = PROMPTS[name]
    if config.prompt in ("auto", CHAT) and is_open and not template.stop:
        template = PROMPTS["qa"]
    special = _special_text(tokenizer)
    for shot in shots:
        try:
            _require_plain_text(shot, special)
            template.solved(shot)
        except BadRow as reason:
            raise UserError(
                f"data.few_shot = {config.few_shot}: row {shot.id} of train would be shown, but"
                f" {reason}; fix it, or draw others with --data.split-seed"
            ) from reason
    if config.prompt == CHAT:
        return chat_template(template, tokenizer, shots, is_open=is_open)
    return template.after(shots)


def answer_stop(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that ends the answer to an open question."""
    return template_of(replace(config, few_shot=0), tokenizer, is_open=True).stop


def prompt_prefix(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids before every prompt's own: none in a chat, whose template writes them."""
    return [] if config.prompt == CHAT else special_prefix(tokenizer)


def pmi_prefix(template: Template, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """Return the ids after which an option is scored as if there were no question.

    The first id is BOS, or the end-of-text token (EOS) of a tokenizer without BOS. The text between
    question and option follows, without the white space before it: "Answer:" for letters, nothing
    for cloze. None if the tokenizer has neither token.
    """
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    first = next((token for token in ids if token is not None), None)
    if first is None:
        return None
    between = tokenizer(template.end.lstrip(), add_special_tokens=False)["input_ids"]
    return (first, *between)


def encode_split(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    shots: Sequence[Example] = (),
    template: Template | None = None,
) -> tuple[EncodedSplit, tuple[str, ...]]:
    """Return a split as token ids, and notes on cut passages and rows that were left out.

    Args:
        examples: its rows; `Batch.row` counts those that could be encoded.
        config: the prompt, `max_length` and `on_bad_row`.
        shots: the `config.few_shot` solved questions before each, from `Splits.shots` or
            `load_shots`.
        template: the prompt without `shots`; None: the one that `config` names.

    Raises:
        UserError: as `template_of`; a row whose question does not fit, or whose options cannot be
            told apart or are not tokenised in context (`on_bad_row: error`); no row left.
    """
    is_open = any(example.is_open for example in examples)
    if template is None:
        template = template_of(config, tokenizer, shots, is_open=is_open)
    elif shots:
        template = template.after(shots)
    encoder = Encoder(tokenizer, config, template, shots)
    encoded: list[Encoded] = []
    refused: list[str] = []
    for start in range(0, len(examples), _CHUNK):
        for result in encoder.encode(examples[start : start + _CHUNK]):
            if isinstance(result, Encoded):
                encoded.append(result)
            elif config.on_bad_row == "error":
                raise UserError(
                    f"{name} split of {config.task}: {result}; fix it or leave such rows out "
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
            f"{name}: {encoder.truncated} of {len(examples)} passages lost their "
            f"{encoder.template.cut} to fit into {config.max_length} tokens"
        )
    unknown = tokenizer.unk_token_id
    if unknown not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        holds = [unknown in chain(row.prompt_ids, *row.completion_ids) for row in encoded]
        if any(holds):
            first = encoded[holds.index(True)].id
            notes.append(
                f"{name}: {sum(holds)} of {len(examples)} rows hold text that the tokenizer does"
                f" not know, for which the model reads {tokenizer.unk_token!r} (the first: {first})"
            )
    if config.prompt == CHAT:
        notes.extend(chat_notes(tokenizer))
    if encoded and config.protocol != CLEAN:
        notes.extend(verbaliser_notes(config.protocol, encoded[0], tokenizer))
    split = EncodedSplit(encoded)
    split.template, split.protocol = encoder.template, config.protocol
    if not is_open:
        split.pmi_prefix_ids = pmi_prefix(template, tokenizer)
    return split, tuple(notes)


class _Ids(NamedTuple):
    """Token ids of a prompt, and of the prompt with each completion."""

    prompt: list[int]
    whole: list[list[int]]


class Encoder:
    """An encoder with one tokenizer and template; it counts the passages it cut."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
        template: Template,
        shots: Sequence[Example],
    ) -> None:
        self._tokenizer = tokenizer
        self.template = template
        self._max_length = config.max_length
        self._shots = {question_key(shot) for shot in shots}
        self._prefix = prompt_prefix(config, tokenizer)
        self._special_text = _special_text(tokenizer)
        self.truncated = 0

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRow]:
        """Return each example encoded, or a `BadRow` that names its id."""
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
        try:
            if self._shots and question_key(example) in self._shots:
                raise BadRow("is itself one of the solved questions of data.few_shot")
            _require_plain_text(example, self._special_text)
            return self.template(example)
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
        """Return the prompt with as much of the passage's two ends (or of its start) as fits.

        The text is cut, not the ids, so that the text in a prediction row gives the same ids.
        """
        units = _UNIT.findall(example.passage)

        def keep(n: int) -> tuple[Prompt, _Ids]:
            if self.template.cut == "end":
                passage = "".join(units[:n]).strip()
            else:
                head, tail = "".join(units[: n - n // 2]), "".join(units[len(units) - n // 2 :])
                passage = f"{head.strip()} ... {tail.strip()}".strip() if n else ""
            prompt = self.template(replace(example, passage=passage))
            return prompt, self._tokenise([prompt])[0]

        best = keep(0)
        if self._too_long(best[1]):
            shots = f", with the {len(self._shots)} of data.few_shot," if self._shots else ""
            without = " even without its passage" if units else ""
            raise BadRow(
                f"question and options{shots} take {max(map(len, best[1].whole))} tokens{without}, "
                f"more than the {self._max_length} of data.max_length"
            )
        # Bisection over the units that stay. A unit is seldom less than a token, so 4 a token
        # bound the search in a passage of a megabyte.
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
    """Return the ids that the tokenizer itself puts before a text (BOS, or nothing)."""
    text, plain = _some_text(tokenizer)
    special = tokenizer(text)["input_ids"]
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return list(special[:start])
    raise UserError(
        f"tokenizer {tokenizer.name_or_path}: a text has other tokens with special tokens around "
        "it than alone, so prompts cannot be continued; use another tokenizer"
    )


def _some_text(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """Return a text that has tokens, and them: some tokenizers know neither "a" nor bytes."""
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    own = (tokenizer.decode([word]) for word in sorted(words))
    for text in chain("a", own):
        if plain := tokenizer(text, add_special_tokens=False)["input_ids"]:
            return text, plain
    raise UserError(
        f"tokenizer {tokenizer.name_or_path}: has no token for any text; use another tokenizer"
    )


def _require_plain_text(example: Example, special: Callable[[str], re.Match[str] | None]) -> None:
    """Refuse a text with a special token written out, which would become that token."""
    for text in (example.question, example.passage, *example.choices):
        if found := special(text):
            raise BadRow(f"its text holds the tokenizer's special token {found.group()!r}")


def _special_text(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], re.Match[str] | None]:
    """Return a search for the tokenizer's special tokens written out as text.

    Tokens for unknown text and for padding, declared or only named so ("<pad>"), are left out
    unless they are BOS or EOS, because a padding token may be any word ("!"). Tokens without an
    embedding in the model always count.
    """
    tokens = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    without_role = {str(tokenizer.unk_token), str(tokenizer.pad_token)}
    without_role |= {token for token in tokens if _PADDING.fullmatch(token)}
    tokens -= without_role - {str(tokenizer.bos_token), str(tokenizer.eos_token)}
    tokens |= getattr(tokenizer, WITHOUT_EMBEDDING, frozenset())
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(pattern or r"(?!)").search
