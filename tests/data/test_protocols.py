"""Published set-ups: prompts are compared with text copied by hand from the published format."""

import json

import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split, template_of
from cogcalib_jax.data.example import Example
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.data.prompts import PROTOCOLS
from cogcalib_jax.data.tasks import lettered
from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.hf.tokenizer import load_tokenizer
from tests.data.chats import chat_tokenizer

FOUR = ("soil", "water.", "The sun", "air")
OBQA = Example("x", "Plants need", FOUR, 2)
THREE = Example("x", "Plants need", FOUR[:3], 2)
NUMBERED = Example("x", "Plants need", FOUR, 2, extra={"labels": ["1", "2", "3", "4"]})
WINOGRANDE = Example("x", "Ann thanked Bea since _ had helped.", ("Ann", "Bea"), 1)
BOOLQ = Example("x", "is water wet", ("yes", "no"), 0, passage="p" * 1030)
MMLU = Example("x", "2 + 2 =", ("3", "4", "5", "6"), 1)

BLOB_LABEL = "Return the label of the correct answer for the question below.\n\n"
BLOB_ARC_OPTIONS = (
    "Question: Plants need\nChoices:\nsoil) A\nwater.) B\nThe sun) C\nair) D\nAnswer:"
)
SELECT = "Select one of the choices that answers the following question: "
LETTERS = (" A", " B", " C", " D", " E")
# (protocol, task, example) -> prompt after BOS with a tokenizer whose EOS is </s>, and the answers.
PUBLISHED = [
    (
        "bayesian_peft",
        "openbookqa",
        OBQA,
        BLOB_LABEL
        + "Question: Plants need\nChioces:\nsoil) A\nwater.) B\nThe sun) C\nair) D\nAnswer:",
        LETTERS[:4],
    ),
    ("bayesian_peft", "arc_challenge", OBQA, BLOB_LABEL + BLOB_ARC_OPTIONS, LETTERS),
    (
        "bayesian_peft",
        "arc_easy",
        NUMBERED,
        BLOB_LABEL
        + "Question: Plants need\nChoices:\nsoil) 1\nwater.) 2\nThe sun) 3\nair) 4\nAnswer:",
        LETTERS,
    ),
    (
        "bayesian_peft",
        "arc_easy",
        THREE,
        BLOB_LABEL + "Question: Plants need\nChoices:\nsoil) A\nwater.) B\nThe sun) C\nAnswer:",
        LETTERS,
    ),
    (
        "bayesian_peft",
        "winogrande_s",
        WINOGRANDE,
        BLOB_LABEL + "Question: Ann thanked Bea since _ had helped.\n"
        "Choices:\nA) Ann\nB) Bea\nAnswer:</s>",
        LETTERS[:2],
    ),
    (
        "bayesian_peft",
        "boolq",
        BOOLQ,
        "Read the passage below and answer the question with the words 'true' or 'false'.\n\n"
        f"Passage: {'p' * 1024}\nQuestion: is water wet\nAnswer (true or false):</s>",
        (" False", " True"),
    ),
    (
        "bayesian_peft",
        "mmlu",
        MMLU,
        BLOB_LABEL + "Question: 2 + 2 =\nChoices:\nA) 3\nB) 4\nC) 5\nD) 6\nAnswer:",
        LETTERS[:4],
    ),
    (
        "laplace_lora",
        "openbookqa",
        OBQA,
        SELECT + "Plants need Choices: A. Soil. B. Water. C. The sun. D. Air. Answer:",
        LETTERS[:4],
    ),
    (
        "laplace_lora",
        "arc_challenge",
        NUMBERED,
        SELECT + "Plants need Choices: A. Soil. B. Water. C. The sun. D. Air. Answer:",
        LETTERS[:4],
    ),
    (
        "laplace_lora",
        "winogrande_m",
        WINOGRANDE,
        SELECT + "Ann thanked Bea since _ had helped. Choices: A. Ann. B Bea. Answer:",
        LETTERS[:2],
    ),
    (
        "laplace_lora",
        "boolq",
        BOOLQ,
        f"Answer the question with only True or False: is water wet Context: {'p' * 1030}</s>",
        (" True", " False"),
    ),
]


@pytest.mark.parametrize(("protocol", "task", "example", "prompt", "answers"), PUBLISHED)
def test_a_prompt_is_the_published_text(protocol, task, example, prompt, answers):
    config = DataConfig(task=task, protocol=protocol)
    template = template_of(config, chat_tokenizer(None), is_open=False)
    assert template(example) == (prompt, answers)


def test_tokenizers_that_knew_no_eos_setting_get_none():
    tokenizer = chat_tokenizer(None)
    tokenizer.eos_token = "<|im_end|>"
    config = DataConfig(task="boolq", protocol="bayesian_peft")
    prompt = template_of(config, tokenizer, is_open=False)(BOOLQ).prompt
    assert prompt.endswith("Answer (true or false):")


