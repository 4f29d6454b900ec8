"""From a config to what a run works with: base, data as token ids, model on its devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.configlib import to_dict
from cogcalib_jax.console import say
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_shots, load_splits, load_test
from cogcalib_jax.data.registry import TASKS, MadeTask
from cogcalib_jax.data.tokenization import encode_split, single_token_options
from cogcalib_jax.distributed import (
    DistributedConfig,
    require_agreement,
    start_processes,
)
from cogcalib_jax.engine.step import SplitModel, split_model
from cogcalib_jax.errors import UserError
from cogcalib_jax.method.gates import GATES
from cogcalib_jax.models.attention import attention_words
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import abstract_decoder, random_lora
from cogcalib_jax.models.placement import placement_notes
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.sharding import MeshConfig, make_mesh, require_even
from cogcalib_jax.training.phase import AnchorRows, Trainable
from cogcalib_jax.training.pretrain import PretrainConfig, ensure_base
from cogcalib_jax.weights.adapter_tokenizer import own_tokenizer
from cogcalib_jax.weights.base_hash import require_trained_on
from cogcalib_jax.weights.config import ModelConfig
from cogcalib_jax.weights.hf_config import read_config
from cogcalib_jax.weights.hf_weights import load_decoder
from cogcalib_jax.weights.hub import model_folder
from cogcalib_jax.weights.peft_adapter import load_adapter, read_lora_config
from cogcalib_jax.weights.tokenizer import WITHOUT_EMBEDDING, load_tokenizer

AnyConfig = TypeVar("AnyConfig")


def show_note(text: str) -> None:
    """What was left out or changed, for the person who watches."""
    say(f"   note: {text}")


def note_beyond_context(
    context: int, sets: Iterable[EncodedSplit], note: Callable[[str], None] = show_note
) -> None:
    """Say where questions with options are longer than what the model was made for.

    Their scores are numbers like all others, and worth little. What cannot answer open questions
    is refused (`open_predictor`).
    """
    longest = max((int(rows.lengths.max()) for rows in sets if rows), default=0)
    if longest > context:
        note(
            f"texts of up to {longest:,} tokens are longer than the model's context of"
            f" {context:,}, beyond which it was not trained; set --data.max-length {context}"
        )


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
    model: ModelConfig, data: DataConfig, pretrain: PretrainConfig, seed: int
) -> str | Path:
    """Where the base model lies; the world's is built on first use."""
    if model.path is not None:
        return model.path
    say("== The base: a small Llama that has read about a made-up world")
    # Every process makes it, for there is nothing else to do; the first one's is kept.
    return ensure_base(data.world, pretrain, seed)


