"""The world's word-level tokenizer, in the layout `transformers.AutoTokenizer` reads."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cogcalib_jax.data.world import WorldConfig, vocabulary

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN)


def build_tokenizer(config: WorldConfig) -> Tokenizer:
    """One token per word of the world; encoding puts BOS in front, once, and adds no EOS."""
    words = (*SPECIAL_TOKENS, *vocabulary(config))
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(config: WorldConfig, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; `max_length` is the model's context."""
    build_tokenizer(config).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **_settings(max_length)}
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def tokenizer_in_memory(config: WorldConfig, max_length: int) -> PreTrainedTokenizerFast:
    """What loading the files of `save_tokenizer` gives, without any file."""
    tokenizer = build_tokenizer(config)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_settings(max_length))


def _settings(max_length: int) -> dict[str, Any]:
    return {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": max_length,
        "padding_side": "right",
        # Words are joined by spaces; cleaning up would remove the one before a question mark.
        "clean_up_tokenization_spaces": False,
    }
