"""A base model without its weights: what it is made of, and how it writes text as tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import show_note
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.world_tokenizer import build_tokenizer, tokenizer_in_memory
from cogcalib_jax.engine.step import SplitModel
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import abstract_decoder
from cogcalib_jax.models.placement import require_cut
from cogcalib_jax.training.pretrain import (
    CONTEXT,
    PretrainConfig,
    base_architecture,
    base_place,
    corpus_ids,
)
from cogcalib_jax.weights.adapter_tokenizer import load_base_tokenizer
from cogcalib_jax.weights.config import ModelConfig
from cogcalib_jax.weights.hf_config import read_config


@dataclass(frozen=True)
class Outline:
    """What is known of a base before its weights are."""

    name: str
    config: DecoderConfig
    tokenizer: PreTrainedTokenizerBase
    corpus: list[list[int]] | None = None
    """token ids of the world that a run would pretrain it on first; None where it is there"""

    def model(self, lora: LoraConfig | None, config: ModelConfig, mesh: Mesh) -> SplitModel:
        """Its structure with an adapter, and shapes in place of arrays."""
        return self.parts(lora, config, mesh)[0]

    def parts(
        self, lora: LoraConfig | None, config: ModelConfig, mesh: Mesh
    ) -> tuple[SplitModel, nnx.State]:
        """The structure with an adapter, and the adapter's parameters, as shapes without arrays.

        Raises UserError as loading does for a mesh that cannot cut it, and an attention kernel
        that the mesh cannot run.
        """
        require_cut(self.config, mesh)
        graphdef, abstract = abstract_decoder(
            self.config, lora, config.jax_dtype(mesh), mesh, attention=config.attention
        )
        adapter, frozen = nnx.split_state(abstract, nnx.LoRAParam, ...)
        return SplitModel(graphdef, frozen), adapter


def outline_base(
    model: ModelConfig,
    data: DataConfig,
    pretrain: PretrainConfig,
    seed: int,
    adapter: str | None = None,
    note: Callable[[str], None] = show_note,
) -> Outline:
    """The base of a run, of which only config.json and the tokenizer are read; a world's that was
    not built yet stays unbuilt, for its shape follows from the config.

    adapter: the folder of one, whose tokenizer is used if it has its own; `note` gets what that
    changes. Raises UserError as reading them for a run does.
    """
    if model.path is not None:
        tokenizer = load_base_tokenizer(model.path, adapter, note)
        return Outline(model.path, read_config(model.path), tokenizer)
    made, _, folder = base_place(data.world, pretrain, seed)
    if folder.is_dir():
        tokenizer = load_base_tokenizer(folder, adapter, note)
        return Outline("the world's base, which is built already", read_config(folder), tokenizer)
    words = build_tokenizer(made.config)
    return Outline(
        "the world's base, which is not built yet",
        base_architecture(pretrain, words),
        tokenizer_in_memory(made.config, CONTEXT),
        corpus_ids(made, words),
    )
