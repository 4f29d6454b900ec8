"""Bad models: tokenizers and weights."""

import json
import os
import pickle
from pathlib import Path

import numpy as np

from tests.reliability.case import EVAL, Case
from tests.reliability.place import WEIGHTS, Pickle, Place, cut, link_out, tensors, write

EMBEDDING = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def file(name: str, content: object):
    """A run on a base in which one file has another content; None removes it."""

    def arrange(place: Place) -> list[str]:
        base = place.base()
        if content is None:
            (base / name).unlink()
        else:
            write(base / name, content)
        return place.train()

    return arrange


def config(**changes):
    """A run on a base whose config.json says something else."""
    return lambda place: place.train(base=place.base(**changes))


def weights(change):
    """A run on a base with other tensors."""

    def arrange(place: Place) -> list[str]:
        tensors(place.base() / WEIGHTS, change)
        return place.train()

    return arrange


def index(shard: str):
    """A run on a base whose index names `shard`, where the weights are."""

    def arrange(place: Place) -> list[str]:
        base = place.base()
        target = Path(os.path.join(base, shard))
        target.parent.mkdir(parents=True, exist_ok=True)
        (base / WEIGHTS).rename(target)
        write(base / INDEX, {"weight_map": {EMBEDDING: shard}})
        return place.train()

    return arrange


def tokenizer(change, *more: str):
    """A run on a base with another tokenizer.json."""

    def arrange(place: Place) -> list[str]:
        file = place.base() / "tokenizer.json"
        write(file, change(json.loads(file.read_text())))
        return place.train(*more)

    return arrange


def _larger_vocabulary(raw):
    raw["model"]["vocab"]["zyzzyva"] = 10**6
    return raw


def _chat(template: str):
    def arrange(place: Place) -> list[str]:
        file = place.base() / "tokenizer_config.json"
        write(file, json.loads(file.read_text()) | {"chat_template": template})
        return place.train("--data.prompt", "chat")

    return arrange


def _own_code(place: Place) -> list[str]:
    base = place.base()
    write(base / "evil.py", "open('pwned', 'w')\nclass Evil: pass\n")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    write(base / "tokenizer_config.json", settings | own)
    return place.train()


def linked(name: str):
    """A run on a base in which a file is a link to one outside."""

    def arrange(place: Place) -> list[str]:
        link_out(place.base() / name)
        return place.train()

    return arrange


def _linked_shard(place: Place) -> list[str]:
    shard = "model-00001-of-00001.safetensors"
    argv = index(shard)(place)
    link_out(Path("base") / shard)
    return argv


def _only_one_shard(base: Path) -> None:
    (base / WEIGHTS).rename(base / "model-00001-of-00002.safetensors")


def only_index(content: object):
    """A run on a base whose weights are an index with this content."""

    def arrange(place: Place) -> list[str]:
        base = place.base()
        (base / WEIGHTS).unlink()
        write(base / INDEX, content)
        return place.train()

    return arrange


def damaged(change):
    """A run on a base that `change(folder)` was done to."""

    def arrange(place: Place) -> list[str]:
        change(place.base())
        return place.train()

    return arrange


def _set(file: Path, **values) -> None:
    write(file, json.loads(file.read_text()) | values)


def _no_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()


