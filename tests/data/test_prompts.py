"""Prompts, letter by letter; chat prompts are those of transformers, token for token."""

from dataclasses import replace

import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import answer_stop, encode_split
from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.prompts import PROMPTS
from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.hf.tokenizer import load_tokenizer
from tests.data.chats import (
    ALWAYS_THINKING,
    BOS,
    CHATML,
    DATED,
    ENDLESS,
    LLAMA_2,
    LLAMA_3,
    MISTRAL,
    SPACED,
    TEMPLATES,
    chat_tokenizer,
)


def example(n_choices=2, passage=""):
    choices = tuple(f"choice {i}" for i in range(n_choices))
    return Example(id="x", question="Which?", choices=choices, answer=0, passage=passage)


def test_letters_show_passage_question_and_options_and_end_before_the_answer():
    prompt, completions = PROMPTS["letters"](example(passage="Some text."))
    assert prompt == "Some text.\nWhich?\nA. choice 0\nB. choice 1\nAnswer:"
    assert completions == (" A", " B")


def test_letters_without_a_passage_have_no_empty_line():
    assert PROMPTS["letters"](example())[0].startswith("Which?\nA. ")


def test_letters_serve_26_options_and_no_more():
    assert PROMPTS["letters"](example(26)).completions[-1] == " Z"
    with pytest.raises(BadRow, match="27 choices"):
        PROMPTS["letters"](example(27))


def test_a_prompt_of_ones_own_says_what_is_wrong_with_it():
    letters = PROMPTS["letters"]
    for piece in ("{q}", '{"q": {question}}', "{choice}"):
        with pytest.raises(FieldError, match="question: .*expected passage or question in braces"):
            replace(letters, question=piece)
    braces = replace(letters, question="{{{question}}}")
    assert braces(example()).prompt.startswith("{" + example().question + "}")
    for field in ("option", "completion"):
        short = replace(letters, **{field: (" A", " B")})
        with pytest.raises(BadRow, match="has 4 choices, and the prompt has 2"):
            short(example(4))


def test_cloze_continues_the_question_with_the_options_text():
    prompt, completions = PROMPTS["cloze"](example(27, passage="Some text."))
    assert prompt == "Some text.\nWhich?"
    assert completions[:2] == (" choice 0", " choice 1")


def open_example(**fields):
    return Example(
        **{"id": "x", "question": "Who?", "choices": ("Ada",), "answer": 0, **fields},
        aliases=("Ada", "Ada L."),
    )


def test_qa_asks_for_a_line_and_ends_it():
    prompt, completions = PROMPTS["qa"](open_example(passage="Some text."))
    assert prompt == "Some text.\n\nQuestion: Who?\nAnswer:"
    assert completions == (" Ada\n",)
    assert PROMPTS["qa"](open_example()).prompt == "Question: Who?\nAnswer:"


def test_the_option_of_a_closed_question_has_no_stop_text():
    assert PROMPTS["qa"](example()).completions == (" choice 0", " choice 1")


@pytest.mark.parametrize("name", ["letters", "cloze"])
def test_a_prompt_that_would_not_end_refuses_an_open_question(name):
    with pytest.raises(BadRow, match="open question.*--data.prompt qa"):
        PROMPTS[name](open_example())


ROW = Example("x", "Which {one}?", ("this", "that"), 1, passage="A walk.\nIt rained.")
OPEN = Example("x", "Who wrote it?", ("Ada",), 0, aliases=("Ada", "Ada L."))
SHOTS = (Example("s", "Is it hot?", ("yes", "no"), 1), Example("t", "Cold?", ("no", "yes"), 0))
USER = "A walk.\nIt rained.\nWhich {one}?\nA. this\nB. that\nAnswer:"


def encode(row, tokenizer, shots=(), **fields):
    config = DataConfig(
        **{
            "task": "custom",
            "path": "unused",
            "prompt": "chat",
            "max_length": 999,
            "few_shot": len(shots),
            **fields,
        }
    )
    split, notes = encode_split("test", [row], tokenizer, config, shots)
    return split[0], notes


