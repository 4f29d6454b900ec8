"""A base for runs: random weights over a small world's words, in Hugging Face layout."""

from pathlib import Path
from typing import Any

from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.world.config import WorldConfig
from cogcalib_jax.world.corpus import build_tokenizer, save_tokenizer
from tests.models.small import small_decoder

WORLD = WorldConfig(entities=32, train=24, test=16, validation=12, calibration=40, style=16)


def write_base(folder: Path, **changes: Any) -> Path:
    """changes: fields of the DecoderConfig."""
    sizes = {
        "model_type": "llama",
        "vocab_size": build_tokenizer(WORLD).get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 1,
        "num_heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = DecoderConfig(**sizes | changes)
    folder.mkdir(parents=True, exist_ok=True)
    save_decoder(small_decoder(config), folder)
    save_tokenizer(WORLD, folder, 64)
    return folder


def arguments(base: Path, run_dir: Path, *more: str) -> list[str]:
    """A run of a second or two, apart from compiling."""
    sizes = {name: getattr(WORLD, name) for name in ("entities", "train", "test", "validation")}
    sizes |= {"calibration": WORLD.calibration, "style": WORLD.style}
    options = {
        "model.path": base,
        "run-dir": run_dir,
        **{f"world.{name}": size for name, size in sizes.items()},
        "lora.r": 2,
        "lora.lora_dropout": 0.1,
        "training.epochs": 2,
        "training.batch-size": 8,
        "training.learning-rate": 0.01,
        "training.style-steps": 2,
        "training.log-every": 1,
        "evaluation.resamples": 100,
    }
    return [*(str(part) for name, value in options.items() for part in (f"--{name}", value)), *more]
