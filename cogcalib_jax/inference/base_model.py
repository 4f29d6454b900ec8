"""A base model on its devices, and what was compiled for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import Calibrator
from cogcalib_jax.compile_cache import release_after_compiling
from cogcalib_jax.console import say
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.task import Prompting
from cogcalib_jax.errors import UserError, any_of
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, load_adapter, require_trained_on, save_adapter
from cogcalib_jax.hf.card import write_card
from cogcalib_jax.hf.files import model_folder
from cogcalib_jax.hf.tokenizer import copy_tokenizer, load_base_tokenizer
from cogcalib_jax.hf.weights import load_decoder, read_config, stored_dtype
from cogcalib_jax.inference.config import (
    DEFAULT_OPTION_SCORE,
    OPTION_SCORES,
    EvaluationConfig,
    OptionScore,
)
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.open_ended import OpenPredictor
from cogcalib_jax.inference.posthoc import fitted_elsewhere, how_asked
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.attention import attention_words
from cogcalib_jax.models.config import LoraConfig, ModelConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import FrozenModel, placement_notes, require_projections
from cogcalib_jax.sharding import mesh_words


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model with room for adapters of one form, which share its arrays and programs."""

    name: str
    """Hub id or folder"""
    decoder: Decoder
    """its structure; the arrays that count are `split.frozen`"""
    split: FrozenModel
    mesh: Mesh
    tokenizer: PreTrainedTokenizerBase
    steps: dict[Hashable, Callable] = field(default_factory=dict)
    """jitted updates, by all that they close over"""
    predictors: dict[int, Predictor] = field(default_factory=dict)
    """scorers of options, by their batch size"""

    def predictor(self, batch_size: int, option_score: OptionScore) -> Predictor:
        """Return what scores options by a rule, for any LoRA parameters of this form."""
        if option_score not in OPTION_SCORES:
            raise UserError(
                f"option_score is {option_score!r:.40}; expected {any_of(OPTION_SCORES)}"
            )
        if batch_size not in self.predictors:
            config = EvaluationConfig(batch_size=batch_size)
            self.predictors[batch_size] = Predictor(self.split, self.mesh, config)
        return self.predictors[batch_size].scored_by(option_score)

    def open_predictor(self, data: DataConfig, evaluation: EvaluationConfig) -> OpenPredictor:
        """Return what writes answers to open questions, for any LoRA parameters of this form."""
        scorer = self.predictor(evaluation.batch_size, DEFAULT_OPTION_SCORE)
        return OpenPredictor(self.split, evaluation, data, self.tokenizer, scorer)

    def read_adapter(self, folder: str | Path) -> nnx.State:
        """Return the LoRA parameters of an adapter of this form."""
        load_adapter(folder, self.decoder)
        return jax.tree.map(jnp.copy, nnx.state(self.decoder, nnx.LoRAParam))

    def save_adapter(
        self,
        folder: Path,
        lora: nnx.State,
        prompting: Prompting,
        option_score: OptionScore,
        calibrator: Calibrator | None,
    ) -> None:
        """Write LoRA parameters of this form in PEFT's layout, with the tokenizer, a
        `calibration.json` that says how the adapter is asked, and a card.

        Raises:
            UserError: a folder that cannot be written, or a calibrator that one adapter alone
                cannot apply.
        """
        fitted = fitted_elsewhere(calibrator)
        decoder = self.split.merge(lora)
        save_adapter(folder, decoder, self.name)
        if self.tokenizer.name_or_path == self.name:
            copy_tokenizer(self.name, None, folder)
        else:  # that of another adapter, or of the user
            self.tokenizer.save_pretrained(folder)
        template = prompting.with_options(self.tokenizer)
        stored = how_asked(
            *(folder, self.name, decoder.lora, prompting.data, template),
            *(self.tokenizer, option_score, self.split.quantise),
        )
        write_json(folder / CALIBRATION_FILE, stored | fitted)
        write_card(folder, self.name, decoder.lora)


def split_base(
    name: str, decoder: Decoder, tokenizer: PreTrainedTokenizerBase
) -> tuple[BaseModel, nnx.State]:
    """Return a decoder as a base, and its LoRA parameters (without leaves if it has none)."""
    graphdef, lora, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
    return BaseModel(name, decoder, FrozenModel(graphdef, frozen), decoder.mesh, tokenizer), lora


def load_base_model(
    settings: ModelConfig,
    mesh: Mesh,
    lora: LoraConfig | None,
    adapter: str | Path | None,
    seed: int,
) -> tuple[BaseModel, nnx.State]:
    """Load a base with its tokenizer; arguments and errors as for `load_on_mesh`."""
    tokenizer = load_base_tokenizer(str(settings.path), adapter)
    decoder = load_on_mesh(settings, mesh, lora, adapter, seed)
    return split_base(str(settings.path), decoder, tokenizer)


def load_on_mesh(
    settings: ModelConfig,
    mesh: Mesh,
    lora: LoraConfig | None,
    adapter: str | Path | None,
    seed: int,
) -> Decoder:
    """Load a base onto the mesh, with the LoRA parameters of an adapter or fresh ones.

    Args:
        settings: where the base lies, and how it is held; `path` is set.
        lora: the form of the adapter; None: no adapter.
        adapter: folder of an adapter of this form; None: fresh parameters, drawn from `seed`.

    Raises:
        UserError: files that are missing, damaged or of an unknown family; an adapter of another
            base.
    """
    release_after_compiling()
    base = str(settings.path)
    dtype = settings.jax_dtype(mesh, stored_dtype(base))
    if adapter is not None:
        require_trained_on(Path(adapter), model_folder(base), base)
    elif lora is not None:
        require_projections(read_config(base), lora)
    decoder = load_decoder(
        base,
        lora=lora,
        dtype=dtype,
        mesh=mesh,
        seed=seed,
        remat=settings.remat,
        attention=settings.attention,
        quantise=settings.quantise,
    )
    device, kernel = mesh.devices.flat[0].device_kind, attention_words(settings.attention)
    shape = mesh_words(mesh.devices.shape)
    held = "" if settings.quantise == "none" else f", base held in {settings.quantise}"
    say(f"   {device}, mesh {shape}, {dtype.name}{held}, attention {kernel}")
    for note in placement_notes(decoder.config, mesh, settings.quantise):
        say(f"   {note}")
    if adapter is not None:
        load_adapter(adapter, decoder)
    return decoder
