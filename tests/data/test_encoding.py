"""Token ids agree with what transformers gives for the text alone, on several tokenizers."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import (
    encode_split,
    pmi_prefix,
    special_prefix,
)
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_splits, load_test
from cogcalib_jax.data.prompts import PROMPTS
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.tokenizer import load_tokenizer

WORDS = ["question", "answer", "where", "is", "the", "cat", "dog", "red", "green", "blue", "..."]


def byte_level(template=None):
    """A byte-level BPE with a few merges; `template` places special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3 + ["\nA.\nB.\nAnswer: A"] * 3, trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def word_level(words=()):
    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def example(question="where is the cat", choices=("red", "green"), passage="", name="x"):
    return Example(id=name, question=question, choices=choices, answer=0, passage=passage)


def config(**fields):
    return DataConfig(**{"task": "custom", "path": "unused", **fields})


def encode(examples, tokenizer, **fields):
    return encode_split("test", examples, tokenizer, config(**fields))


def assert_rescorable(encoded, tokenizer):
    """The text alone gives the same ids: what a reader of a prediction row relies on."""
    for row in encoded:
        assert tokenizer(row.prompt)["input_ids"] == list(row.prompt_ids)
        for text, ids in zip(row.completions, row.completion_ids, strict=True):
            assert tokenizer(row.prompt + text)["input_ids"] == [*row.prompt_ids, *ids]
            assert tokenizer.decode(list(ids)).strip() == text.strip()
        if tokenizer.bos_token_id is not None:
            assert list(row.prompt_ids).count(tokenizer.bos_token_id) == 1
            assert row.prompt_ids[0] == tokenizer.bos_token_id


REAL_TOKENIZERS = {
    "qwen": "tokenizers/Qwen2.5-base",
    "mistral": "tokenizers/Mistral-7B-v0.1",
    "stories": "models/stories260K",
}


@pytest.fixture(scope="module", params=REAL_TOKENIZERS)
def real_tokenizer(request, realdata):
    return request.param, load_tokenizer(realdata / REAL_TOKENIZERS[request.param])


@pytest.fixture(scope="module")
def real_rows(realdata):
    """50 rows of each task, its longest ones among them."""

    def rows(task, folder):
        test, _ = load_test(DataConfig(task=task, path=str(realdata / folder)), 0)
        longest = sorted(test, key=lambda e: -len(e.passage + e.question))
        return [*longest[:20], *test[:30]]

    tasks = {"openbookqa": "openbookqa", "winogrande_m": "winogrande", "boolq": "boolq"}
    return {task: rows(task, folder) for task, folder in tasks.items()}


@pytest.mark.parametrize("prompt", ["letters", "cloze"])
@pytest.mark.parametrize("task", ["openbookqa", "winogrande_m", "boolq"])
def test_50_real_rows_are_rescorable_from_their_text(real_tokenizer, real_rows, task, prompt):
    name, tokenizer = real_tokenizer
    rows = real_rows[task]
    encoded, notes = encode(rows, tokenizer, prompt=prompt)
    assert len(encoded) == len(rows) == 50
    assert_rescorable(encoded, tokenizer)
    assert max(len(e.prompt_ids) + len(c) for e in encoded for c in e.completion_ids) <= 300
    assert bool(notes) == (task == "boolq")
    if prompt == "letters" and name != "stories":
        assert EncodedSplit.of(encoded).single_token_options


def test_a_letter_in_context_is_the_token_with_the_space(realdata):
    """Qwen has "A" and " A"; a bare letter would be a token the model never sees there."""
    qwen = load_tokenizer(realdata / REAL_TOKENIZERS["qwen"])
    encoded, _ = encode([example()], qwen)
    assert [qwen.convert_ids_to_tokens(ids[0]) for ids in encoded[0].completion_ids] == ["ĠA", "ĠB"]


def test_options_of_several_tokens_are_kept_whole(realdata):
    stories = load_tokenizer(realdata / REAL_TOKENIZERS["stories"])
    encoded, _ = encode([example()], stories)
    assert [len(ids) for ids in encoded[0].completion_ids] == [2, 1]
    assert not EncodedSplit.of(encoded).single_token_options


def test_options_that_share_a_first_token_are_kept_whole():
    encoded, _ = encode([example(choices=("red cat", "red dog"))], word_level(), prompt="cloze")
    first, second = encoded[0].completion_ids
    assert first[0] == second[0] and first != second
    assert not EncodedSplit.of(encoded).single_token_options


