"""The config of a run, made of the configs of the rooms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cogcalib_jax.baselines.registry import (
    BASELINES,
    Baseline,
    baseline_folders,
    baseline_label,
    is_baseline,
)
from cogcalib_jax.cli.stored import CONFIG_FILE, read_config, resume_command, stored_config
from cogcalib_jax.configlib.loading import Loaded, load_config
from cogcalib_jax.configlib.sources import DEFAULT_PRESET, find_preset, split_arguments
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.errors import FieldError, UserError, any_of, check
from cogcalib_jax.inference.config import (
    DEFAULT_CALIBRATOR,
    DEFAULT_OPTION_SCORE,
    WITHOUT_PRIOR,
    ChosenOptionScore,
    EvaluationConfig,
)
from cogcalib_jax.machines import DistributedConfig, MeshConfig
from cogcalib_jax.method.config import AnchorConfig, LossConfig, MethodConfig, parse_entry
from cogcalib_jax.models.config import LoraConfig, ModelConfig
from cogcalib_jax.report.text import tempered
from cogcalib_jax.settings import marked_paths, often, setting
from cogcalib_jax.training.config import (
    DEFAULT_OPTIMIZER,
    CheckpointConfig,
    CompositionConfig,
    TrainingConfig,
)
from cogcalib_jax.world.config import FactsConfig, MadeSettings, PretrainConfig, WorldConfig

PROGRAM = "train.py"
# Methods whose best validation epoch is a row of a comparison, with an adapter of its own.
BEST_EPOCHS = ("sft",)
# Dropout of MC-dropout's adapter if lora.lora_dropout is 0, as in the literature on Bayesian LoRA.
MC_DROPOUT = 0.1


@dataclass(frozen=True)
class RunConfig:
    """A fine-tuning run, or a comparison of methods from one start."""

    seed: int = often(0, role="seed")
    """seed of the data order, LoRA's first weights, dropout and generated rows"""
    run_dir: str | None = often(None, affects_identity=False, role="folder")
    """folder of the results; unset: runs/NAME-N after the preset's name"""
    resume: bool = often(False, affects_identity=False, role="resume")
    """continue the run in run_dir from its newest checkpoint"""
    dry_run: bool = often(False, affects_identity=False, role="dry_run")
    """report what would be read and trained, and what the test set can show; then stop"""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = often((), affects_identity=False)
    """trackers that also keep the numbers of training, in METHOD/tracking (extra `trackers`)"""
    compare: tuple[str, ...] = often((), affects_style=False, role="comparison", registry=BASELINES)
    """methods to train from the same start: NAME or TERM@GATE, with optional settings and =WEIGHT
    (cols, focal(gamma=3), mbls(margin=5)@soft=0.3), and baselines with optional settings (blob,
    tfb(criterion=flips)); []: only the method of method.name"""
    recommended: str | None = setting(None, affects_style=False, added=True)
    """method that recommended.json names, as its folder (kl_temperature), which then also holds
    the adapter; unset: chosen on validation questions"""
    ensemble_members: int = setting(5, affects_style=False)
    """number of fine-tunings in a comparison's ensemble; the first is its sft"""
    ensemble_member: int = 0
    """number of this ensemble member, which decides first weights and data order; 0: a plain run"""
    also: tuple[str, ...] = setting((), affects_style=False)
    """further tasks, each NAME or NAME:GROUP, whose test questions are answered, too: they show
    how the methods do on questions of another kind"""
    known_by: str | None = setting(None, affects_identity=False)
    """form in which the start is asked all questions once more, apart from scores, to tell what it
    knows: another prompt (letters, cloze, qa, chat), or wording for a task that makes its rows"""
    option_score: ChosenOptionScore = often(DEFAULT_OPTION_SCORE, affects_style=False)
    """score of an option of several tokens: its log-probability per token (mean), summed (sum), or
    per character (chars); auto: chosen on the validation split before fine-tuning; pmi: only in
    evaluation"""
    data: DataConfig = field(default_factory=DataConfig)
    """the task and its rows"""
    world: WorldConfig = field(default_factory=WorldConfig)
    """the knowledge world (task world only)"""
    facts: FactsConfig = setting(default_factory=FactsConfig, added=True)
    """facts about invented people (task invented_facts only)"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """the base model"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """the trained adapter"""
    adapter: str | None = often(None, place=True, role="adapter")
    """folder of a LoRA adapter in PEFT layout to start from, with its rank, alpha and targets"""
    method: MethodConfig = setting(default_factory=MethodConfig, affects_style=False)
    """the calibration term and its gate"""
    anchor: AnchorConfig = setting(default_factory=AnchorConfig, affects_style=False, added=True)
    """questions without answers on which a term keeps methods near their start; unset: none"""
    loss: LossConfig = field(default_factory=LossConfig)
    """cross-entropy and the gate's NLL"""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """optimisation"""
    composition: CompositionConfig = setting(default_factory=CompositionConfig, affects_style=False)
    """the share of known rows among the fine-tuning rows"""
    evaluation: EvaluationConfig = setting(default_factory=EvaluationConfig, affects_style=False)
    """scoring and metrics"""
    # On another mesh sums are taken in another order: what follows agrees to 1e-5, and not bit for
    # bit.
    mesh: MeshConfig = setting(default_factory=MeshConfig, affects_identity=False)
    """devices"""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """processes, where a run has several (one per host)"""
    checkpoint: CheckpointConfig = setting(default_factory=CheckpointConfig, affects_identity=False)
    """what is saved while training"""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """the base of the knowledge world (task world without model.path)"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check(
            self.model.path is not None or self.data.task == "world",
            "model.path",
            f"must name a base model for task {self.data.task} (a Hub id or a folder)",
        )
        check(
            not self.resume or self.run_dir is not None,
            "run_dir",
            "must name the run to resume (--run-dir runs/NAME-N)",
        )
        check(self.ensemble_members >= 2, "ensemble_members", "must be an integer of at least 2")
        check(self.ensemble_member >= 0, "ensemble_member", "must be an integer of at least 0")
        check(
            self.option_score != "pmi",
            "option_score",
            f"must be {any_of((*WITHOUT_PRIOR, 'auto'))} in training; pmi is for evaluation:"
            " eval.py --run RUN --option-score pmi",
        )
        check(len(set(self.track)) == len(self.track), "track", "must name each tracker once")
        check_tasks(self.also, "also")
        self._check_also()
        check(
            self.known_by is None or self.known_by in self.data.other_forms,
            "known_by",
            f"must be a form beside the run's own (allowed: {', '.join(self.data.other_forms)})",
        )
        check_entries(self.compare, "compare", baselines=True)
        self._check_posteriors()
        check(
            not self.compare or bool(self._trained()),
            "compare",
            f"must name a method beside {' and '.join(self.compare)}, such as sft",
        )
        own = [key for key, one in self.baselines.items() if one.own_training]
        check(
            not own or self.training.optimizer == DEFAULT_OPTIMIZER,
            "training.optimizer",
            f"must be {DEFAULT_OPTIMIZER} beside {', '.join(own)}, which trains in its own way",
        )
        last = [key for key, one in self.baselines.items() if one.of_last_update]
        check(
            not last or self.training.keep == "last",
            "training.keep",
            f"must be last beside {', '.join(last)}, whose distribution is that of the last update",
        )
        check(
            "interpolation" not in self.compare or "sft" in self.resolved_methods(),
            "compare",
            "must name sft beside interpolation, which lies between the start and sft",
        )
        self._check_anchor()
        self._check_recommended()

    def _check_anchor(self) -> None:
        task, anchor = TASKS[self.data.task], self.anchor
        if isinstance(task, MadeTask):
            check(
                anchor.carve is None,
                "anchor.carve",
                f"must be unset: task {self.data.task} has {task.section}.anchor, people of their"
                " own",
            )
        methods = self.resolved_methods() if anchor.methods else {}
        unknown = next((name for name in anchor.methods or () if name not in methods), None)
        check(
            unknown is None,
            "anchor.methods",
            f"must name methods of the run (got {unknown!r}; allowed: {', '.join(methods)})",
        )
        for name, default in anchor.changed().items():
            check(
                self.anchored,
                f"anchor.{name}",
                f"must be {default} without anchors (anchor.path, anchor.carve, world.anchor or"
                " facts.anchor)",
            )
        check(
            not self.anchored or anchor.rows_per_step % self.training.accumulation == 0,
            "anchor.rows_per_step",
            f"must be a multiple of training.accumulation ({self.training.accumulation})",
        )

    def _check_recommended(self) -> None:
        if self.recommended is None:
            return
        check(
            bool(self.compare) and self.evaluation.calibrator == DEFAULT_CALIBRATOR,
            "recommended",
            f"must be unset, but in a comparison with evaluation.calibrator {DEFAULT_CALIBRATOR}",
        )
        allowed = tuple(map(tempered, self.resolved_methods()))
        check(
            self.recommended in allowed,
            "recommended",
            f"must be a method with its temperature (allowed: {', '.join(allowed)})",
        )

    @property
    def _made_anchors(self) -> int:
        """The anchors that the task makes."""
        task = TASKS[self.data.task]
        return getattr(self.made, task.section).anchor if isinstance(task, MadeTask) else 0

    @property
    def anchored(self) -> bool:
        """Return whether the run has questions without answers."""
        return bool(self.anchor.path is not None or self.anchor.carve or self._made_anchors)

    def _check_posteriors(self) -> None:
        """Refuse distributions of A and B if an adapter has other parameters, or lacks layers."""
        fits = self.lora.distributions
        for key, one in self.baselines.items():
            check(
                one.adapters in fits,
                "compare",
                f"must not name {key}, which draws only A and B, if the adapter has"
                " DoRA (lora.use_dora), trained rows of embedding or head, or other ranks by layer",
            )
        check(
            "plain" in fits or self.training.optimizer == DEFAULT_OPTIMIZER,
            "training.optimizer",
            f"must be {DEFAULT_OPTIMIZER} if the adapter has DoRA (lora.use_dora), trained rows"
            " of embedding or head, or other ranks by layer",
        )

    def _check_also(self) -> None:
        task = TASKS[self.data.task]
        answered = {self.data.task}
        if isinstance(task, MadeTask):
            answered |= {f"{self.data.task}:{group}" for group in task.always}
        for entry in self.also:
            check(entry not in answered, "also", f"must not name {entry}, which is answered anyway")
            try:
                self.data.for_task(entry.partition(":")[0])
            except FieldError as error:
                raise FieldError("also", f"cannot name {entry}: data.{error}") from error

    @property
    def made(self) -> MadeSettings:
        """The settings of the tasks that make their own rows."""
        return MadeSettings(self.world, self.facts)

    @property
    def training_seed(self) -> int:
        """The seed of first LoRA weights, data order and dropout; a member has its own."""
        if self.ensemble_member == 0:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.ensemble_member]).generate_state(1)[0])

    @property
    def baselines(self) -> dict[str, Baseline]:
        """Folder name -> settings of every baseline of the comparison."""
        return baseline_folders(self.compare)

    def _trained(self) -> tuple[str, ...]:
        return tuple(entry for entry in self.compare if not is_baseline(entry))

    def resolved_methods(self, entries: tuple[str, ...] | None = None) -> dict[str, MethodConfig]:
        """Return folder name -> resolved method of every loss that the run trains with, or of
        `entries` of a comparison."""
        if entries is None and not self.compare:
            return {self.method.label: self.method.resolve()}
        entries = self._trained() if entries is None else entries
        shared = replace(self.method, name=None, term=None, gate=None)
        methods = {}
        resolved = [parse_entry(entry).within(shared).resolve() for entry in entries]
        short = Counter(method.label for method in resolved)
        for method in resolved:
            # Settings stand in a name only where the comparison needs them to tell two apart.
            methods[method.label if short[method.label] == 1 else method.full_label] = method
        return methods

    def as_written(self) -> RunConfig:
        """Return the config for the run's folder; a single method is spelled out."""
        return self if self.compare else self.for_method(self.method.resolve())

    def as_plain_finetuning(self) -> RunConfig:
        """Return the config of a run whose only method is `sft`."""
        (sft,) = self.resolved_methods(("sft",)).values()
        return self.for_method(sft, "sft")

    def holds(self, folder: str) -> bool:
        """Return whether the method of `folder` is trained with anchors."""
        methods = self.anchor.methods
        return self.anchored and (methods is None or folder in methods)

    def for_method(self, method: MethodConfig, folder: str | None = None) -> RunConfig:
        """Return the config of a run whose only method is `method`.

        folder: of the method in a comparison, which decides about anchors; None: that of its name.
        """
        held = self.holds(folder or method.label)
        training, anchor = self.training, self.anchor
        if held:
            training = replace(training, **anchor.of_training)
        if self.anchored:
            given = replace(anchor, methods=None, epochs=None, learning_rate=None)
            anchor = given if held else AnchorConfig(methods=())
        return replace(
            self,
            method=replace(method, name=None),
            compare=(),
            recommended=None,
            training=training,
            anchor=anchor,
        )


