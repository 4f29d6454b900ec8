"""The parts of a run, made from its config: base, token ids, model on its devices, trainer.

Training, the dry run and the benchmark of a step start here, so all refuse the same mistakes. The
dry run has shapes in place of weights. Only a world's base is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.baselines.ib_edl import scale_tokens
from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.cli.questions import (
    TAUGHT_FIT,
    encode_splits,
    evaluation_sets,
    in_other_form,
    load_anchors,
)
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import may_have_moved
from cogcalib_jax.cli.tracking import make_trackers
from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import EncodedSplit, require_shared_options
from cogcalib_jax.data.loading import groups_of
from cogcalib_jax.distributed import from_main, require_agreement, start_processes
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import refusing_damage
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, read_calibration
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.hf.weights import read_config, stored_dtype
from cogcalib_jax.inference.base_model import load_on_mesh
from cogcalib_jax.inference.config import DEFAULT_CALIBRATOR, DEFAULT_OPTION_SCORE, EvaluationConfig
from cogcalib_jax.inference.evaluate import Calibrators, calibrated, data_hash
from cogcalib_jax.inference.open_ended import OpenPredictions, OpenPredictor
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.machines import DistributedConfig
from cogcalib_jax.models.config import DecoderConfig, LoraConfig, ModelConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import (
    FrozenModel,
    abstract_decoder,
    require_cut,
    require_projections,
    split_model,
)
from cogcalib_jax.settings import identity, to_dict
from cogcalib_jax.sharding import make_mesh
from cogcalib_jax.training.compatible import check_compatible, check_context, check_mesh
from cogcalib_jax.training.finetune import Trainer, make_trainer
from cogcalib_jax.training.state import AnchorRows, Trainable
from cogcalib_jax.training.variant import variant_of
from cogcalib_jax.world.base import CONTEXT, base_architecture, base_place, ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig
from cogcalib_jax.world.corpus import build_tokenizer, tokenizer_in_memory

AnyConfig = TypeVar("AnyConfig")
NO_CALIBRATORS = Calibrators(
    notes=("no confidences platt and isotonic: no calibration split was answered with this model",)
)


@dataclass(frozen=True)
class Outline:
    """A base without its weights."""

    name: str
    config: DecoderConfig
    tokenizer: PreTrainedTokenizerBase
    place: str | Path | None = None
    """folder or Hub id; None for a world's base that is not built yet"""

    def parts(
        self, lora: LoraConfig | None, config: ModelConfig, mesh: Mesh
    ) -> tuple[FrozenModel, nnx.State]:
        """Return the model and its LoRA parameters as shapes without arrays (UserError: a mesh that
        cannot cut the model, or an attention kernel that it cannot run)."""
        require_cut(self.config, mesh)
        stored = None if self.place is None else stored_dtype(self.place)
        graphdef, abstract = abstract_decoder(
            self.config,
            lora,
            config.jax_dtype(mesh, stored),
            mesh,
            attention=config.attention,
            quantise=config.quantise,
        )
        adapter, frozen = nnx.split_state(abstract, nnx.LoRAParam, ...)
        return FrozenModel(graphdef, frozen), adapter


@dataclass(frozen=True)
class Assembled:
    """A model on its devices, taken apart for training."""

    mesh: Mesh
    model: FrozenModel
    lora: nnx.State

    @property
    def decoder(self) -> Decoder:
        """The whole model, which shares these arrays."""
        return self.model.merge(self.lora)


@dataclass(frozen=True)
class Prepared:
    """The parts of a run."""

    config: RunConfig
    """with rank, alpha and targets of the adapter that the run starts from"""
    base: Outline
    assembled: Assembled
    """without arrays if it was prepared as abstract"""
    trainer: Trainer
    sets: dict[str, EncodedSplit]
    """task -> test questions"""
    hashes: dict[str, str]
    """split, or "anchor" -> hash of its rows"""
    known: dict[str, EncodedSplit]
    """split -> its questions in the form of `known_by`; {} if that is unset"""

    @property
    def splits(self) -> dict[str, EncodedSplit]:
        """The five splits of the task, by name."""
        return self.trainer.splits | {"test": self.sets[self.config.data.task]}


