"""Damaged and made-up files: each is used, or refused in one line, and none costs more memory than
it has bytes."""

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.cli.eval_config import load_evaluation
from cogcalib_jax.cli.evaluated import stored_for
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import from_yaml, load_config
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.data.task import load_questions
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import adapter_hash, base_hash, read_calibration
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.files import INDEX_FILE, SINGLE_FILE, open_folder
from cogcalib_jax.hf.merge import MergeConfig
from cogcalib_jax.hf.tokenizer import load_tokenizer
from cogcalib_jax.hf.weights import load_decoder, read_config
from cogcalib_jax.inference.scored_rows import read_scored
from cogcalib_jax.models.parameters import abstract_decoder
from tests.calibration.rows import with_start
from tests.golden.families import FAMILIES
from tests.method.registered import own_names
from tests.models.small import one_device
from tests.reliability.place import ADAPTER_WEIGHTS, question

# The same examples in every run: a failure in CI is one that anybody can repeat.
FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# What reading may take beside the file itself: messages, headers as Python objects.
SLACK_BYTES = 8_000_000

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**12, 10**30, -(10**30), 0.5, 1e308, -0.0]),
    st.sampled_from([float("nan"), float("inf")]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


def paths(value, at=()):
    """The way to every value within a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(item, (*at, key))


def put(value, path, new):
    """A copy of a JSON value with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


@st.composite
def altered(draw, value):
    """A JSON value of which one or two parts are something else, as bytes, sometimes cut off."""
    for _ in range(draw(st.integers(1, 2))):
        value = put(value, draw(st.sampled_from(list(paths(value)))), draw(JSON))
    return draw(damaged(json.dumps(value).encode(), often=False))


@st.composite
def damaged(draw, content, often=True):
    """Bytes with some of them flipped, lost or put in."""
    if not often and draw(st.integers(0, 4)):
        return content
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "cut", "lose", "insert"])):
            case "flip" if content:
                content[at] ^= draw(st.integers(1, 255))
            case "cut":
                del content[at:]
            case "lose":
                del content[at : at + draw(st.integers(1, 9))]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=9))
    return bytes(content)