def _no_vocabulary(base: Path) -> None:
    """The class it names can be made with its special tokens alone."""
    (base / "tokenizer.json").unlink()
    _set(base / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


def _linked_template(base: Path) -> None:
    template = base / "additional_chat_templates" / "default.jinja"
    template.parent.mkdir()
    template.symlink_to(write(Path("private.jinja"), "{{ messages }}").resolve())


def _tokenizer_elsewhere(base: Path) -> None:
    write(Path("private/tokenizer.4.0.0.json"), (base / "tokenizer.json").read_text())
    names = ["../private/tokenizer.4.0.0.json"]
    _set(base / "tokenizer_config.json", fast_tokenizer_files=names)


def _predict_with_nan(place: Place) -> list[str]:
    tensors(place.base() / WEIGHTS, lambda t: t | {EMBEDDING: t[EMBEDDING] * np.nan})
    question = {"question": "who ?", "choices": ["born", "where"]}
    write(Path("mine.jsonl"), [question])
    argv = ["--model.path", "base", "--predict", "mine.jsonl", "--out", "answers.jsonl"]
    return [*argv, "--data.prompt", "cloze"]


def _folder_of_weights(base: Path) -> None:
    (base / WEIGHTS).unlink()
    (base / WEIGHTS).mkdir()


def _pipe_of_weights(base: Path) -> None:
    """Opened, it would wait for a writer that never comes."""
    (base / WEIGHTS).unlink()
    os.mkfifo(base / WEIGHTS)


def _promises_too_much(base: Path) -> None:
    (base / WEIGHTS).rename(base / "a.safetensors")
    write(base / INDEX, {"weight_map": {EMBEDDING: "a.safetensors", "b": "a.safetensors"}})


def _pickled_base(place: Place) -> list[str]:
    base = place.base()
    (base / WEIGHTS).unlink()
    write(base / "pytorch_model.bin", pickle.dumps(Pickle()))
    return place.train()


TOKENIZERS = [
    Case("no tokenizer", damaged(_no_tokenizer)),
    Case("a tokenizer without its vocabulary", damaged(_no_vocabulary)),
    Case("tokenizer.json cut off", damaged(lambda base: cut(base / "tokenizer.json"))),
    Case("tokenizer.json of another format", file("tokenizer.json", {"version": "9", "words": []})),
    Case("tokenizer.json that is not UTF-8", file("tokenizer.json", b"\xff\xfe{")),
    Case("tokenizer_config.json that is a list", file("tokenizer_config.json", "[1]")),
    Case(
        "tokenizer_config.json with a length that is a list",
        damaged(lambda base: _set(base / "tokenizer_config.json", model_max_length=[])),
    ),
    Case("ids beyond the embedding", tokenizer(_larger_vocabulary)),
    Case("a tokenizer with code of its own", _own_code),
    Case("a chat prompt without a chat template", lambda p: p.train("--data.prompt", "chat")),
    Case("a chat template that is no template", _chat("{% for m in messages %}")),
    Case(
        "a chat template that reaches for Python's insides",
        _chat("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
    ),
    Case(
        "a chat template that counts to a billion",
        _chat("{% for i in range(1000000000) %}x{% endfor %}"),
    ),
    Case("tokenizer.json that links out of its folder", linked("tokenizer.json")),
    Case(
        "a chat template in a folder below that links out of it",
        damaged(_linked_template),
    ),
    Case(
        "tokenizer_config.json that names a tokenizer elsewhere",
        damaged(_tokenizer_elsewhere),
    ),
]

WEIGHT_FILES = [
    Case("a base that is not there", lambda p: p.train(base=Path("missing"))),
    Case("no config.json", file("config.json", None)),
    Case("config.json that is no JSON", file("config.json", "{")),
    Case("config.json nested 100,000 deep", file("config.json", "[" * 100_000)),
    Case("config.json that is a list", file("config.json", "[]")),
    Case("another family", config(model_type="gpt2")),
    Case("a family that is a list", config(model_type=["llama"])),
    Case("quantised weights", config(quantization_config={"bits": 4})),
    Case("a size missing", config(hidden_size=None)),
    Case("a negative size", config(vocab_size=-5)),
    Case("a size in words", config(num_hidden_layers="one")),
    Case("a size with a fraction", config(hidden_size=32.5)),
    Case("no heads", config(num_attention_heads=0)),
    Case(
        "a width the heads do not divide",
        config(num_attention_heads=5, num_key_value_heads=5, head_dim=None),
    ),
    Case("a vocabulary of 10 to the 12", config(vocab_size=10**12)),
    Case("a billion layers", config(num_hidden_layers=10**9)),
    Case("a width beyond 64 bits", config(hidden_size=10**30)),
    Case("RoPE of another type", config(rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
    Case("RoPE parameters that are a list", config(rope_scaling=[1, 2])),
    Case("RoPE with a base in words", config(rope_theta="large", rope_scaling=None)),
    Case("no weights", file(WEIGHTS, None)),
    Case("a named pipe where the weights should be", damaged(_pipe_of_weights)),
    Case("weights as a pickle", _pickled_base),
    Case("an empty weights file", file(WEIGHTS, b"")),
    Case("weights cut off", damaged(lambda base: cut(base / WEIGHTS))),
    Case("a header of 2 to the 64 bytes", file(WEIGHTS, b"\xff" * 64)),
    Case("a header that is no JSON", file(WEIGHTS, (16).to_bytes(8, "little") + b"x" * 16)),
    Case(
        "a folder where the weights should be",
        damaged(_folder_of_weights),
    ),
    Case(
        "a tensor of whole numbers",
        weights(lambda t: t | {EMBEDDING: t[EMBEDDING].astype(np.int64)}),
    ),
    Case(
        "a weight that is not a number",
        _predict_with_nan,
        EVAL,
    ),
    Case("a tensor missing", weights(lambda t: {n: a for n, a in t.items() if n != EMBEDDING})),
    Case("a tensor too many", weights(lambda t: t | {"model.extra": np.zeros(2, np.float32)})),
    Case(
        "a tensor of another shape", weights(lambda t: t | {EMBEDDING: t[EMBEDDING][:, :-1].copy()})
    ),
    Case(
        "an index that is no JSON",
        only_index("{"),
    ),
    Case(
        "an index without a map",
        only_index({"weight_map": [1]}),
    ),
    Case(
        "an index that names a missing shard",
        only_index({"weight_map": {EMBEDDING: "a.safetensors"}}),
    ),
    Case("shards without their index, and one missing", damaged(_only_one_shard)),
    Case(
        "an index that names a tensor no shard holds",
        damaged(_promises_too_much),
    ),
    Case("an index that leaves its folder", index("../shard.safetensors")),
    Case("an index with an absolute path", only_index({"weight_map": {EMBEDDING: "/etc/passwd"}})),
    Case("weights that link out of their folder", linked(WEIGHTS)),
    Case("a shard that links out of its folder", _linked_shard),
    Case("config.json that links out of its folder", linked("config.json")),
]