def conversation(tokenizer, *turns, **more):
    """Token ids as transformers gives them for a conversation that ends with a user's message,
    or an assistant's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=len(turns) % 2 == 1,
        enable_thinking=False,
        return_dict=False,
        **more,
    )


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_and_its_answer_are_the_whole_conversation(name, adds_bos):
    tokenizer = chat_tokenizer(TEMPLATES[name], adds_bos)
    row, _ = encode(ROW, tokenizer)
    prompt_ids = conversation(tokenizer, USER)
    assert list(row.prompt_ids) == prompt_ids
    assert prompt_ids.count(BOS) == (name in ("llama-3", "mistral"))
    for letter, ids in zip("AB", row.completion_ids, strict=True):
        whole = conversation(tokenizer, USER, letter)
        assert whole[: len(prompt_ids) + len(ids)] == [*prompt_ids, *ids]
    lead = " " if name == "mistral" else ""
    assert row.completions == (f"{lead}A", f"{lead}B")
    for text, ids in zip(row.completions, row.completion_ids, strict=True):
        again = tokenizer(row.prompt + text, add_special_tokens=False)["input_ids"]
        assert again == [*row.prompt_ids, *ids]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_open_answer_ends_with_the_end_of_turn(name):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    row, _ = encode(OPEN, tokenizer)
    user = "Question: Who wrote it?\nAnswer:"
    whole = conversation(tokenizer, user, "Ada")
    ids = [*row.prompt_ids, *row.completion_ids[0]]
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""
    end = {"llama-3": "<|eot_id|>", "mistral": "</s>"}.get(name, "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == end
    config = DataConfig(task="custom", path="unused", prompt="chat")
    assert answer_stop(config, tokenizer) == end


@pytest.mark.parametrize("template", [LLAMA_2, SPACED, ENDLESS])
def test_an_answer_is_the_conversations_tokens_whatever_stands_around_it(template, realdata):
    """With a tokenizer that writes a space and the word after it as one token."""
    tokenizer = load_tokenizer(realdata / "tokenizers/Mistral-7B-v0.1")
    tokenizer.chat_template = template
    row, _ = encode(ROW, tokenizer)
    for letter, ids in zip("AB", row.completion_ids, strict=True):
        whole = [*row.prompt_ids, *ids]
        assert conversation(tokenizer, USER, letter)[: len(whole)] == whole
        assert tokenizer.decode(list(ids)).strip() == letter
    open_row, _ = encode(OPEN, tokenizer)
    whole = [*open_row.prompt_ids, *open_row.completion_ids[0]]
    said = conversation(tokenizer, "Question: Who wrote it?\nAnswer:", "Ada")
    end = [tokenizer.eos_token_id] if template == ENDLESS else []
    assert [*said, *end] == whole


def test_spaces_at_the_end_of_a_prompt_go_to_its_answers():
    row, _ = encode(ROW, chat_tokenizer(SPACED))
    assert row.prompt.endswith("\nASSISTANT:")
    assert row.completions == (" A", " B")


def test_without_an_end_of_turn_an_open_answer_ends_with_the_end_of_text():
    config = DataConfig(task="custom", path="unused", prompt="chat")
    tokenizer = chat_tokenizer(ENDLESS)
    assert answer_stop(config, tokenizer) == "</s>"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="writes nothing after an answer, and the tokenizer has no"):
        encode(OPEN, tokenizer)
    encode(ROW, tokenizer)  # an option needs no end


@pytest.mark.parametrize("name", TEMPLATES)
def test_solved_questions_are_earlier_turns(name):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    row, _ = encode(ROW, tokenizer, SHOTS)
    turns = [
        *("Is it hot?\nA. yes\nB. no\nAnswer:", "B"),
        *("Cold?\nA. no\nB. yes\nAnswer:", "A"),
        USER,
    ]
    assert list(row.prompt_ids) == conversation(tokenizer, *turns)


def test_a_real_tokenizer_with_a_chat_format_gives_a_letter_without_a_space(realdata):
    qwen = load_tokenizer(realdata / "tokenizers/Qwen2.5-base")
    qwen.chat_template = CHATML
    row, _ = encode(ROW, qwen)
    assert list(row.prompt_ids) == conversation(qwen, USER)
    assert [qwen.convert_ids_to_tokens(list(ids)) for ids in row.completion_ids] == [["A"], ["B"]]
    mistral = load_tokenizer(realdata / "tokenizers/Mistral-7B-v0.1")
    mistral.chat_template = MISTRAL
    row, _ = encode(ROW, mistral, SHOTS)
    assert list(row.prompt_ids).count(mistral.bos_token_id) == 1 and row.prompt_ids[0] == 1
    assert [mistral.convert_ids_to_tokens(list(i)) for i in row.completion_ids] == [["▁A"], ["▁B"]]


def test_only_the_passage_is_cut_to_fit(realdata):
    tokenizer = chat_tokenizer(LLAMA_3)
    row, notes = encode(
        Example("x", "Which?", ("a", "b"), 0, passage="dog " * 200), tokenizer, max_length=150
    )
    assert 140 < len(row.prompt_ids) <= 149
    head, tail = "<s><|start_header_id|>user<|end_header_id|>\n\ndog dog", "<|end_header_id|>\n\n"
    assert row.prompt.startswith(head) and row.prompt.endswith(tail)
    assert "passages lost their middle" in notes[0]


def test_a_text_with_a_special_token_is_refused():
    row = Example("x", "What is <|im_end|>?", ("a", "b"), 0)
    with pytest.raises(UserError, match=r"row x: its text holds .* special token '<\|im_end\|>'"):
        encode(row, chat_tokenizer(CHATML))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; name a chat model"),
        (ALWAYS_THINKING, "always think first"),
        (CHATML.replace("{{ message.content }}", "{{ message.content | upper }}"), "changes the"),
        (CHATML.replace("{{ message.content }}", "Say {{ message.content | length }}"), "changes"),
        ("{{ messages[0].content | length }}" + CHATML, "different things around different"),
        ("{{ raise_exception('no users here') }}", r"cannot write .*\(no users here\)"),
        ("{{ messages[0].content + 1 }}", "cannot write a conversation"),
        ("{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}>{% endif %}"
         "{% if m.role == 'user' and not loop.last %}thought: {% endif %}{% endfor %}", "'thought"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_serve_is_one_clear_error(template, message):
    with pytest.raises(UserError, match=rf"^data.prompt = chat: .*{message}"):
        encode(ROW, chat_tokenizer(template))


def test_todays_date_is_kept_out_or_said():
    row, notes = encode(ROW, chat_tokenizer(DATED))
    assert row.prompt.startswith("<|im_start|>26 Jul 2024<|im_start|>system") and not notes
    dated = DATED.replace("(date_string or strftime_now('%d %b %Y'))", "strftime_now('%Y')")
    _, notes = encode(ROW, chat_tokenizer(dated))
    assert "differ from day to day" in notes[0]