def test_world_level_words_are_single_tokens_without_bos():
    tokenizer = word_level()
    encoded, _ = encode([example(choices=("red", "green", "blue"))], tokenizer, prompt="cloze")
    assert encoded[0].prompt_ids == tuple(WORDS.index(w) + 1 for w in ("where", "is", "the", "cat"))
    assert [ids for (ids,) in encoded[0].completion_ids] == [
        WORDS.index(w) + 1 for w in ("red", "green", "blue")
    ]
    assert EncodedSplit.of(encoded).single_token_options


@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>", "$A </s>"])
def test_bos_stands_once_where_the_tokenizer_puts_it_and_eos_never(template):
    tokenizer = byte_level(template)
    encoded, _ = encode([example()], tokenizer)
    ids = list(encoded[0].prompt_ids) + list(encoded[0].completion_ids[0])
    assert ids.count(0) == ids[:1].count(0) == (1 if template and "<s>" in template else 0)
    assert ids.count(1) == 0


@settings(max_examples=60, deadline=None)
@given(
    passage=st.text(st.sampled_from(string.ascii_letters + " \n\t.é中"), min_size=60, max_size=400),
    max_length=st.integers(40, 80),
)
def test_a_long_passage_loses_its_middle_and_nothing_else(passage, max_length):
    passage = passage.strip()
    tokenizer = byte_level("<s> $A")
    row = example(passage=passage)
    encoded, notes = encode([row], tokenizer, max_length=max_length)
    text = encoded[0].prompt
    fixed = "where is the cat\nA. red\nB. green\nAnswer:"
    assert text.endswith(fixed)
    assert_rescorable(encoded, tokenizer)
    longest = len(encoded[0].prompt_ids) + max(map(len, encoded[0].completion_ids))
    assert longest <= max_length
    kept = text.removesuffix(fixed).removesuffix("\n")
    if not notes:
        assert kept == passage
    elif kept:
        head, _, tail = kept.rpartition(" ...")
        assert passage.startswith(head) and passage.endswith(tail.strip())
        assert len(head) + len(tail) <= len(passage)


def test_as_much_of_the_passage_stays_as_fits():
    words = [f"w{i}" for i in range(40)]
    tokenizer = word_level(words)
    encoded, notes = encode(
        [example(passage=" ".join(words))], tokenizer, prompt="cloze", max_length=20
    )
    # 4 words of the question, 1 of the answer, "...", and 14 of the passage.
    assert encoded[0].prompt.split("\n")[0].split() == [*words[:7], "...", *words[-7:]]
    assert len(encoded[0].prompt_ids) == 19
    assert notes == ("test: 1 of 1 passages lost their middle to fit into 20 tokens",)


def test_a_huge_passage_without_a_space_is_cut_too():
    encoded, _ = encode([example(passage="ab" * 50_000)], byte_level(), max_length=60)
    assert len(encoded[0].prompt_ids) <= 60
    assert encoded[0].prompt.startswith("abab")


def test_a_question_that_does_not_fit_is_refused_or_skipped():
    rows = [example(question="cat " * 50, passage="dog dog", name="long"), example(name="short")]
    with pytest.raises(UserError, match="row long: .*even without its passage.*data.max_length"):
        encode(rows, byte_level(), max_length=60)
    encoded, notes = encode(rows, byte_level(), max_length=60, on_bad_row="skip")
    assert [row.id for row in encoded] == ["short"]
    assert notes[0].startswith("test: 1 of 2 rows cannot be encoded")
    with pytest.raises(UserError, match="no row can be encoded"):
        encode(rows[:1], byte_level(), max_length=60, on_bad_row="skip")


def test_an_option_that_merges_with_the_prompt_is_refused():
    """A tokenizer without pre-tokenisation may merge across the seam: "t", " b" -> "t b"."""
    bpe = models.BPE(
        {c: i for i, c in enumerate([*"catrb e", "t ", "t b"])}, [("t", " "), ("t ", "b")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe))
    row = example(question="cat", choices=("be", "ae"))
    with pytest.raises(UserError, match="row x: option ' be' cannot be scored"):
        encode([row], tokenizer, prompt="cloze")


def test_options_that_cannot_be_told_apart_are_refused():
    row = example(choices=("unheard", "unseen"))
    with pytest.raises(UserError, match="row x: two of its options have the same tokens"):
        encode([row], word_level(), prompt="cloze")


@pytest.mark.parametrize("field", ["question", "passage", "choices"])
def test_a_special_token_written_as_text_is_refused(field):
    value = ("a <s> b", "c") if field == "choices" else "a <s> b"
    with pytest.raises(UserError, match="special token '<s>'"):
        encode([example(**{field: value})], byte_level())