def prepare(
    config: RunConfig, *, abstract: bool = False, note: Callable[[str], None] = show_note
) -> Prepared:
    """Read base, tokenizer and rows, check that they fit together, and load the model.

    Args:
        config: the run. If it resumes one, the error of a missing place says how to give its new
            place.
        abstract: whether to make shapes in place of weights: only config.json and the tokenizer of
            the base are read, and a world's base is not built.
        note: gets the notes on rows, tokenizer and model.

    Raises:
        UserError: first what is known before a weight is read, then a base or an adapter that does
            not fit.
    """
    # Refuses trackers whose libraries are not installed.
    from_main(lambda: make_trackers(config.track, Path(), "", {}) and None)
    with may_have_moved(config.adapter, "--adapter", config.resume):
        config = with_own_lora(config)
    mesh = make_mesh(config.mesh)
    check_mesh(mesh, config.training, config.evaluation, config.anchor if config.anchored else None)
    with may_have_moved(config.model.path, "--model.path", config.resume):
        if abstract:
            base = _outline_base(config, note)
        else:
            place = base_path(config.model, config.world, config.pretrain, config.seed)
            say(f"== Data and model: {config.data.task} with {place}")
            base = _read_outline(place, config.adapter, note)
    with may_have_moved(config.data.path, "--data.path", config.resume):
        splits = encode_splits(
            config.data, base.tokenizer, config.seed, note, config.made, config.anchor.carve or 0
        )
        carved = splits.pop("anchor", None)
    hashes = {name: data_hash(rows) for name, rows in splits.items()}
    require_agreement("data", lambda: hashes)
    sets = evaluation_sets(config, base.tokenizer, splits["test"], note)
    require_calibrator(config.evaluation, config.data.task, splits["calibration"])
    if config.adapter is None:
        require_projections(base.config, config.lora)
    context = base.config.max_position_embeddings
    notes = check_compatible(
        splits,
        config.resolved_methods().values(),
        config.loss,
        data_name=config.data.task,
        option_score=config.option_score,
        averaged=config.baselines,
        sets=sets,
        composition=config.composition,
        context=context,
        new_tokens=config.evaluation.open.max_new_tokens,
    )
    if any(one.single_token for one in config.baselines.values()):
        rule = config.option_score if config.loss.space == "options" else "sum"
        scale_tokens(splits | sets, base.config.vocab_size, rule)
    with may_have_moved(config.anchor.path, "--anchor.path", config.resume):
        anchors = load_anchors(config, base.tokenizer, carved, splits | sets, note)
    if anchors is not None:
        hashes["anchor"] = anchors.data_hash
        require_agreement("anchor", lambda: hashes["anchor"])
        notes += check_context(context, [anchors.questions], 0)
    apart = {name: rows for name, rows in splits.items() if name != "style"}
    known = in_other_form(config, base.tokenizer, apart, note)
    notes += check_context(context, known.values(), 0)
    for text in dict.fromkeys(notes):
        note(text)
    if abstract:
        assembled = Assembled(mesh, *base.parts(config.lora, config.model, mesh))
    else:
        assembled = assemble_model(config, base.place)
    trainable = make_trainable(config, assembled, anchors)
    answers = open_predictor(
        trainable.model,
        Predictor(trainable.model, mesh, config.evaluation),
        config.evaluation,
        config.data,
        base.tokenizer,
        [*splits.values(), *sets.values()],
    )
    training = {name: rows for name, rows in splits.items() if name != "test"}
    trainer = make_trainer(trainable, config.evaluation, training, answers)
    return Prepared(config, base, assembled, trainer, sets, hashes, known)


def with_processes(config: AnyConfig) -> AnyConfig:
    """Start `jax.distributed`, and return `config` without its `distributed` section.

    Call this first. Raises UserError if the processes were given different configs.
    """
    start_processes(config.distributed)
    config = replace(config, distributed=DistributedConfig())
    require_agreement("config", lambda: to_dict(config))
    return config


def with_own_lora(config: RunConfig) -> RunConfig:
    """Return `config` with rank, alpha and targets of the adapter that it starts from, if any."""
    if config.adapter is None:
        return config
    stored = read_lora_config(config.adapter)
    return replace(config, lora=replace(stored, lora_dropout=config.lora.lora_dropout))


