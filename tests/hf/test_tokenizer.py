"""An adapter's own tokenizer is used, or refused where it contradicts the base's."""

import json
import shutil

import pytest
from tokenizers import pre_tokenizers

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.tokenizer import (
    combined_files,
    load_base_tokenizer,
    load_tokenizer,
    own_tokenizer,
    tokenizer_files,
    tokenizer_key,
)
from tests.data.chats import CHATML, LLAMA_3, chat_tokenizer
from tests.golden.families import FAMILIES

ROWS = len(chat_tokenizer(None)) + 2
MESSAGE = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def base(tmp_path):
    chat_tokenizer(CHATML).save_pretrained(tmp_path / "base")
    config = FAMILIES["llama3"] | {"vocab_size": ROWS}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter").mkdir()
    return tmp_path / "adapter"


def load(base, adapter):
    return own_tokenizer(base, adapter, load_tokenizer(base), ROWS)


def conversation(tokenizer):
    return tokenizer.apply_chat_template(MESSAGE, tokenize=False)


def test_an_adapter_without_tokenizer_files_has_the_bases(base, adapter):
    theirs = load_tokenizer(base)
    assert own_tokenizer(base, adapter, theirs, ROWS) == (theirs, ())
    assert tokenizer_key(base, adapter) == tokenizer_key(base, None) == ""


def test_a_copy_of_the_bases_files_changes_nothing(base, adapter):
    for name, file in tokenizer_files(base).items():
        shutil.copyfile(file, adapter / name)
    assert tokenizer_key(base, adapter) == ""


@pytest.mark.parametrize("stored_as", ["whole", "file", "entry"])
def test_its_own_chat_template_is_used_and_noted(base, adapter, stored_as):
    own = chat_tokenizer(LLAMA_3)
    if stored_as == "whole":
        own.save_pretrained(adapter)
    elif stored_as == "file":
        (adapter / "chat_template.jinja").write_text(LLAMA_3)
    else:
        assert (base / "chat_template.jinja").is_file()
        settings = json.loads((base / "tokenizer_config.json").read_text())
        settings["chat_template"] = LLAMA_3
        (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer, notes = load(base, adapter)
    assert conversation(tokenizer) == conversation(own)
    assert tokenizer.name_or_path == str(adapter)
    (note,) = notes
    assert note.startswith("the chat template is that of the adapter")
    assert tokenizer_key(base, adapter)


def test_an_adapters_tokenizer_without_a_chat_template_leaves_the_bases(base, adapter):
    chat_tokenizer(None).save_pretrained(adapter)
    tokenizer, notes = load(base, adapter)
    assert conversation(tokenizer) == conversation(chat_tokenizer(CHATML)) and notes == ()


def test_other_special_tokens_around_a_text_are_used_and_noted(base, adapter):
    chat_tokenizer(CHATML, adds_bos=False).save_pretrained(adapter)
    tokenizer, (note,) = load(base, adapter)
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    assert note.startswith("the special tokens around a text")


@pytest.mark.parametrize("added", [2, 3])
def test_added_tokens_need_a_row_of_the_bases_embedding(base, adapter, added):
    own = chat_tokenizer(CHATML)
    own.add_tokens([f"<new-{i}>" for i in range(added)])
    own.save_pretrained(adapter)
    if added == 2:
        assert load(base, adapter)[0].convert_tokens_to_ids("<new-1>") == ROWS - 1
        return
    with pytest.raises(UserError, match=f"adds '<new-2>' with the id {ROWS}; expected"):
        load(base, adapter)


def test_a_token_without_a_row_that_the_base_has_as_well_is_no_reason_to_refuse(base, adapter):
    for folder, template in ((base, CHATML), (adapter, LLAMA_3)):
        tokenizer = chat_tokenizer(template)
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.save_pretrained(folder)
    raw = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(raw | {"vocab_size": ROWS - 2}))
    tokenizer = load_base_tokenizer(base, adapter, note=lambda _: None)
    assert conversation(tokenizer) == conversation(chat_tokenizer(LLAMA_3))
    assert tokenizer.without_embedding == {"<pad>"}


def other_ids(own):
    content = json.loads(own.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return content


def other_cuts(own):
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return json.loads(own.backend_tokenizer.to_str())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_ids, "token 'a' has the id .*, the base's"),
        (other_cuts, "it cuts 'Question.* into other tokens"),
    ],
)
def test_a_tokenizer_that_gives_other_ids_is_refused(base, adapter, change, says):
    content = change(chat_tokenizer(CHATML))
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^{adapter}: its tokenizer contradicts .*{says}") as told:
        load(base, adapter)
    assert "\n" not in str(told.value)


def test_a_damaged_tokenizer_is_named_by_the_adapters_folder(base, adapter):
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=f"^{adapter}/tokenizer.json: not JSON"):
        load(base, adapter)


def test_the_adapters_files_take_the_place_of_the_bases(base, adapter):
    (adapter / "chat_template.jinja").write_text(LLAMA_3)
    files = combined_files(base, adapter)
    assert files["chat_template.jinja"].parent == adapter
    assert files["tokenizer.json"].parent == base
    assert "config.json" not in files
