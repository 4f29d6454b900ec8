"""Prompt templates: the project's own, those of published set-ups, and a tokenizer's chat format.

A template is text alone, so that other tools can rebuild prompts from `calibration.json`. A chat
template writes the same around every user's message, so its text is found once, from two made-up
conversations, and becomes a template's start and end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter, ascii_uppercase
from typing import TYPE_CHECKING, Literal, NamedTuple

from cogcalib_jax.data.example import BadRow, Encoded, Example
from cogcalib_jax.data.formats import first_line
from cogcalib_jax.errors import DAMAGED, FieldError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates of reasoning models open an empty thought instead of waiting for one; those of Llama 3
# write this date, their own default, instead of today's, so that prompts do not change overnight.
_SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_PROBES = (
    ("Which colour has it?\nA. red\nB. blue\nAnswer:", "Xylophone"),
    ("Who wrote the book", "Zebra"),
)

Turn = tuple[str, str]
"""a user's message and the assistant's answer"""


class Prompt(NamedTuple):
    """A prompt; `completions[i]` is appended to it for option i."""

    prompt: str
    completions: tuple[str, ...]


_OF_QUESTION = frozenset({"passage", "question"})
_OF_OPTION = frozenset({"letter", "choice", "sentence", "label"})
_IN_BRACES = {
    "passage": _OF_QUESTION,
    "question": _OF_QUESTION,
    "option": _OF_OPTION,
    "completion": _OF_OPTION,
}


def _in_braces(text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:  # a single brace
        return {text}


@dataclass(frozen=True)
class Template:
    """The pieces of a prompt, in their order.

    `passage` and `question` may hold {passage} and {question}; the pieces of an option {letter}
    (A, B ...), {choice} (its text), {sentence} (the same with a capital and a full stop) and
    {label} (its label in the row: the letter, but "1" in some rows of ARC).
    """

    passage: str
    """left out for an example without a passage"""
    question: str
    option: str | tuple[str, ...]
    """once for each option; or a text for each, in their order"""
    end: str
    completion: str | tuple[str, ...]
    """the answer after the prompt; or the text of each answer itself, of which there may be more
    than options"""
    stop: str = ""
    """ends the answer to an open question, in training and in generated text"""
    start: str = ""
    """the text before every question: solved ones, the header of a chat"""
    cut: Literal["middle", "end"] = "middle"
    """the part that a passage loses if it is too long"""

    def __post_init__(self) -> None:
        for field, known in _IN_BRACES.items():
            piece = getattr(self, field)
            for text in (piece,) if isinstance(piece, str) else piece:
                if not _in_braces(text) <= known:
                    raise FieldError(
                        field,
                        f"is {text!r:.60}; expected {' or '.join(sorted(known))} in braces. Write"
                        " {{ and }} for braces themselves",
                    )

    def __call__(self, example: Example) -> Prompt:
        """Return the prompt of `example` (BadRow: more options than letters, or an open question
        that would not end)."""
        if example.is_open and not self.stop:
            raise BadRow("is an open question, and this prompt has options; use --data.prompt qa")
        uses_letters = "{letter}" in "".join((*self.option, *self.completion))
        if uses_letters and len(example.choices) > len(ascii_uppercase):
            raise BadRow(
                f"has {len(example.choices)} choices, more than letters; use --data.prompt cloze"
            )
        options = _options(example)
        for piece in () if example.is_open else (self.option, self.completion):
            if isinstance(piece, tuple) and len(piece) < len(example.choices):
                raise BadRow(f"has {len(example.choices)} choices, and the prompt has {len(piece)}")
        texts = {"passage": example.passage, "question": example.question}
        pieces = [
            self.start,
            self.passage.format(**texts) if example.passage else "",
            self.question.format(**texts),
            *_for_each(self.option, options),
            self.end,
        ]
        if isinstance(self.completion, str):
            completions = _for_each(self.completion, options)
        else:
            completions = self.completion
        stop = self.stop if example.is_open else ""
        return Prompt("".join(pieces), tuple(text + stop for text in completions))

    def solved(self, example: Example) -> Prompt:
        """Return the prompt of `example` with its right answer alone, without the stop."""
        prompt, completions = self(example)
        right = completions[example.answer]
        return Prompt(prompt, (right.removesuffix(self.stop) if example.is_open else right,))

    def after(self, shots: Sequence[Example]) -> Template:
        """Return this template with solved questions and a blank line after each before it."""
        solved = (f"{prompt}{answer}" for prompt, (answer,) in map(self.solved, shots))
        return replace(self, start="".join(text + "\n\n" for text in solved))


def _options(example: Example) -> list[dict[str, str]]:
    letters = ascii_uppercase.ljust(len(example.choices))
    labels = example.extra.get("labels")
    # A user's row may have a field of this name that means something else.
    if not isinstance(labels, list | tuple) or len(labels) != len(example.choices):
        labels = letters
    return [
        {"letter": letter, "choice": choice, "sentence": sentence(choice), "label": label}
        for letter, choice, label in zip(letters, example.choices, labels, strict=False)
    ]


def _for_each(piece: str | tuple[str, ...], options: list[dict[str, str]]) -> list[str]:
    pieces = [piece] * len(options) if isinstance(piece, str) else piece
    return [text.format(**one) for text, one in zip(pieces, options, strict=False)]


def sentence(text: str) -> str:
    """Return `text` with a capital first letter and a full stop."""
    text = text if text.endswith(".") else f"{text}."
    return text[0].upper() + text[1:]


PROMPTS: dict[str, Template] = {
    # Multiple choice by letter.
    "letters": Template(
        passage="{passage}\n",
        question="{question}",
        option="\n{letter}. {choice}",
        end="\nAnswer:",
        completion=" {letter}",
    ),
    # The option's own text continues the question.
    "cloze": Template(
        passage="{passage}\n", question="{question}", option="", end="", completion=" {choice}"
    ),
    # An open question; its answer is one line.
    "qa": Template(
        passage="{passage}\n\n",
        question="Question: {question}",
        option="",
        end="\nAnswer:",
        completion=" {choice}",
        stop="\n",
    ),
}


# Published set-ups: prompt, splits and answer tokens of other people's code, oddities included.
# docs/protocols.md lists the oddities and what is not reproduced.
CLEAN = "clean"
"""the project's own protocol"""
# Replaced by the EOS of tokenizers of the Llama 2 kind: the published code sets `add_eos_token`,
# which other tokenizer classes did not know when it was published.
_EOS = "{eos}"
_LLAMA_2_EOS = "</s>"