def require_calibrator(evaluation: EvaluationConfig, task: str, rows: EncodedSplit) -> None:
    """Refuse an `evaluation.calibrator` that cannot be fitted on the calibration split `rows`."""
    spec = evaluation.calibrator
    if evaluation.fit_taught and TAUGHT_FIT not in groups_of(task):
        raise UserError(
            f"evaluation.fit_taught is true, and {task} has no second wording of what is taught;"
            " expected false. Leave it out: the fit is blind to what was taught"
        )
    if evaluation.fit_taught and not CALIBRATORS.make(spec).weighs_rows:
        raise UserError(
            f"evaluation.calibrator is {spec}, which weighs no rows; expected another one beside"
            " evaluation.fit_taught, or that left out"
        )
    if rows.is_open and spec != DEFAULT_CALIBRATOR:
        raise UserError(
            f"evaluation.calibrator is {spec}; expected {DEFAULT_CALIBRATOR} for {task}, whose"
            " questions are open: their Platt and isotonic maps are stored anyway. Leave it out"
        )
    if not rows.is_open and CALIBRATORS.make(spec).needs_classes:
        require_shared_options(rows, f"evaluation.calibrator is {spec}", task)


def base_path(
    model: ModelConfig, world: WorldConfig, pretrain: PretrainConfig, seed: int
) -> str | Path:
    """Return the folder or Hub id of the base; a world's base is built on first use."""
    if model.path is not None:
        return model.path
    say("== The base: a small Llama that has read about a made-up world")
    # Every process builds it, as there is nothing else to do; that of the main one is kept.
    return ensure_base(world, pretrain, seed)


def _outline_base(config: RunConfig, note: Callable[[str], None]) -> Outline:
    """Read config.json and the tokenizer of a base; a world's base stays unbuilt."""
    if config.model.path is not None:
        return _read_outline(config.model.path, config.adapter, note)
    made, _, folder = base_place(config.world, config.pretrain, config.seed)
    if folder.is_dir():
        built = _read_outline(folder, config.adapter, note)
        return replace(built, name="the world's base, which is built already")
    words = build_tokenizer(made.config)
    return Outline(
        "the world's base, which is not built yet",
        base_architecture(config.pretrain, words),
        tokenizer_in_memory(made.config, CONTEXT),
    )


def _read_outline(place: str | Path, adapter: str | None, note: Callable[[str], None]) -> Outline:
    tokenizer = load_base_tokenizer(place, adapter, note)
    return Outline(str(place), read_config(place), tokenizer, place)


def assemble_model(config: RunConfig, base: str | Path) -> Assembled:
    """Load the base onto the mesh, with the LoRA parameters of `config.adapter` or fresh ones."""
    mesh, settings = make_mesh(config.mesh), replace(config.model, path=str(base))
    decoder = load_on_mesh(settings, mesh, config.lora, config.adapter, config.training_seed)
    return Assembled(mesh, *split_model(decoder))


def make_trainable(
    config: RunConfig, assembled: Assembled, anchors: AnchorRows | None = None
) -> Trainable:
    """Return what all phases of a run share."""
    return Trainable(
        model=assembled.model,
        mesh=assembled.mesh,
        training=config.training,
        loss=config.loss,
        checkpoint=config.checkpoint,
        dropout=config.lora.lora_dropout > 0,
        seed=config.training_seed,
        identity=identity(config),
        option_score=DEFAULT_OPTION_SCORE if config.option_score == "auto" else config.option_score,
        anchors=anchors,
        variant=variant_of(config.training.optimizer),
    )


def open_predictor(
    model: FrozenModel,
    predictor: Predictor,
    evaluation: EvaluationConfig,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    sets: Iterable[EncodedSplit],
) -> OpenPredictor | None:
    """Return the predictor of the open questions among `sets` (UserError: a tokenizer that cannot
    write what is asked of it); None if all have options."""
    if not any(rows.is_open for rows in sets):
        return None
    return OpenPredictor(model, evaluation, data, tokenizer, predictor)


def stored_calibrators(adapter: Path) -> Calibrators:
    """Return the calibrators of open answers that were stored with an adapter."""
    stored = from_main(lambda: read_calibration(adapter))
    answers = None if stored is None else stored.get("open_answers")
    if answers is None:
        return NO_CALIBRATORS
    with refusing_damage(adapter / CALIBRATION_FILE, "train again, or fetch it again"):
        return Calibrators.from_json(answers["calibrators"])


def answering(
    predictor: OpenPredictor, lora: nnx.State, seed: int, calibrators: Callable[[], Calibrators]
) -> Callable[[EncodedSplit], OpenPredictions]:
    """Return a function from open questions to calibrated answers; `calibrators` is called late."""

    def predict(encoded: EncodedSplit) -> OpenPredictions:
        return calibrated(predictor(lora, encoded, seed=seed), calibrators())

    return predict
