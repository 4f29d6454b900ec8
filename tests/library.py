"""A small base in Hugging Face layout and questions in memory, for tests of the Python API."""

from functools import cache
from pathlib import Path

import cogcalib_jax as cc
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.models.config import DecoderConfig
from tests.examples.scored import write_tokenizer
from tests.models.small import one_device, small_decoder

# A question need not be shared by eight devices.
ONE = one_device()
LORA = cc.LoraConfig(r=2, lora_alpha=4, target_modules=("q_proj", "lm_head"))
SIZES = {"calibration_rows": 16, "validation_rows": 8, "test_rows": 12}


def write_base(folder: Path) -> Path:
    """Write random weights and a tokenizer of bytes, in which " A" is one token."""
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder).get_vocab_size()
    config = DecoderConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_layers=1,
        num_heads=4,
        kv_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    save_decoder(small_decoder(config), folder / "weights")
    for file in (folder / "weights").iterdir():
        file.rename(folder / file.name)
    (folder / "weights").rmdir()
    return folder


@cache
def rows(count: int = 80) -> tuple[dict, ...]:
    """Questions of four choices whose right one depends on the question."""
    names = ("red", "blue", "green", "white")
    return tuple(
        {"question": f"Box {i}?", "choices": [f"{n} {i}" for n in names], "answer": i * 7 % 4}
        for i in range(count)
    )


def task(**settings) -> cc.Task:
    return cc.Task.from_rows(rows(), prompt="letters", **(SIZES | settings))
