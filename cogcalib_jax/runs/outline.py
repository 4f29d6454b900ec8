"""A base model without its weights: what it is made of, and how it writes text as tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import show_note
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.hf.weights import read_config
from cogcalib_jax.models.config import DecoderConfig, LoraConfig, ModelConfig
from cogcalib_jax.models.parameters import FrozenModel, abstract_decoder, require_cut
from cogcalib_jax.world.base import CONTEXT, base_architecture, base_place, corpus_ids
from cogcalib_jax.world.config import PretrainConfig, WorldConfig
from cogcalib_jax.world.corpus import build_tokenizer, tokenizer_in_memory


@dataclass(frozen=True)
class Outline:
    """What is known of a base before its weights are."""

    name: str
    config: DecoderConfig
    tokenizer: PreTrainedTokenizerBase
    place: str | Path | None = None
    """folder or Hub id; None of a world's that is not built yet"""
    corpus: list[list[int]] | None = None
    """token ids of the world that a run would pretrain it on first; None where it is there"""

    def model(self, lora: LoraConfig | None, config: ModelConfig, mesh: Mesh) -> FrozenModel:
        """Its structure with an adapter, and shapes in place of arrays."""
        return self.parts(lora, config, mesh)[0]

    def parts(
        self, lora: LoraConfig | None, config: ModelConfig, mesh: Mesh
    ) -> tuple[FrozenModel, nnx.State]:
        """The structure with an adapter, and the adapter's parameters, as shapes without arrays.

        Raises UserError as loading does for a mesh that cannot cut it, and an attention kernel
        that the mesh cannot run.
        """
        require_cut(self.config, mesh)
        graphdef, abstract = abstract_decoder(
            self.config, lora, config.jax_dtype(mesh), mesh, attention=config.attention
        )
        adapter, frozen = nnx.split_state(abstract, nnx.LoRAParam, ...)
        return FrozenModel(graphdef, frozen), adapter


def outline_base(
    model: ModelConfig,
    world: WorldConfig,
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
        return read_outline(model.path, adapter, note)
    made, _, folder = base_place(world, pretrain, seed)
    if folder.is_dir():
        built = read_outline(folder, adapter, note)
        return replace(built, name="the world's base, which is built already")
    words = build_tokenizer(made.config)
    return Outline(
        "the world's base, which is not built yet",
        base_architecture(pretrain, words),
        tokenizer_in_memory(made.config, CONTEXT),
        corpus=corpus_ids(made, words),
    )


def read_outline(
    place: str | Path, adapter: str | None = None, note: Callable[[str], None] = show_note
) -> Outline:
    """The base in a folder or of a Hub id; adapter, note and errors: as of `outline_base`."""
    tokenizer = load_base_tokenizer(place, adapter, note)
    return Outline(str(place), read_config(place), tokenizer, place)
