"""The ids after which an option is scored without its question."""

from pathlib import Path

import pytest

from cogcalib_jax.data.encoding import pmi_prefix
from cogcalib_jax.data.prompts import PROMPTS
from cogcalib_jax.hf.tokenizer import load_tokenizer
from tests.data.test_encoding import byte_level, encode, example, word_level

TOKENIZERS = Path(__file__).parents[2].parent / "shared" / "realdata" / "tokenizers"
BEFORE_ANSWER = {"letters": "Answer:", "cloze": "", "qa": "Answer:"}


@pytest.mark.parametrize("prompt", BEFORE_ANSWER)
def test_it_is_bos_and_what_stands_between_question_and_option(prompt):
    tokenizer = byte_level("<s> $A")
    text = BEFORE_ANSWER[prompt]
    wanted = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert pmi_prefix(PROMPTS[prompt], tokenizer) == tuple(wanted)


def test_the_end_of_text_stands_for_a_missing_bos():
    tokenizer = byte_level()
    tokenizer.bos_token = None
    assert pmi_prefix(PROMPTS["cloze"], tokenizer) == (tokenizer.eos_token_id,)


def test_without_both_there_is_none():
    assert pmi_prefix(PROMPTS["letters"], word_level()) is None


def test_a_split_holds_it_and_open_questions_have_none():
    tokenizer = byte_level("<s> $A")
    split, _ = encode([example()], tokenizer, prompt="letters")
    assert split.pmi_prefix_ids == pmi_prefix(PROMPTS["letters"], tokenizer)
    open_question = example(choices=("red",))
    object.__setattr__(open_question, "aliases", ("red",))
    split, _ = encode([open_question], tokenizer, prompt="qa")
    assert split.pmi_prefix_ids is None


@pytest.mark.parametrize(
    ("name", "first"), [("Mistral-7B-v0.1", "<s>"), ("Qwen2.5-base", "<|endoftext|>")]
)
@pytest.mark.parametrize("prompt", ["letters", "cloze"])
def test_real_tokenizers_with_and_without_bos(name, first, prompt):
    if not (TOKENIZERS / name).is_dir():
        pytest.skip("no real tokenizers here")
    tokenizer = load_tokenizer(TOKENIZERS / name)
    first_id, *rest = pmi_prefix(PROMPTS[prompt], tokenizer)
    assert tokenizer.convert_ids_to_tokens(first_id) == first
    assert tokenizer.decode(rest).strip() == BEFORE_ANSWER[prompt]
