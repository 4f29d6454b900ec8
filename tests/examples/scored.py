"""A trained model as train.py leaves it, its questions as a user has them, and our scores of both.

The tokenizer knows bytes, and the letters behind a space: so " A" is one token and any other text
is several, and no option of the cloze prompt is the beginning of a single token.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from types import ModuleType

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from cogcalib_jax.cli.method_run import write_calibration
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.formats import Row
from cogcalib_jax.data.tasks.custom import settle
from cogcalib_jax.hf.adapter import save_adapter
from cogcalib_jax.hf.tokenizer import load_tokenizer
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.posthoc import choose_probe, reduced_adapter
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.config import DecoderConfig, ModelConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import split_model
from tests.models.small import one_device, small_decoder

BOS = "<s>"
CHAT = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>\n{{ message.content }}</>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
LORA = LoraConfig(r=2, lora_alpha=3, target_modules=("q_proj", "down_proj", "lm_head"))
SHOT = {"question": "Is it {hot}?", "choices": ["yes", "no"], "answer": 1}
QUESTIONS = [
    {"question": "Which {letter} is it?", "choices": ["this", "that {choice}", "né 日"]},
    {"question": "When?", "choices": ["now", "later on"], "passage": None},
    {"question": " Where? ", "choices": ["here", "over there"], "passage": "A walk.\nIt rained."},
    {"question": "How many?", "choices": ["one", "two", "3", "four", "a lot more than that"]},
    {"question": "Who?", "choices": ["she", "he"], "passage": "{passage} she {question}"},
]


def example(name: str) -> ModuleType:
    """A file of examples/, by its path: other packages put an `examples` on the import path."""
    file = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Scored:
    """A run's parts."""

    folder: Path
    """holds base/, adapter/ and questions.jsonl"""
    config: RunConfig
    decoder: Decoder
    encoded: EncodedSplit
    predictions: Predictions


def scored(
    folder: Path, prompt: str, option_score: str, answers=(0, 1, 1, 3, 0), few_shot: int = 0
) -> Scored:
    base = folder / "base"
    rows = [row | {"answer": a} for row, a in zip(QUESTIONS, answers, strict=True)]
    base.mkdir(parents=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = write_tokenizer(base)
    shape = DecoderConfig(
        model_type="llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        kv_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    )
    config = RunConfig(
        data=DataConfig(task="custom", path=str(folder), prompt=prompt, few_shot=few_shot),
        model=ModelConfig(path=str(base)),
        lora=LORA,
        method=MethodConfig(name="cols", space="options"),
        option_score=option_score,
        evaluation=EvaluationConfig(batch_size=2),
    )
    decoder = small_decoder(shape, lora=LORA)
    save_decoder(small_decoder(shape), folder / "weights")
    for file in (folder / "weights").iterdir():
        file.rename(base / file.name)
    save_adapter(folder / "adapter", decoder, base)
    tokenizer = load_tokenizer(base)
    read = settle([Row("rows", number, row) for number, row in enumerate([*rows, SHOT])], {})
    examples = [read(row, number) for number, row in enumerate(rows)]
    shots = [read(SHOT, -1)] * few_shot
    encoded, _ = encode_split("test", examples, tokenizer, config.data, shots)
    model, lora = split_model(decoder)
    predictor = Predictor(model, one_device(), config.evaluation, option_score)
    predictions = predictor(lora, encoded)
    reduced = predictor(reduced_adapter(lora, touches_head=True), encoded)
    probe = choose_probe(encoded, predictions, reduced)
    write_calibration(
        folder / "adapter", config, base, tokenizer, encoded, predictions, probe=probe
    )
    return Scored(folder, config, decoder, encoded, predictions)


def write_tokenizer(folder: Path) -> Tokenizer:
    space = "\u0120"  # how byte-level tokenizers write a space
    letters = [space + letter for letter in ascii_uppercase]
    tokens = [BOS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *letters]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[(space, letter) for letter in ascii_uppercase],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    tokenizer.add_special_tokens([BOS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer
