"""Open questions of a tiny vocabulary, and a tokenizer that can write them and end an answer."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, Example

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
NAMES = tuple(f"{a}{b}" for a in ("ba", "de", "ko", "mi") for b in ("lo", "ra", "tu", "si"))
# The line end stands where the tiny model of the tests ends some answers with it and others not.
WORDS = (
    *("Question:", "Answer:", "Proposed", "answer:", "Is", "the", "proposed", "A.", "B."),
    *("A", "B", "True", "\n", "False", "who", "is", "of", "?"),
    *NAMES,
)
VOCAB = len(SPECIAL) + len(WORDS)
DATA = DataConfig(task="custom", path="rows.jsonl", prompt="qa", max_length=40)


def open_tokenizer() -> PreTrainedTokenizerFast:
    """Words and line ends are tokens; spaces are not."""
    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return open_tokenizer()


def open_examples(n: int, seed: int = 0) -> list[Example]:
    """Questions of 3 to 6 words with one or two accepted answers of one or two words."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(NAMES, int(rng.integers(low, high + 1))))

    examples = []
    for i in range(n):
        aliases = tuple(dict.fromkeys(words(1, 2) for _ in range(1 + i % 2)))
        question = f"who is the {words(1, 4)} {NAMES[i % 16]} {NAMES[i // 16]} ?"
        examples.append(Example(f"q{i}", question, aliases[:1], 0, aliases=aliases))
    return examples


def encoded(examples: Sequence[Example]) -> EncodedSplit:
    return encode_split("test", examples, tokenizer(), DATA)[0]


def save(folder: Path) -> None:
    """tokenizer.json and its settings, beside a model."""
    open_tokenizer().save_pretrained(str(folder))