@dataclass(frozen=True)
class Published:
    """Prompt and splits of one task under a protocol."""

    template: Template
    splits: Mapping[str, str] | None
    """our split -> the stored one; None: those of the task"""
    choices: int | None = None
    """rows with another number of choices are left out; None: all are used"""

    def template_for(self, tokenizer: PreTrainedTokenizerBase) -> Template:
        """Return the template with the end that the published code gives it with `tokenizer`."""
        eos = _LLAMA_2_EOS if tokenizer.eos_token == _LLAMA_2_EOS else ""
        return replace(self.template, end=self.template.end.replace(_EOS, eos))


# Neither repository ever scores the test split of a task it trains on.
_SPLITS = {"train": "train", "test": "validation"}

# BLoB and TFB: github.com/Wang-ML-Lab/bayesian-peft at 7d96008, dataset/utils/dsets.py.
_LABEL = "Return the label of the correct answer for the question below.\n\nQuestion: {question}"
_BLOB = Template(
    passage="",
    question=f"{_LABEL}\nChoices:",
    option="\n{letter}) {choice}",
    end="\nAnswer:",
    completion=" {letter}",
)
# `zip(choices["text"], choices["label"])` is unpacked as label, text: "text) label". Five classes
# are scored whatever the number of choices.
_BLOB_ARC = replace(_BLOB, option="\n{choice}) {label}", completion=(" A", " B", " C", " D", " E"))
_BLOB_WINOGRANDE = Published(replace(_BLOB, end=f"\nAnswer:{_EOS}"), _SPLITS)

# Laplace-LoRA: github.com/adamxyang/laplace-lora at 434e0a4, run_gpt.py.
_SELECT = "Select one of the choices that answers the following question: {question} Choices:"
_LAPLACE = Template(
    passage="",
    question=_SELECT,
    option=" {letter}. {sentence}",
    end=" Answer:",
    completion=" {letter}",
)
_LAPLACE_LETTERED = Published(_LAPLACE, _SPLITS, choices=4)
_LAPLACE_WINOGRANDE = Published(
    # The second option has no dot after its letter.
    replace(_LAPLACE, option=(" A. {choice}.", " B {choice}.")),
    _SPLITS,
)

