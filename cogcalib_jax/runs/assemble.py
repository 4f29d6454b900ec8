"""From a config to what a run works with: base, data as token ids, model on its devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.configlib import identity, to_dict
from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_shots, load_splits, load_test
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.distributed import require_agreement, start_processes
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.inference.base_model import load_on_mesh
from cogcalib_jax.machines import DistributedConfig
from cogcalib_jax.models.config import LoraConfig, ModelConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import FrozenModel, abstract_decoder, random_lora, split_model
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.sharding import make_mesh
from cogcalib_jax.training.state import AnchorRows, Trainable
from cogcalib_jax.world.base import ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig

AnyConfig = TypeVar("AnyConfig")


def with_processes(config: AnyConfig) -> AnyConfig:
    """Meet the other processes, before anything else; `config` without how they found one another,
    which is no part of what they do.

    config: of a run or an evaluation. Raises UserError where the processes were given other ones.
    """
    start_processes(config.distributed)
    config = replace(config, distributed=DistributedConfig())
    require_agreement("config", lambda: to_dict(config))
    return config


def base_path(
    model: ModelConfig, world: WorldConfig, pretrain: PretrainConfig, seed: int
) -> str | Path:
    """Where the base model lies; the world's is built on first use."""
    if model.path is not None:
        return model.path
    say("== The base: a small Llama that has read about a made-up world")
    # Every process makes it, for there is nothing else to do; the first one's is kept.
    return ensure_base(world, pretrain, seed)


def encode_splits(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    note: Callable[[str], None] = show_note,
    world: WorldConfig | None = None,
) -> dict[str, EncodedSplit]:
    """All splits of the task as token ids, by name; sizes are shown, and `note` gets notes."""
    splits = load_splits(config, seed, world=world)
    if splits.read:
        say(f"   {splits.read}")
    encoded, notes = {}, list(splits.notes)
    for name, examples in splits.items():
        encoded[name], more = encode_split(name, examples, tokenizer, config, splits.shots)
        notes.extend(more)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in encoded.items())
    say(f"   {config.task}: {sizes} questions")
    for text in dict.fromkeys(notes):
        note(text)
    return encoded


def evaluation_sets(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    test: EncodedSplit,
    note: Callable[[str], None] = show_note,
) -> dict[str, EncodedSplit]:
    """Task, or TASK:GROUP -> questions that a run answers in the end: its test split, what the
    world offers beside it, and what `config.also` names.
    """
    sets = {config.data.task: test}
    for name, examples in extra_examples(config.data, config.seed, config.world).items():
        sets[name], _ = encode_split(name, examples, tokenizer, config.data)
    for entry in config.also:
        task, _, group = entry.partition(":")
        data = config.data.for_task(task)
        examples, notes = load_test(data, config.seed, group or None, world=config.world)
        sets[entry], more = encode_split(entry, examples, tokenizer, data, load_shots(data))
        say(f"   {entry}: {len(sets[entry]):,} questions")
        for text in dict.fromkeys([*notes, *more]):
            note(text)
    return sets


def extra_examples(
    config: DataConfig, seed: int, world: WorldConfig
) -> dict[str, tuple[Example, ...]]:
    """`TASK:GROUP` -> questions that a task offers beside its test split.

    Groups of stored rows are parts of the test split, and no sets of their own.
    """
    task = TASKS[config.task]
    groups = task.always if isinstance(task, MadeTask) else ()
    return {
        f"{config.task}:{group}": load_test(config, seed, group, world=world)[0] for group in groups
    }


@dataclass(frozen=True)
class Assembled:
    """A model on its devices, taken apart for training."""

    mesh: Mesh
    model: FrozenModel
    lora: nnx.State

    @property
    def decoder(self) -> Decoder:
        """The whole model, sharing these arrays."""
        return self.model.merge(self.lora)


def with_own_lora(config: RunConfig) -> RunConfig:
    """`config` with rank, alpha and targets of the adapter it starts from, where it names one."""
    if config.adapter is None:
        return config
    stored = read_lora_config(config.adapter)
    return replace(config, lora=replace(stored, lora_dropout=config.lora.lora_dropout))


def assemble_model(config: RunConfig, lora: LoraConfig, base: str | Path) -> Assembled:
    """Load the base onto the mesh, with the LoRA parameters of `config.adapter` or fresh ones."""
    mesh, settings = make_mesh(config.mesh), replace(config.model, path=str(base))
    decoder = load_on_mesh(settings, mesh, lora, config.adapter, config.training_seed)
    return Assembled(mesh, *split_model(decoder))


def first_lora(config: RunConfig, assembled: Assembled) -> nnx.State:
    """The LoRA parameters that `config` starts from, on a base that is assembled already."""
    if config.adapter is not None:
        return assembled.lora
    decoder = assembled.decoder
    _, abstract = abstract_decoder(decoder.config, config.lora, decoder.dtype, assembled.mesh)
    return random_lora(decoder.config, config.lora, abstract, config.training_seed)


def make_trainable(
    config: RunConfig, assembled: Assembled, anchors: AnchorRows | None = None
) -> Trainable:
    """What all phases of a run share, from its config and its model."""
    return Trainable(
        model=assembled.model,
        mesh=assembled.mesh,
        training=config.training,
        loss=config.loss,
        checkpoint=config.checkpoint,
        dropout=config.lora.lora_dropout > 0,
        seed=config.training_seed,
        identity=identity(config),
        anchors=anchors,
    )
