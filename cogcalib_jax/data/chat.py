"""Prompts in a tokenizer's own chat format.

What a chat template writes around a user's message is the same for every question, so it is found
once, from two made-up conversations, and becomes the start and end of an ordinary prompt template.
A template that does something else to a message is refused.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.example import Example
from cogcalib_jax.data.prompts import Template
from cogcalib_jax.errors import UserError

# Templates of reasoning models open an empty thought instead of waiting for one; those of Llama 3
# write this date, their own default, instead of today's, so that prompts do not change overnight.
_SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_OF_TEMPLATES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_PROBES = (
    ("Which colour has it?\nA. red\nB. blue\nAnswer:", "Xylophone"),
    ("Who wrote the book", "Zebra"),
)

Turn = tuple[str, str]
"""a user's message and the assistant's answer"""


class _Frame(NamedTuple):
    """What a chat template writes before and after the last user message, and around an answer."""

    before: str
    after: str
    lead: str
    stop: str


def chat_template(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    shots: Sequence[Example],
    *,
    is_open: bool = False,
) -> Template:
    """`template` as a user's message, its answer as the assistant's.

    shots: solved questions, which become earlier turns. The prompt is the conversation up to the
    answer (special tokens written out, BOS among them where the chat template writes it). Spaces at
    its end go to the completions, since most tokenizers write a space and the word after it as one
    token. A completion is exactly what the conversation goes on with. `stop` is the end-of-turn, or
    the tokenizer's end of text if the chat template writes nothing after an answer.

    Raises:
        UserError: no chat template, or one that fails, thinks before it answers, changes what is
            said, or (`is_open`) never ends an answer.
    """
    _require_chat(tokenizer)
    turns = [(p.prompt, p.completions[0].strip()) for p in map(template.solved, shots)]
    frames = [_frame(tokenizer, turns, probe) for probe in _PROBES]
    if frames[0] != frames[1]:
        raise _refusal(tokenizer, "writes different things around different messages")
    before, after, lead, stop = frames[0]
    assert isinstance(template.completion, str)  # only protocols list answers, and none is a chat
    answer = lead + template.completion.strip()
    stop = stop or tokenizer.eos_token or ""
    if is_open and not stop:
        raise _refusal(
            tokenizer, "writes nothing after an answer, and the tokenizer has no end-of-text token"
        )
    return replace(template, start=before, end=template.end + after, completion=answer, stop=stop)


def chat_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the tokenizer's chat template: equal hashes write equal conversations."""
    _require_chat(tokenizer)
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()


def chat_notes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What a user should know about the chat template."""
    text = tokenizer.get_chat_template()
    if "strftime_now" in text and "date_string" not in text:
        return ("the chat template writes today's date: prompts differ from day to day",)
    return ()


def _require_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            f"data.prompt = chat: tokenizer {tokenizer.name_or_path} has no chat template; name a"
            " chat model, or use data.prompt auto"
        )


def _frame(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], probe: Turn) -> _Frame:
    prompt = _rendered(tokenizer, turns, probe[0])
    whole = _rendered(tokenizer, [*turns, probe])
    if any(text not in prompt for turn in turns for text in turn) or prompt.count(probe[0]) != 1:
        raise _refusal(tokenizer, "changes the messages it is given")
    spaces = prompt[len(prompt.rstrip(" ")) :]
    if not whole.startswith(prompt):
        raise _refusal(
            tokenizer,
            "does not continue what it asks the model to answer (as those of models that always"
            " think first)",
        )
    before, _, after = prompt.removesuffix(spaces).partition(probe[0])
    lead, answer, stop = whole[len(prompt) - len(spaces) :].partition(probe[1])
    if not answer or lead.strip():
        raise _refusal(tokenizer, f"writes {lead[:40]!r} before an answer")
    # The line break after an end-of-turn belongs to the next turn, and no token holds both.
    return _Frame(before, after, lead, stop.rstrip() or stop)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], question: str | None = None
) -> str:
    """The conversation as text; up to the answer where it ends with a `question`."""
    # Imported here: transformers does without it until a chat is rendered.
    from jinja2 import TemplateError

    messages = []
    for user, assistant in turns:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    if question is not None:
        messages.append({"role": "user", "content": question})
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=question is not None, **_SETTINGS
        )
    # A template is a program: it may add what is no text, divide by zero, count too far or call
    # itself for ever. ValueError also: several templates and none that is the default.
    except _OF_TEMPLATES + (TemplateError,) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise _refusal(tokenizer, f"cannot write a conversation ({reason})") from error


def _refusal(tokenizer: PreTrainedTokenizerBase, what: str) -> UserError:
    return UserError(
        f"data.prompt = chat: the chat template of tokenizer {tokenizer.name_or_path} {what}; use"
        " data.prompt auto, or a tokenizer with another chat template"
    )