PROTOCOLS: dict[str, dict[str, Published]] = {
    "bayesian_peft": {
        "openbookqa": Published(
            # "Chioces" is theirs, and text and label change places as in ARC.
            replace(_BLOB, question=f"{_LABEL}\nChioces:", option="\n{choice}) {label}"),
            _SPLITS,
        ),
        "arc_challenge": Published(_BLOB_ARC, _SPLITS),
        "arc_easy": Published(_BLOB_ARC, _SPLITS),
        "winogrande_s": _BLOB_WINOGRANDE,
        "winogrande_m": _BLOB_WINOGRANDE,
        "boolq": Published(
            Template(
                passage="",
                question="Read the passage below and answer the question with the words 'true' or"
                " 'false'.\n\nPassage: {passage:.1024}\nQuestion: {question}",
                option="",
                end=f"\nAnswer (true or false):{_EOS}",
                # The right answer's token is labels[int(answer)] of ("True", "False"): so "False"
                # stands for yes. Training learns it.
                completion=(" False", " True"),
                cut="end",
            ),
            _SPLITS,
        ),
        # Out of domain: scored, never trained on.
        "mmlu": Published(_BLOB, None),
    },
    "laplace_lora": {
        "openbookqa": _LAPLACE_LETTERED,
        "arc_challenge": _LAPLACE_LETTERED,
        "arc_easy": _LAPLACE_LETTERED,
        "winogrande_s": _LAPLACE_WINOGRANDE,
        "winogrande_m": _LAPLACE_WINOGRANDE,
        "boolq": Published(
            Template(
                passage="",
                question="Answer the question with only True or False: {question}"
                " Context: {passage}",
                option="",
                end=_EOS,
                completion=(" True", " False"),
                cut="end",
            ),
            _SPLITS,
        ),
    },
}


def published(protocol: str, task: str) -> Published | None:
    """Return the set-up of `task` under `protocol`; None for the project's own protocol."""
    return None if protocol == CLEAN else PROTOCOLS[protocol][task]


def verbaliser_notes(
    protocol: str, row: Encoded, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Return a note if the tokens scored are not those of the published code.

    The published code scores the last token of each answer's text alone. Tokenizers of the Llama 2
    kind write the same token after a prompt; others do not.
    """
    for text, ids in zip(row.completions, row.completion_ids, strict=True):
        alone = tokenizer(text.strip(), add_special_tokens=False)["input_ids"][-1]
        if ids != (alone,):
            return (
                f"protocol {protocol} scores token {alone} for {text.strip()!r}; with this"
                f" tokenizer {text!r} after a prompt is {' '.join(map(str, ids))}, which is scored"
                " here (docs/protocols.md)",
            )
    return ()


class _Frame(NamedTuple):
    """The text that a chat template writes around the last user message and around an answer."""

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
    """Return `template` as a user's message, with its answer as the assistant's.

    The prompt is the conversation up to the answer, special tokens written out. Spaces at its end
    go to the completions, since most tokenizers write a space and the next word as one token.
    `stop` is the end-of-turn, or the tokenizer's end of text if the chat template has none.

    shots: solved questions, which become earlier turns.

    Raises:
        UserError: no chat template, or one that fails, thinks before it answers, changes the
            messages, or (`is_open`) never ends an answer.
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
    """Return the SHA-256 of the tokenizer's chat template."""
    _require_chat(tokenizer)
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()


def chat_notes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return notes on the chat template that a user should know."""
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
    """Return the conversation as text, up to the answer if it ends with a `question`."""
    # Imported here: transformers needs it only once a chat is rendered.
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
    # A template is a program: it may add values that are no text, divide by zero, count too far or
    # call itself for ever. ValueError also: several templates, and none that is the default.
    except (*DAMAGED, TemplateError) as error:
        reason = first_line(error)
        raise _refusal(tokenizer, f"cannot write a conversation ({reason})") from error


def _refusal(tokenizer: PreTrainedTokenizerBase, what: str) -> UserError:
    return UserError(
        f"data.prompt = chat: the chat template of tokenizer {tokenizer.name_or_path} {what}; use"
        " data.prompt auto, or a tokenizer with another chat template"
    )