@pytest.fixture(scope="module")
def place(good, tmp_path_factory):
    """Copies of a base and an adapter, to be damaged over and over."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("base", "adapter"):
        shutil.copytree(good / name, folder / name)
    return folder


def holds(use, size: int = 0):
    """`use` succeeds or refuses in one line that can be read, in memory that `size` bounds."""
    tracemalloc.start()
    try:
        return use()
    except UserError as error:
        message = str(error)
        assert message and "Traceback" not in message and len(message) < 5000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * size + SLACK_BYTES, peak


@st.composite
def headers(draw):
    """A safetensors file with a made-up header."""
    offsets = st.tuples(NUMBERS, NUMBERS) | st.just((0, 8)) | JSON
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F16", "F64", "I64", "BOOL", "F8_E4M3", "X"]),
            "shape": st.lists(NUMBERS, max_size=3) | st.just([2]) | JSON,
            "data_offsets": offsets,
        }
    )
    names = st.sampled_from(["model.embed_tokens.weight", "model.norm.weight", "__metadata__", ""])
    header = draw(st.dictionaries(names | st.text(max_size=5), entry | JSON, max_size=3))
    text = json.dumps(header).encode()
    length = draw(st.just(len(text)) | st.integers(0, 2**64 - 1))
    return struct.pack("<Q", length) + text + draw(st.binary(max_size=16))


def weights_of(place, content):
    file = place / "base" / SINGLE_FILE
    file.write_bytes(content)

    def use():
        for tensor in open_folder(file.parent).values():
            tensor.read()
        base_hash(file.parent)
        load_decoder(file.parent, mesh=one_device())

    return use


@FUZZ
@given(content=headers())
def test_made_up_headers_of_safetensors(place, content):
    holds(weights_of(place, content), len(content))


@FUZZ
@given(data=st.data())
def test_damaged_safetensors(place, good, data):
    content = data.draw(damaged((good / "base" / SINGLE_FILE).read_bytes()))
    holds(weights_of(place, content), 4 * len(content))  # a model is made of it
    (place / "base" / SINGLE_FILE).write_bytes((good / "base" / SINGLE_FILE).read_bytes())


@FUZZ
@given(data=st.data())
def test_damaged_indices_of_shards(place, good, data):
    base = place / "sharded"
    base.mkdir(exist_ok=True)
    shutil.copy(good / "base" / SINGLE_FILE, base / "a.safetensors")
    index = {"metadata": {"total_size": 8}, "weight_map": {"model.norm.weight": "a.safetensors"}}
    shards = st.sampled_from(["..", "", "/etc/passwd", "../a", "a/b", "a\0", "\n", "x" * 300])
    content = data.draw(
        altered(index) | shards.map(lambda name: json.dumps({"weight_map": {"x": name}}).encode())
    )
    (base / INDEX_FILE).write_bytes(content)
    holds(lambda: open_folder(base))


@FUZZ
@given(data=st.data())
def test_altered_config_json(place, good, data):
    raw = json.loads((good / "base" / "config.json").read_text())
    more = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "layer_types": None}
    (place / "base" / "config.json").write_bytes(data.draw(altered(raw) | altered(raw | more)))
    (place / "base" / SINGLE_FILE).write_bytes((good / "base" / SINGLE_FILE).read_bytes())

    def use():
        if read_config(place / "base").num_layers < 50:
            load_decoder(place / "base", mesh=one_device())

    holds(use, 100_000)


@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_altered_config_json_of_every_family(place, data):
    """What is accepted makes a model whose shapes fit together."""
    halves = {"mistral3": "ministral3", "gemma3": "gemma3"}
    every = FAMILIES | {
        f"half of {name}": {"model_type": name, "text_config": FAMILIES[text]}
        for name, text in halves.items()
    }
    raw = every[data.draw(st.sampled_from(sorted(every)))]
    (place / "base" / "config.json").write_bytes(data.draw(altered(raw)))

    def use():
        config = read_config(place / "base")
        if config.num_layers < 50:
            graphdef, state = abstract_decoder(config, None, jnp.float32, one_device())

            def logits(state, ids):
                model = nnx.merge(graphdef, state)
                return model.logits(model.hidden_states(ids))

            jax.eval_shape(logits, state, jax.ShapeDtypeStruct((1, 8), jnp.int32))

    holds(use, 100_000)


@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_damaged_tokenizers(place, good, data):
    folder = place / "tokenizer"
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(good / "base" / name, folder / name)
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    raw = json.loads((folder / name).read_text())
    if name == "tokenizer.json":  # most of it is the vocabulary
        words = dict(list(raw["model"]["vocab"].items())[:5])
        raw["model"]["vocab"] = data.draw(st.sampled_from([raw["model"]["vocab"], words]))
    (folder / name).write_bytes(data.draw(altered(raw)))

    def use():
        tokenizer = load_tokenizer(folder)
        rows = place / "rows.jsonl"
        rows.write_text("".join(json.dumps(question(n)) + "\n" for n in range(30)))
        config = DataConfig(task="custom", path=str(rows), prompt="cloze")
        encode_split("test", load_splits(config, 0).test, tokenizer, config)

    holds(use)


@FUZZ
@given(data=st.data())
def test_altered_adapters(place, good, data):
    folder = place / "adapter"
    raw = json.loads((good / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_bytes(data.draw(altered(raw)))
    weights = (good / "adapter" / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(data.draw(damaged(weights, often=False)))
    calibration = {"base": {"hash": "0", "name": "b"}, "temperature": {"value": 1.0, "rows": 3}}
    (folder / "calibration.json").write_bytes(data.draw(altered(calibration)))
    holds(lambda: read_lora_config(folder), len(weights))
    holds(lambda: read_calibration(folder))
    scores, labels, _, start = with_start(n=20, short=False)
    name = data.draw(st.sampled_from(own_names(CALIBRATORS)))
    fitted = CALIBRATORS.make(name).fit(scores, labels, start_scores=start)
    calibration |= {"calibrator": fitted.to_json(), "calibrator_options": list("ABCD")}
    calibration |= {"adapter_sha256": adapter_hash(folder), "start_adapter_sha256": None}
    (folder / "calibration.json").write_bytes(data.draw(altered(calibration)))

    def answer():
        if (found := stored_for(folder, "mean")) is not None:
            found.calibrator(scores, start_scores=start)

    holds(answer)


PRESET = """\
seed: 3
model: {path: base, dtype: float32}
data:
  task: custom
  path: rows.jsonl
