"""Fine-tuning from Python: style adaptation, the threshold, and gated fine-tuning of one method."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cogcalib_jax.console import show_note
from cogcalib_jax.data.task import Task
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import base_hash
from cogcalib_jax.hf.files import model_folder
from cogcalib_jax.inference.config import EvaluationConfig, OptionScore
from cogcalib_jax.inference.evaluate import data_hash
from cogcalib_jax.inference.open_ended import OpenPredictor
from cogcalib_jax.method.config import LossConfig, MethodConfig, parse_entry
from cogcalib_jax.model import Model
from cogcalib_jax.settings import identity
from cogcalib_jax.training.callbacks import Callback, StartInfo, announced
from cogcalib_jax.training.compatible import check_compatible, check_mesh
from cogcalib_jax.training.config import DEFAULT_OPTIMIZER, CheckpointConfig, TrainingConfig
from cogcalib_jax.training.finetune import Trainer, make_trainer, style_phase
from cogcalib_jax.training.finetune import finetune as run_method
from cogcalib_jax.training.state import Trainable
from cogcalib_jax.training.storage import Files, Memory
from cogcalib_jax.training.variant import variant_of

Method = MethodConfig
"""a method, as the public API calls it"""
SPLITS = ("style", "train", "calibration", "validation")
# Names of journals in memory; no such folder is made.
IN_MEMORY = Path("finetune")


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The outcome of a fine-tuning."""

    model: Model
    """after the last update, or the best one with `training.keep = "best"`"""
    best_model: Model
    """at the lowest NLL of a validation"""
    start: Model
    """after style adaptation, in which the gated phase began"""
    threshold: float
    """the last one that was fitted, in nats"""
    history: list[dict[str, Any]]
    """one dict for each logged update (phase "style", "finetune"), fit of the threshold ("refit")
    and validation ("validation"), in their order"""


def finetune(
    model: Model,
    task: Task,
    method: MethodConfig | str = "cols",
    *,
    training: TrainingConfig | None = None,
    loss: LossConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    callbacks: Sequence[Callback] = (),
    output_dir: str | Path | None = None,
    checkpoint: CheckpointConfig | None = None,
    option_score: OptionScore | None = None,
    resume: bool = False,
    seed: int = 0,
) -> FinetuneResult:
    """Fine-tune a model's adapter with a method (CogCalib, ACL 2025, section 4).

    First some updates of plain cross-entropy on `task.style` teach the form of answers. A threshold
    that separates right from wrong answers is then fitted to the NLL of `task.calibration`, and
    again while `task.train` is learnt; the gate reads it.

    Args:
        model: a model with an adapter; it is not changed.
        task: the questions.
        method: a `Method`, or a name such as "sft", "cols", "kl@soft=0.3" (docs/method.md).
        training: how long, how fast and in what order.
        loss: the classes and tokens of cross-entropy and of the gate's NLL.
        evaluation: batch size of passes without gradient, and bins of the ECE.
        callbacks: called at every update, threshold and validation.
        output_dir: a folder for metrics.jsonl, dynamics.jsonl and checkpoints; None: no file is
            written, and nothing can be resumed.
        checkpoint: when to save, if there is an `output_dir`.
        option_score: the rule that scores options of several tokens, in validation and, in options
            space, in training; None: the model's.
        resume: continue in `output_dir` from the newest checkpoint, exactly.
        seed: of the order of rows, dropout and gates that draw.

    Raises:
        UserError: a model without adapter; settings that do not fit together; a loss that is not
            finite.
    """
    if not isinstance(task, Task):
        raise UserError(
            f"task is {reprlib.repr(task)}; expected a Task. Make one with Task.from_rows"
        )
    training, loss = training or TrainingConfig(), loss or LossConfig()
    evaluation = evaluation or EvaluationConfig()
    resolved = (parse_entry(method) if isinstance(method, str) else method).resolve()
    if model.lora_config is None:
        raise UserError(
            "model has no adapter; expected one to train. Load it with"
            " Model.from_pretrained(..., lora=LoraConfig())"
        )
    if training.optimizer != DEFAULT_OPTIMIZER and "plain" not in model.lora_config.distributions:
        raise UserError(
            f"training.optimizer is {training.optimizer}; expected {DEFAULT_OPTIMIZER} for an"
            " adapter with DoRA, trained rows of embedding or head, or other ranks by layer. Leave"
            " it out"
        )
    rule = option_score or model.option_score
    check_mesh(model.mesh, training, evaluation)
    splits = {name: model.encode(getattr(task, name)) for name in SPLITS}
    for note in check_compatible(
        splits,
        [resolved],
        loss,
        data_name=task.name,
        option_score=rule,
        context=model.config.max_position_embeddings,
        new_tokens=evaluation.open.max_new_tokens,
    ):
        show_note(note)
    folder = _folder(output_dir, resume)
    settings = {
        "method": asdict(replace(resolved, name=None)),
        "loss": identity(loss),
        "training": identity(training),
        "lora": identity(model.lora_config),
        "option_score": rule,
        "seed": seed,
    }
    trainable = Trainable(
        model=model.base.split,
        mesh=model.mesh,
        training=training,
        loss=loss,
        checkpoint=checkpoint or CheckpointConfig(),
        dropout=model.lora_config.lora_dropout > 0,
        seed=seed,
        identity=json.loads(json.dumps(settings)),
        option_score=rule,
        made_from=_made_from(model, splits) if output_dir is not None else {},
        steps=model.base.steps,
        storage=Memory() if output_dir is None else Files(),
        callbacks=tuple(callbacks),
        variant=variant_of(training.optimizer),
    )
    trainer = make_trainer(trainable, evaluation, splits, _answers(model, task, splits, evaluation))
    start = StartInfo(
        rows=len(splits["train"]),
        style_steps=trainer.style_steps,
        steps=trainer.total_steps,
        method=resolved.label,
        config=settings,
    )
    with announced(callbacks, start):
        result = _run(model, trainer, resolved, folder, task)
    for callback in callbacks:
        callback.on_end(result)
    return result


def _run(
    model: Model, trainer: Trainer, method: MethodConfig, folder: Path, task: Task
) -> FinetuneResult:
    asked = replace(model, prompting=task.train.prompting, calibrator=None)
    start = style_phase(trainer, model.lora, folder / "style")
    started = replace(asked, lora=start)
    wrap = partial(replace, asked, start=started)
    found = run_method(
        trainer, method, start, folder / "style", folder, wrap=lambda lora: wrap(lora=lora)
    )
    journal = trainer.trainable.storage.journal(folder / "metrics.jsonl")
    return FinetuneResult(
        model=wrap(lora=found.lora),
        best_model=wrap(lora=found.best_lora),
        start=started,
        threshold=found.threshold,
        history=journal.read(),
    )


def _folder(output_dir: str | Path | None, resume: bool) -> Path:
    if output_dir is None:
        if resume:
            raise UserError("resume is True; expected output_dir beside it. Name the folder")
        return IN_MEMORY
    folder = Path(output_dir)
    if not resume and folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"output_dir is {folder}, which is not empty; expected a new folder. Set resume=True to"
            " continue in it, or choose another"
        )
    return folder


def _made_from(model: Model, splits: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {name: data_hash(rows) for name, rows in splits.items()},
        "base": base_hash(model_folder(model.base.name)),
    }


def _answers(
    model: Model, task: Task, splits: dict[str, Any], evaluation: EvaluationConfig
) -> OpenPredictor | None:
    """Return the predictor of open questions; None for questions with choices."""
    if not splits["train"].is_open:
        return None
    return model.base.open_predictor(task.train.prompting.data, evaluation)