def test_yes_is_the_token_false_in_bayesian_peft_alone():
    """labels[int(answer)] with labels ("True", "False"): index 1, for yes, is "False"."""
    answers = {}
    for protocol in PROTOCOLS:
        config = DataConfig(task="boolq", protocol=protocol)
        template = template_of(config, chat_tokenizer(None), is_open=False)
        answers[protocol] = template(BOOLQ).completions[BOOLQ.answer]
    assert answers == {"bayesian_peft": " False", "laplace_lora": " True"}


def test_rows_keep_unusual_labels_for_prompts_that_show_them():
    def row(*labels):
        return {
            "id": "x",
            "question": "Plants need",
            "choices": {"text": list(FOUR), "label": list(labels)},
            "answerKey": labels[2],
        }

    read = lettered("question")
    assert read(row("1", "2", "3", "4"), 0) == NUMBERED
    assert read(row("A", "B", "C", "D"), 0) == OBQA


def arc_rows(folder):
    """12 training rows, 3 with three choices, and 3 of each other split, one with five."""
    folder.mkdir()
    for split, rows, odd in (("train", 12, 3), ("validation", 3, 5), ("test", 3, 5)):
        lines = []
        for i in range(rows):
            k = odd if i < (3 if split == "train" else 1) else 4
            choices = {"text": [f"{split} {i} {c}" for c in range(k)], "label": [*"ABCDE"[:k]]}
            content = {"id": f"{split}{i}", "question": f"{split} {i}?", "choices": choices}
            lines.append(json.dumps(content | {"answerKey": "B"}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_validation_split_is_the_test_set(protocol, tmp_path):
    path = arc_rows(tmp_path / "arc")
    config = DataConfig(task="arc_easy", path=path, protocol=protocol, calibration_rows=2)
    splits = load_splits(config, 0)
    used = ["validation1", "validation2"]
    if protocol == "bayesian_peft":
        used = ["validation0", *used]
    assert [e.id for e in splits.test] == used
    from_train = [e.id for name, rows in splits.items() for e in rows if name != "test"]
    assert len(from_train) == {"bayesian_peft": 12, "laplace_lora": 9}[protocol]
    assert all(name.startswith("train") for name in from_train)
    if protocol == "laplace_lora":
        note = "3 of 12 rows do not have 4 choices and were left out, as protocol laplace_lora does"
        assert f"{path} train: {note}" in splits.notes


def encode(example, tokenizer, **fields):
    return encode_split("test", [example], tokenizer, DataConfig(**fields))


def test_llama_2_like_tokens_are_the_published_ones_and_others_are_said(realdata):
    """Published: the last token of the answer's text alone."""
    mistral = load_tokenizer(realdata / "tokenizers/Mistral-7B-v0.1")
    fields = {"task": "winogrande_s", "protocol": "bayesian_peft"}
    split, notes = encode(WINOGRANDE, mistral, **fields)
    alone = [mistral(x, add_special_tokens=False)["input_ids"][-1:] for x in "AB"]
    assert [list(ids) for ids in split[0].completion_ids] == alone and not notes
    assert split[0].prompt_ids[-1] == mistral.eos_token_id
    qwen = load_tokenizer(realdata / "tokenizers/Qwen2.5-base")
    split, notes = encode(WINOGRANDE, qwen, **fields)
    assert split[0].completion_ids == ((362,), (425,))
    assert notes[0].startswith("protocol bayesian_peft scores token 32 for 'A'")


def test_a_passage_too_long_loses_its_end_and_nothing_before_it():
    row = Example("x", "is water wet", ("yes", "no"), 0, passage="one two three " * 40)
    fields = {"task": "boolq", "protocol": "laplace_lora", "max_length": 150}
    split, notes = encode(row, chat_tokenizer(None), **fields)
    start = "Answer the question with only True or False: is water wet Context: "
    kept = split[0].prompt.removeprefix(start).removesuffix("</s>")
    assert row.passage.startswith(kept) and 40 < len(kept) < 100
    assert "1 of 1 passages lost their end" in notes[0]


def test_an_answer_without_an_option_is_a_class_of_its_own():
    split, _ = encode(OBQA, chat_tokenizer(None), task="arc_easy", protocol="bayesian_peft")
    assert len(split[0].completion_ids) == 5 and split.options == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "blob"}, "protocol: must be a protocol .*clean, bayesian_peft, laplace_lora"),
        (
            {"protocol": "laplace_lora", "task": "commonsense_qa"},
            "protocol: must be clean for task commonsense_qa: laplace_lora covers openbookqa, arc",
        ),
        ({"protocol": "bayesian_peft", "prompt": "letters"}, "prompt: must be auto: .*fixes the"),
        ({"protocol": "bayesian_peft", "prompt": "chat"}, "prompt: must be auto"),
        ({"protocol": "bayesian_peft", "few_shot": 1}, "few_shot: must be 0: protocol"),
    ],
)
def test_a_contradiction_with_a_protocol_is_refused(fields, message):
    with pytest.raises((FieldError, UserError), match=message):
        DataConfig(**{"task": "openbookqa", **fields})
