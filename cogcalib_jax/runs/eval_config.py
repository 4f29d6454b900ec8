"""The config of an evaluation, and what it takes over from the run it evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogcalib_jax.configlib import check, from_yaml, given_values, load_config
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.registry import TASKS
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.config import EvaluationConfig
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.sharding import MeshConfig
from cogcalib_jax.weights.config import ModelConfig


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated (a run, or a base with or without an adapter), and on which questions."""

    run: str | None = None
    """run folder (of one method) whose adapter is evaluated; gives the defaults of all below"""
    task: tuple[str, ...] = ()
    """what to evaluate on, each NAME or NAME:GROUP; none: data.task, as a training run does"""
    run_dir: str | None = None
    """folder of the results; unset: runs/eval-N"""
    adapter: str | None = None
    """folder of a LoRA adapter in PEFT layout on model.path; unset: the run's, or the bare base"""
    seed: int = 0
    """of the world's questions, of resampling and of simulated noise"""
    data: DataConfig = field(default_factory=DataConfig)
    """the questions; path holds those of data.task, other tasks are read from the Hub"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """the base model; path unset: the run's"""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """scoring and metrics"""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """devices"""

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", "must be an integer of at least 0")
        check(
            self.run is not None or self.model.path is not None,
            "run",
            "must name the folder of a run (--run runs/NAME-N), or --model.path a base model",
        )
        check(
            self.run is None or self.adapter is None,
            "adapter",
            "must be none where a run is given, which has its own; give model.path instead of run",
        )
        for entry in self.task:
            check(
                entry.partition(":")[0] in TASKS,
                "task",
                f"must name tasks, each NAME or NAME:GROUP (got {entry!r}; allowed names:"
                f" {', '.join(TASKS)})",
            )
        check(len(set(self.task)) == len(self.task), "task", "must name each task once")


def load_evaluation(argv: Sequence[str], *, prog: str, description: str | None) -> EvalConfig:
    """The config of `argv`: what it gives, laid over the settings of the run it names.

    Where one task is named, `data.task` becomes that task, and `data.path`, unless given, stays
    only if the run's rows are of the same task. Raises UserError as `load_config` does, and for
    one `data.path` that would have to serve several tasks.
    """
    given = given_values(EvalConfig, argv)
    run, start = given.get("run"), None
    if run is not None:
        start = _settings(run, read_trained_run(run))
    return load_config(
        EvalConfig,
        [*_implied(given, start), *argv],
        prog=prog,
        description=description or "",
        start=start,
    ).config


def _settings(run: str, config: RunConfig) -> EvalConfig:
    return EvalConfig(
        run=run,
        seed=config.seed,
        data=config.data,
        model=config.model,
        evaluation=config.evaluation,
        mesh=config.mesh,
    )


def _implied(given: dict[str, Any], start: EvalConfig | None) -> list[str]:
    """Arguments that follow from the tasks named; explicit ones come later and win."""
    names = list(dict.fromkeys(entry.partition(":")[0] for entry in given.get("task", ())))
    if len(names) > 1 and given.get("data.path") is not None:
        raise UserError(
            f"command line: data.path = {given['data.path']}: must be none for several tasks"
            f" ({', '.join(names)}), whose rows lie in folders of their own; evaluate them one by"
            " one"
        )
    if len(names) != 1 or names[0] not in TASKS or "data.task" in given:
        return []
    implied = ["--data.task", names[0]]
    if start is not None and start.data.task != names[0] and "data.path" not in given:
        implied += ["--data.path", "none"]
    return implied


def read_trained_run(name: str) -> RunConfig:
    """The config of a finished run of one method.

    Raises UserError for a folder that is no run or not finished, and for a comparison, whose
    methods it lists.
    """
    folder = Path(name)
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{folder}: no config.yaml, so it is no run that train.py wrote; give the folder of a"
            " run, in a comparison that of one method"
        )
    config = from_yaml(RunConfig, file.read_text(encoding="utf-8"), file)
    if config.compare:
        methods = [key for key in config.resolved_methods() if (folder / key / "adapter").is_dir()]
        listed = ", ".join(str(folder / key) for key in methods) or "none is finished yet"
        raise UserError(f"{folder}: is a comparison of methods; give one of them: {listed}")
    if not (folder / "adapter").is_dir():
        raise UserError(
            f"{folder}: no adapter, so its training is not finished; continue it with"
            f" python train.py --config {file} --run-dir {folder} --resume"
        )
    return config