lora: {rank: 4, targets: [q_proj, v_proj]}
training:
  epochs: 2
  batch_size: 8
method: {name: cols, weight: 0.5}
compare: [sft, cols]
"""
YAML_MARKS = st.sampled_from(
    [*"[]{}:,-?&*!|>'\"%@`#\n\t \0\ufeff", "---\n", "!!python/name:os ", "&a [*a]", "<<: ", "1e999"]
)


@FUZZ
@given(data=st.data())
def test_damaged_presets(data):
    text = PRESET
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        new = data.draw(YAML_MARKS | st.text(max_size=4) | NUMBERS.map(str))
        text = text[:at] + new + text[at + data.draw(st.integers(0, 6)) :]
    holds(lambda: from_yaml(RunConfig, text, "p.yaml"))


FIELDS = ("question", "choices", "answer", "id", "group", "extra")


@FUZZ
@given(data=st.data())
def test_made_up_rows(place, data):
    file = place / "made.jsonl"
    good = {**question(), "id": "a", "group": "g"}
    lines = [json.dumps(question(n)).encode() for n in range(12)]
    for _ in range(data.draw(st.integers(1, 3))):
        row = altered(good) | st.dictionaries(st.sampled_from(FIELDS), JSON).map(
            lambda row: json.dumps(row).encode()
        )
        lines.append(data.draw(row | st.binary(max_size=20)))
    file.write_bytes(b"\n".join(lines))
    on_bad_row = data.draw(st.sampled_from(["error", "skip"]))
    config = DataConfig(task="custom", path=str(file), on_bad_row=on_bad_row)
    holds(lambda: load_splits(config, 0))
    holds(lambda: load_questions(file))


SCORED = (
    {"option_probs": [0.25, 0.75], "answer": 1, "extra": {"subject": "x"}},
    {"option_logprobs": [-1.0, -2.0], "answer": 0},
    {"confidence": 0.5, "correct": True},
)


@FUZZ
@given(data=st.data())
def test_made_up_predictions(place, data):
    row = data.draw(st.sampled_from(SCORED))
    lines = [json.dumps(row).encode(), data.draw(altered(row) | st.binary(max_size=20))]
    file = place / "scored.jsonl"
    file.write_bytes(b"\n".join(lines))
    holds(lambda: read_scored(file))


OPTIONS = st.sampled_from(
    [
        *("--seed", "--lora.r", "--lora.target-modules", "--training.learning-rate", "--data.path"),
        *("--method.name", "--method.gate", "--compare", "--mesh.tensor", "--model.attention"),
        *("--task", "--run", "--by", "--predict", "--out", "--adapter", "--max-shard-gb", "--lora"),
        *("--world.entities", "--world.other-relations", "--=", "--", "-1", "--resume"),
    ]
)
VALUES = st.one_of(
    NUMBERS.map(str),
    st.text(max_size=8),
    st.sampled_from(["", "none", "true", "[]", "sft,cols", "world:x", "a=b", "all-linear", "\0"]),
)


@settings(FUZZ, max_examples=80)
@given(st.lists(OPTIONS | VALUES, max_size=7))
def test_made_up_command_lines(words):
    words = [word for word in words if word not in ("--help", "-h", "--config")]
    holds(lambda: load_config(RunConfig, words, prog="", description=""))
    holds(lambda: load_config(MergeConfig, words, prog="", description=""))
    holds(lambda: load_evaluation(words, prog="", description=""))


def test_the_bound_on_memory_can_fail():
    with pytest.raises(AssertionError):
        holds(lambda: bytearray(2 * SLACK_BYTES))


def test_the_fuzzed_files_are_read_where_nothing_is_wrong(good: Path):
    """So that what the tests above see refused is refused for its damage."""
    load_decoder(good / "base", mesh=one_device())
    read_lora_config(good / "adapter")
    load_tokenizer(good / "base")
    from_yaml(RunConfig, PRESET.replace("compare", "# compare"), "p.yaml")