def load_base_tokenizer(
    base: str | Path,
    adapter: str | Path | None = None,
    note: Callable[[str], None] = show_note,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, or of an adapter on it that has one of its own.

    note: gets what the adapter's tokenizer changes. Raises UserError for one that contradicts the
    base's (`own_tokenizer`), and for ids that the base has no embedding for. Such an id would not
    fail: JAX reads the last row in its place.
    """
    # First, since transformers reads config.json for a tokenizer, too, and says less of it.
    rows = read_config(base).vocab_size
    tokenizer = load_tokenizer(base)
    _require_rows(base, tokenizer, rows)
    if adapter is None:
        return tokenizer
    own = own_tokenizer(base, adapter, tokenizer, rows)
    for text in own.notes:
        note(text)
    return own.tokenizer


def _require_rows(base: str | Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer with ids beyond the embedding's rows, except for special tokens that no
    prompt holds: many bases were given a padding token that way."""
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    roles = {str(tokenizer.bos_token), str(tokenizer.eos_token), str(tokenizer.unk_token)}
    chat = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    used = [token for token in beyond if token not in special or token in roles or token in chat]
    if used or max(tokenizer("a")["input_ids"], default=0) >= rows:
        largest = max(beyond.values())
        raise UserError(
            f"{base}: its tokenizer has ids up to {largest:,}, its embedding {rows:,} rows; use the"
            " tokenizer that belongs to these weights"
        )
    # A row that holds one is refused.
    setattr(tokenizer, WITHOUT_EMBEDDING, frozenset(beyond))


def encode_splits(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    note: Callable[[str], None] = show_note,
) -> dict[str, EncodedSplit]:
    """All splits of the task as token ids, by name; sizes are shown, and `note` gets notes."""
    splits = load_splits(config, seed)
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

    Raises UserError where `also` names open questions beside a task with options, or the reverse.
    """
    sets = {config.data.task: test}
    for name, examples in extra_examples(config.data, config.seed).items():
        sets[name], _ = encode_split(name, examples, tokenizer, config.data)
    for entry in config.also:
        task, _, group = entry.partition(":")
        data = config.data.for_task(task)
        examples, notes = load_test(data, config.seed, group or None)
        sets[entry], more = encode_split(entry, examples, tokenizer, data, load_shots(data))
        if sets[entry].is_open != test.is_open:
            raise UserError(
                f"also = {entry}: only one of it and {config.data.task} has open questions, which"
                " are answered in another way; evaluate it with eval.py --run"
            )
        say(f"   {entry}: {len(sets[entry]):,} questions")
        for text in dict.fromkeys([*notes, *more]):
            note(text)
    return sets


def extra_examples(config: DataConfig, seed: int) -> dict[str, tuple[Example, ...]]:
    """`TASK:GROUP` -> questions that a task offers beside its test split.

    Groups of stored rows are parts of the test split, and no sets of their own.
    """
    task = TASKS[config.task]
    groups = task.always if isinstance(task, MadeTask) else ()
    return {f"{config.task}:{group}": load_test(config, seed, group)[0] for group in groups}


def require_even_batches(config: RunConfig) -> None:
    """A mesh that does not fit the devices or the batches is refused before anything slow."""
    mesh = make_mesh(config.mesh)
    micro_batch = config.training.batch_size // config.training.accumulation
    require_even("training.batch_size / training.accumulation", micro_batch, mesh)
    if config.anchor.path is not None:
        anchors = config.anchor.rows_per_step // config.training.accumulation
        require_even("anchor.rows_per_step / training.accumulation", anchors, mesh)
    require_even("evaluation.batch_size", config.evaluation.batch_size, mesh)


def require_options_space(config: RunConfig, splits: dict[str, EncodedSplit]) -> None:
    """Options space reads one token per option: anything else is refused before training."""
    wanted = [
        field
        for field, used in (
            ("loss.space", config.loss.space == "options"),
            (
                "method.space",
                any(m.build().term_space == "options" for m in config.resolved_methods().values()),
            ),
        )
        if used
    ]
    for name, rows in splits.items():
        if wanted and not single_token_options(rows):
            if rows.is_open:
                raise UserError(
                    f"{wanted[0]} = options: questions of {config.data.task} are open and have no"
                    " options; use vocab"
                )
            raise UserError(
                f"{wanted[0]} = options: {config.data.task} ({name}) has options of several"
                " tokens, or two that share one, with this tokenizer; use vocab, or a prompt whose"
                " options are letters (data.prompt letters)"
            )


def require_shared_classes(config: RunConfig, train: EncodedSplit) -> None:
    """Refuse a term whose classes must mean the same in every question, where they do not."""
    for method in config.resolved_methods().values():
        built = method.build()
        if built.term is None or not (built.term.needs_classes or built.term.per == "batch"):
            continue
        if built.space != "options":
            raise UserError(
                f"method.space is {built.space}; expected options for term {method.term}, which"
                " compares classes over questions. Set --method.space options"
            )
        lists = {row.completion_ids for row in train}
        if built.term.needs_classes and len(lists) > 1:
            raise UserError(
                f"method.term is {method.term}; expected one list of options for all questions, and"
                f" {config.data.task} has {len(lists):,} lists. Use another term, or a prompt whose"
                " options are letters (--data.prompt letters) with as many options in every row"
            )


def require_open_questions(config: RunConfig, train: EncodedSplit) -> None:
    """Exact match is of generated answers, and averages over members are over options."""
    if config.loss.correct == "exact_match" and not train.is_open:
        raise UserError(
            f"loss.correct = exact_match: questions of {config.data.task} have options; use argmax"
        )
    if train.is_open and config.sampling_baselines:
        raise UserError(
            f"compare = {', '.join(config.sampling_baselines)}: averages the probabilities of"
            f" options, and questions of {config.data.task} are open; leave it out"
        )


def require_true_labels(config: RunConfig, train: EncodedSplit) -> None:
    """The oracle gate needs rows that say what the base knows, as only the world's do."""
    gates = [GATES.make(method.gate) for method in config.resolved_methods().values()]
    asks = any(gate.labelled_by == "world" for gate in gates)
    if asks and not all("known" in row.example.extra for row in train):
        raise UserError(
            f"method.gate = oracle: rows of {config.data.task} do not say what the base knows; use"
            " it with task world, or the gate frozen_labels"
        )


@dataclass(frozen=True)
class Assembled:
    """A model on its devices, taken apart for training."""

    mesh: Mesh
    decoder: Decoder
    model: SplitModel
    lora: nnx.State


def with_own_lora(config: RunConfig) -> RunConfig:
    """`config` with rank, alpha and targets of the adapter it starts from, where it names one."""
    if config.adapter is None:
        return config
    stored = read_lora_config(config.adapter)
    return replace(config, lora=replace(stored, dropout=config.lora.dropout))


def assemble_model(config: RunConfig, lora: LoraConfig, base: str | Path) -> Assembled:
    """Load the base onto the mesh, with the LoRA parameters of `config.adapter` or fresh ones."""
    if config.adapter is not None:
        require_trained_on(Path(config.adapter), model_folder(base))
    mesh, decoder = load_on_mesh(config.model, config.mesh, lora, base, config.training_seed)
    if config.adapter is not None:
        load_adapter(config.adapter, decoder)
    model, parameters = split_model(decoder)
    return Assembled(mesh, decoder, model, parameters)


def first_lora(config: RunConfig, assembled: Assembled) -> nnx.State:
    """The LoRA parameters that `config` starts from, on a base that is assembled already."""
    if config.adapter is not None:
        return assembled.lora
    decoder = assembled.decoder
    _, abstract = abstract_decoder(decoder.config, config.lora, decoder.dtype, assembled.mesh)
    return random_lora(decoder.config, config.lora, abstract, config.training_seed)


def load_on_mesh(
    model: ModelConfig,
    mesh_config: MeshConfig,
    lora: LoraConfig | None,
    base: str | Path,
    seed: int,
) -> tuple[Mesh, Decoder]:
    """The mesh, and the base on it; with fresh LoRA parameters where `lora` is given."""
    mesh = make_mesh(mesh_config)
    dtype = model.jax_dtype(mesh)
    decoder = load_decoder(
        base,
        lora=lora,
        dtype=dtype,
        mesh=mesh,
        seed=seed,
        remat=model.remat,
        attention=model.attention,
    )
    device = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    say(f"   {device}, mesh {shape}, {dtype.name}, attention {attention_words(model.attention)}")
    for note in placement_notes(decoder.config, mesh):
        say(f"   {note}")
    return mesh, decoder


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
        dropout=config.lora.dropout > 0,
        seed=config.training_seed,
        identity=config.identity(),
        anchors=anchors,
    )