def check_seed(seed: int) -> None:
    """Refuse seeds that do not fit into the 32 bits of a random key."""
    check(0 <= seed < 2**32, "seed", f"must be an integer from 0 to {2**32 - 1}")


def check_tasks(entries: tuple[str, ...], field: str) -> None:
    """Refuse tasks, each NAME or NAME:GROUP, that do not exist or are named twice."""
    check(len(set(entries)) == len(entries), field, "must name each task once")
    for entry in entries:
        check(
            entry.partition(":")[0] in TASKS,
            field,
            f"must name tasks, each NAME or NAME:GROUP (got {entry!r}; allowed names:"
            f" {', '.join(TASKS)})",
        )


def check_entries(entries: tuple[str, ...], field: str, *, baselines: bool = False) -> None:
    """Refuse methods of a comparison that do not exist or are named twice. Beside them may stand
    `baselines`, which have no weight."""
    labels = []
    for entry in entries:
        named = baselines and is_baseline(entry)
        try:
            labels.append(baseline_label(entry) if named else parse_entry(entry).full_label)
        except UserError as error:
            also = f"; or {' or '.join(BASELINES.names())}" if baselines and not named else ""
            raise FieldError(field, f"{error}{also}") from error
    check(len(set(labels)) == len(labels), field, "must name each method once")