@pytest.mark.parametrize("pad", ["<pad>", "!", "red"])
def test_a_padding_token_may_stand_in_a_text_as_in_transformers(pad):
    tokenizer = byte_level("<s> $A")
    tokenizer.add_special_tokens({"pad_token": pad})
    encoded, _ = encode([example(f"where is {pad} the cat{pad}")], tokenizer)
    assert_rescorable(encoded, tokenizer)
    assert pad in encoded[0].prompt


def test_a_padding_token_that_the_tokenizer_does_not_use_may_stand_in_a_text():
    tokenizer = byte_level("<s> $A")
    tokenizer.add_tokens(["[PAD]", "<spare>"], special_tokens=True)
    assert tokenizer.pad_token is None
    encoded, _ = encode([example("where is [PAD] the cat")], tokenizer)
    assert_rescorable(encoded, tokenizer)
    with pytest.raises(UserError, match="special token '<spare>'"):
        encode([example("where is <spare>")], tokenizer)


def test_a_padding_token_that_ends_texts_is_refused_in_one():
    tokenizer = byte_level("<s> $A")
    tokenizer.pad_token = "</s>"
    with pytest.raises(UserError, match="special token '</s>'"):
        encode([example("where is </s>")], tokenizer)


def test_auto_is_the_tasks_own_prompt():
    splits = load_splits(DataConfig(), 0)
    config = DataConfig(on_bad_row="skip")
    words = sorted(
        {w for e in splits.test[:9] for w in f"{e.question} {' '.join(e.choices)}".split()}
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, words[0]))
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoded, _ = encode_split("test", splits.test[:9], tokenizer, config)
    assert encoded[0].prompt == splits.test[0].question
    assert EncodedSplit.of(encoded).single_token_options


@pytest.mark.parametrize(
    "content",
    [b'{"a":', b"{}", b"[]", b"\xff", b'{"added_tokens": [], "model": {"type": "x"}}'],
)
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(UserError, match="cannot load a tokenizer|tokenizer.json: (not JSON|must)"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_there_and_one_with_its_own_code_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}'
    )
    (tmp_path / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(UserError, match="Python code, which is never run"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]},
        {"tokenizer_file": "/elsewhere/tokenizer.json"},
        {"vocab": "vocab.json", "merges": "merges.txt"},
        {"init_inputs": ["../vocab.json", "../merges.txt"]},
    ],
)
def test_a_tokenizer_that_names_files_elsewhere_is_refused(entry, tmp_path):
    byte_level("<s> $A").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | entry))
    with pytest.raises(UserError, match=f"{next(iter(entry))} may name files outside its folder"):
        load_tokenizer(tmp_path)
    leftovers = {"special_tokens_map_file": "/home/them/special_tokens_map.json"}
    plain = {"vocab_file": None, "fast_tokenizer_files": ["tokenizer.json"], "init_inputs": []}
    file.write_text(json.dumps(settings | leftovers | plain))
    load_tokenizer(tmp_path)


def test_a_saved_tokenizer_is_loaded_again(tmp_path):
    byte_level("<s> $A").save_pretrained(tmp_path)
    encoded, _ = encode([example()], load_tokenizer(tmp_path))
    assert encoded == encode([example()], byte_level("<s> $A"))[0]


def test_an_open_question_of_a_task_with_options_is_asked_as_qa_and_its_answer_ends():
    row = Example("x", "where is the cat", ("red",), 0, aliases=("red", "green"))
    encoded, _ = encode([row], byte_level("<s> $A"))
    assert encoded[0].prompt == "Question: where is the cat\nAnswer:"
    assert encoded[0].completions == (" red\n",)
    assert encoded.is_open and not encoded.single_token_options


def test_a_tokenizer_that_knows_no_latin_letter_keeps_what_it_puts_before_a_text():
    vocabulary = {word: i for i, word in enumerate(["<s>", "猫", "は", "何", "?", "赤", "青"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    assert tokenizer.encode("a").ids == [0]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    assert special_prefix(fast) == [0]


def test_a_special_token_is_refused_also_where_it_stands_for_the_unknown():
    tokenizer = byte_level("<s> $A")
    tokenizer.unk_token = "</s>"
    with pytest.raises(UserError, match="special token '</s>'"):
        encode([example("what does </s> mean ?")], tokenizer)


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


def test_text_that_the_tokenizer_does_not_know_is_noted():
    rows = [example(), example(choices=("red", "東京"), name="y")]
    _, notes = encode(rows, word_level(), prompt="cloze")
    assert notes == (
        "test: 1 of 2 rows hold text that the tokenizer does not know, for which the model reads"
        " '<unk>' (the first: y)",
    )
