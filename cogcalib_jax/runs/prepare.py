"""From the config of a run to all that it works with. Nothing is written, but for the world's base.

Training, the dry run and the benchmark of a step all begin here, so each refuses what the others
refuse. The dry run has shapes in place of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main, require_agreement
from cogcalib_jax.inference.context import check_context
from cogcalib_jax.inference.evaluate import data_hash
from cogcalib_jax.inference.option_score import DEFAULT_OPTION_SCORE
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.anchors import load_anchors
from cogcalib_jax.runs.assemble import (
    Assembled,
    assemble_model,
    base_path,
    encode_splits,
    evaluation_sets,
    make_trainable,
    with_own_lora,
)
from cogcalib_jax.runs.calibrators import require_calibrator
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.inputs import may_have_moved
from cogcalib_jax.runs.open_questions import open_predictor
from cogcalib_jax.runs.outline import Outline, outline_base, read_outline
from cogcalib_jax.runs.tracking import require_trackers
from cogcalib_jax.sharding import make_mesh
from cogcalib_jax.training.compatible import check_compatible, check_mesh
from cogcalib_jax.training.finetune import Trainer, make_trainer
from cogcalib_jax.training.state import Trainable


@dataclass(frozen=True)
class Prepared:
    """The parts that a run works with."""

    config: RunConfig
    """with rank, alpha and targets of the adapter it starts from"""
    base: Outline
    assembled: Assembled
    """on its devices; without arrays if it was prepared as abstract"""
    trainer: Trainer
    sets: dict[str, EncodedSplit]
    """task -> test questions"""
    hashes: dict[str, str]
    """split, or "anchor" -> hash of its rows"""

    @property
    def methods(self) -> dict[str, MethodConfig]:
        """Folder name -> resolved method."""
        return self.config.resolved_methods()

    @property
    def splits(self) -> dict[str, EncodedSplit]:
        """The five splits of the task, by name."""
        return self.trainer.splits | {"test": self.sets[self.config.data.task]}


def prepare(
    config: RunConfig, *, abstract: bool = False, note: Callable[[str], None] = show_note
) -> Prepared:
    """Read base, tokenizer and rows, refuse what does not fit together, and load the model.

    Args:
        config: the run. Where it resumes one, an error of a place that is gone says how its new
            one is given.
        abstract: whether to leave out weights: of the base only config.json and the tokenizer are
            read, and the world's is not built.
        note: gets what rows, tokenizer and model have to say.

    Raises:
        UserError: whatever can be told before a weight is read, and then a base or an adapter
            that does not fit.
    """
    from_main(lambda: require_trackers(config.track))
    with may_have_moved(config.adapter, "--adapter", config.resume):
        config = with_own_lora(config)
    mesh = make_mesh(config.mesh)
    check_mesh(mesh, config.training, config.evaluation, config.anchor)
    with may_have_moved(config.model.path, "--model.path", config.resume):
        base = _outline(config, abstract, note)
    with may_have_moved(config.data.path, "--data.path", config.resume):
        splits = encode_splits(config.data, base.tokenizer, config.seed, note, config.world)
    hashes = {name: data_hash(rows) for name, rows in splits.items()}
    require_agreement("data", lambda: hashes)
    sets = evaluation_sets(config, base.tokenizer, splits["test"], note)
    require_calibrator(config.evaluation, config.data.task, splits["calibration"])
    notes = check_compatible(
        splits,
        config.resolved_methods().values(),
        config.loss,
        data_name=config.data.task,
        option_score=config.option_score,
        averaged=config.sampling_baselines,
        sets=sets,
        composition=config.composition,
        context=base.config.max_position_embeddings,
        new_tokens=config.evaluation.open.max_new_tokens,
    )
    with may_have_moved(config.anchor.path, "--anchor.path", config.resume):
        measured = [splits["calibration"], splits["validation"], *sets.values()]
        anchors = load_anchors(config, base.tokenizer, measured, note)
    if anchors is not None:
        hashes["anchor"] = anchors.data_hash
        require_agreement("anchor", lambda: hashes["anchor"])
        notes += check_context(base.config.max_position_embeddings, [anchors.questions], 0)
    for text in dict.fromkeys(notes):
        note(text)
    if abstract:
        assembled = Assembled(mesh, *base.parts(config.lora, config.model, mesh))
    else:
        assembled = assemble_model(config, config.lora, base.place)
    trainable = make_trainable(config, assembled, anchors)
    trainer = _trainer(config, base, trainable, splits, sets)
    return Prepared(config, base, assembled, trainer, sets, hashes)


def _outline(config: RunConfig, abstract: bool, note: Callable[[str], None]) -> Outline:
    model, world, pretrain, seed = config.model, config.world, config.pretrain, config.seed
    if abstract:
        return outline_base(model, world, pretrain, seed, config.adapter, note)
    place = base_path(model, world, pretrain, seed)
    say(f"== Data and model: {config.data.task} with {place}")
    return read_outline(place, config.adapter, note)


def _trainer(
    config: RunConfig,
    base: Outline,
    trainable: Trainable,
    splits: dict[str, EncodedSplit],
    sets: dict[str, EncodedSplit],
) -> Trainer:
    answers = open_predictor(
        trainable.model,
        Predictor(trainable.model, trainable.mesh, config.evaluation),
        config.evaluation,
        config.data,
        base.tokenizer,
        [*splits.values(), *sets.values()],
    )
    rule = DEFAULT_OPTION_SCORE if config.option_score == "auto" else config.option_score
    training = {name: rows for name, rows in splits.items() if name != "test"}
    return make_trainer(trainable, config.evaluation, training, answers, rule)