def load_training(argv: Sequence[str], description: str) -> tuple[RunConfig, str]:
    """Return the config of `argv`, and the preset's name for a default run folder.

    A run that is resumed without `--config` takes its stored config, with options laid over it.
    Raises UserError as `load_config` does.
    """
    stored = stored_config(argv, RunConfig)
    if stored:
        _require_whole_run(Path(stored[-1]).parent)
        if "method.name" in split_arguments(RunConfig, argv).words:
            # The stored config spells the method out, which would contradict a name.
            stored += ["--method.term", "null", "--method.gate", "null"]
    loaded = load_config(
        RunConfig,
        [*stored, *argv],
        prog=PROGRAM,
        description=description,
        default_preset=find_preset(DEFAULT_PRESET),
    )
    _require_nothing_retyped(loaded)
    return settle_comparison(loaded), loaded.preset.stem


def _require_whole_run(folder: Path) -> None:
    """Refuse to resume a single method of a comparison, which shares start and threshold."""
    parent = folder.parent
    if not (parent / CONFIG_FILE).is_file():
        return
    whole = read_config(parent, RunConfig)
    if whole.compare and folder.name in {
        *whole.resolved_methods(),
        *whole.baselines,
        whole.recommended,
    }:
        raise UserError(
            f"{folder}: is a part of the comparison {parent}; go on with"
            f" {resume_command(PROGRAM, parent)}"
        )


