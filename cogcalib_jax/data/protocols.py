"""Published set-ups: prompt, splits and answer tokens of other people's code, oddities included.

docs/protocols.md lists the oddities and what is not reproduced. The training recipes are presets in
configs/protocols/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cogcalib_jax.data.example import Encoded
from cogcalib_jax.data.prompts import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLEAN = "clean"
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