def _require_nothing_retyped(loaded: Loaded[RunConfig]) -> None:
    """Refuse options that the adapter of the start states itself."""
    retyped = sorted(set(marked_paths(RunConfig, "of_adapter")) & loaded.explicit)
    if loaded.config.adapter is not None and retyped:
        raise UserError(
            f"command line: --{retyped[0]} cannot be used with --adapter, which sets rank, alpha"
            " and targets; leave it out"
        )


def settle_comparison(loaded: Loaded[RunConfig]) -> RunConfig:
    """Drop a preset's comparison for an explicit method; refuse both on the command line."""
    methods = sorted(path for path in loaded.explicit if path.split(".")[0] == "method")
    if loaded.config.compare and loaded.config.ensemble_member and not methods:
        raise UserError(
            f"ensemble_member = {loaded.config.ensemble_member}: must be 0 in a comparison, which"
            " numbers its members itself; name one method (--method.name sft)"
        )
    if not methods or not loaded.config.compare:
        return loaded.config
    if "compare" in loaded.explicit:
        raise UserError(
            f"command line: --compare and --{methods[0]} contradict each other; give the methods"
            " of a comparison as NAME or NAME=WEIGHT, or one method alone"
        )
    # What a preset says about the methods of its comparison has no meaning for another one.
    anchor = replace(loaded.config.anchor, methods=None)
    return replace(loaded.config, compare=(), recommended=None, anchor=anchor)
