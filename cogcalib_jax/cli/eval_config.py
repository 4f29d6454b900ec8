"""The config of an evaluation, and the finished runs that it takes settings from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cogcalib_jax.cli import stored
from cogcalib_jax.cli.run_config import RunConfig, check_seed, check_tasks
from cogcalib_jax.configlib.loading import given_values, load_config
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.errors import FieldError, UserError, any_of, check
from cogcalib_jax.files import refuse_external_links
from cogcalib_jax.inference.config import (
    DEFAULT_OPTION_SCORE,
    OPTION_SCORES,
    WITHOUT_PRIOR,
    ChosenOptionScore,
    EvaluationConfig,
    OptionScore,
    check_calibrator,
    stored_option_score,
)
from cogcalib_jax.machines import DistributedConfig, MeshConfig
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.report.text import REFERENCES, best_epoch_of, is_tempered, tempered
from cogcalib_jax.settings import get, marked_paths, often, setting, to_dict
from cogcalib_jax.world.config import FactsConfig, MadeSettings, WorldConfig

STORED = "stored"
"""the name of the calibrator in an adapter's calibration.json"""
BARE = "none"
"""the name of the bare base in a list of adapters"""


@dataclass(frozen=True)
class EvalConfig:
    """The models of an evaluation (runs, or a base with or without adapters) and its questions."""

    run: tuple[str, ...] = often(())
    """finished runs (a comparison stands for all its methods); the first one sets the defaults of
    data, evaluation, seed, mesh and model, but each keeps its own base"""
    task: tuple[str, ...] = often(())
    """tasks to evaluate on, each NAME or NAME:GROUP; none: data.task, as in a training run"""
    by: tuple[str, ...] = often(())
    """fields of the questions, such as subject; each value of a field gets its own numbers"""
    run_dir: str | None = often(None, affects_identity=False, role="folder")
    """folder of the results; unset: runs/eval-N"""
    resume: bool = often(False, affects_identity=False, role="resume")
    """continue the evaluation in run_dir; finished tasks are not repeated"""
    adapter: tuple[str, ...] = often(())
    """folders of LoRA adapters in PEFT layout for model.path; the word none means the bare base"""
    ensemble: bool = False
    """runs or adapters on one base as a single model, whose probabilities are averaged"""
    mc_passes: int | None = None
    """MC-dropout of adapters trained with it: passes to average; unset: one without dropout"""
    tfb: str | None = None
    """TFB: average each adapter over evaluation.mc_passes draws of the largest noise that keeps its
    answers to anchors; with settings if wanted, as in tfb(criterion=flips) (docs/baselines.md)"""
    tfb_anchors: str | None = None
    """file of anchor questions for tfb (answers not needed); unset: each run's training rows"""
    predictions: str | None = often(None)
    """score this file of predictions made elsewhere, without a model; docs/evaluation.md"""
    predict: str | None = often(None)
    """file of questions (answers not needed) to answer with confidence"""
    out: str | None = often(None)
    """file that predict writes its answers to"""
    abstain_below: float | None = None
    """predict: leave questions open whose confidence is lower than this"""
    target_accuracy: float | None = often(None)
    """predict: leave unsure questions open until the rest is this accurate on held-out questions"""
    option_score: ChosenOptionScore | None = often(None)
    """score of an option of several tokens: docs/evaluation.md; unset: the rule of the runs or
    adapters, else mean"""
    calibrator: str | None = often(None)
    """calibrator of option scores: temperature, vector, platt, isotonic, mixture, linear_mixture
    or daca, fitted on the calibration split of each run (of data, for adapters without a run);
    stored: the one in calibration.json; unset: none, but predict uses the stored one"""
    start: str | None = None
    """for adapters without a run: the adapter from which training began; unset: the bare base"""
    seed: int = 0
    """seed of generated questions, resampling and simulated noise"""
    data: DataConfig = field(default_factory=DataConfig)
    """the questions; path holds those of data.task, other tasks are read from the Hub"""
    world: WorldConfig = field(default_factory=WorldConfig)
    """the knowledge world (task world only)"""
    facts: FactsConfig = setting(default_factory=FactsConfig, added=True)
    """facts about invented people (task invented_facts only)"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """the base model; path unset: each run's own"""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """scoring and metrics"""
    mesh: MeshConfig = setting(default_factory=MeshConfig, affects_identity=False)
    """devices"""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """processes, where an evaluation has several (one per host)"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check(
            bool(self.run) or self.model.path is not None or self.predictions is not None,
            "run",
            "must name the folder of a run (--run runs/NAME-N), or --model.path a base model",
        )
        for name in ("run", "adapter", "by"):
            entries = getattr(self, name)
            check(len(set(entries)) == len(entries), name, f"must name each {name} once")
        check(
            not self.run or not self.adapter,
            "adapter",
            "must be none if run is given, which has its own; give model.path instead of run",
        )
        check_tasks(self.task, "task")
        check(
            not self.resume or self.run_dir is not None,
            "run_dir",
            "must name the evaluation to resume (--run-dir runs/eval-N)",
        )
        check(
            self.option_score != "auto",
            "option_score",
            f"must be {any_of(OPTION_SCORES)}; auto is for training, which chooses on labelled"
            " validation questions before it fine-tunes",
        )
        passes = self.mc_passes
        check(
            passes is None or self.option_score != "pmi",
            "mc_passes",
            "must be none beside option_score pmi, which has no prior under a dropout mask",
        )
        check(passes is None or passes >= 1, "mc_passes", "must be an integer of at least 1")
        check(
            not self.ensemble or passes is None,
            "mc_passes",
            "must be none beside ensemble: each averages over models of its own",
        )
        if self.predictions is not None:
            self._require_unset("predictions", "run", "adapter", "task", "predict", "resume")
            self._require_unset("predictions", "ensemble", "mc_passes")
            self._require_one_process("predictions")
            check(
                self.model.path is None,
                "model.path",
                "must be none beside predictions, which are scored without a model",
            )
        self._check_tfb()
        self._check_calibrator()
        self._check_predict()

    @property
    def made(self) -> MadeSettings:
        """The settings of the tasks that make their own rows."""
        return MadeSettings(self.world, self.facts)

    def _check_tfb(self) -> None:
        if self.tfb is None:
            check(self.tfb_anchors is None, "tfb_anchors", "must be none unless tfb is given")
            return
        from cogcalib_jax.baselines.tfb import parse  # brings JAX, which help does not need

        try:
            settings = parse(self.tfb)
        except UserError as error:
            raise FieldError("tfb", str(error)) from error
        self._require_unset("tfb", "ensemble", "mc_passes", "predictions", "predict")
        check(
            self.option_score != "pmi",
            "option_score",
            f"must be {any_of(WITHOUT_PRIOR)} beside tfb",
        )
        check(
            bool(self.run) or self.tfb_anchors is not None,
            "tfb_anchors",
            "must name a file of questions for adapters, whose training rows are not known",
        )
        check(
            settings.criterion != "gold_nll" or self.tfb_anchors is None,
            "tfb_anchors",
            "must be none for the criterion gold_nll, which needs the answers of a run's rows",
        )

    def _check_calibrator(self) -> None:
        check(
            self.start is None or (bool(self.adapter) and self.calibrator not in (None, STORED)),
            "start",
            "must be none but for adapters with a calibrator that is fitted",
        )
        if self.calibrator is None:
            return
        for name in ("ensemble", "mc_passes", "tfb", "predictions"):
            check(not getattr(self, name), "calibrator", f"must be none beside {name}")
        if self.calibrator == STORED:
            return
        check_calibrator(self.calibrator)
        alone = self.predict is None and bool(self.adapter) and BARE not in self.adapter
        check(
            bool(self.run) or alone,
            "calibrator",
            f"must be {STORED} or none without a run, or adapters to evaluate, to fit it on",
        )

    def _check_predict(self) -> None:
        if self.predict is None:
            for name in ("out", "abstain_below", "target_accuracy"):
                check(getattr(self, name) is None, name, "must be none unless predict is given")
            return
        self._require_unset("predict", "task", "by", "run_dir", "resume")
        self._require_unset("predict", "ensemble", "mc_passes")
        self._require_one_process("predict")
        check(self.out is not None, "out", "must name the file for the answers (--out FILE)")
        for name in ("run", "adapter"):
            one = "must name one model: only one can answer"
            one += " (of a comparison name RUN/METHOD)" if name == "run" else ""
            check(len(getattr(self, name)) <= 1, name, one)
        cuts = [n for n in ("abstain_below", "target_accuracy") if getattr(self, n) is not None]
        for name in cuts:
            check(
                bool(self.run),
                name,
                "must be none without a run: what the rest may be trusted with is measured on the"
                " run's held-out questions, and a base or adapter alone has none",
            )
            check(0 < getattr(self, name) <= 1, name, "must be above 0 and at most 1")
        check(
            len(cuts) < 2,
            "target_accuracy",
            "must be none beside abstain_below: each decides what is left open",
        )

    def _require_one_process(self, beside: str) -> None:
        check(
            self.distributed == DistributedConfig(),
            "distributed.coordinator",
            f"must be none beside {beside}, which takes one process",
        )

    def _require_unset(self, beside: str, *names: str) -> None:
        for name in names:
            check(not getattr(self, name), name, f"must be none beside {beside}")


def load_evaluation(argv: Sequence[str], *, prog: str, description: str) -> EvalConfig:
    """Return the config of `argv`, laid over the settings of the first run that it names.

    A comparison among the runs stands for its methods. If one task is named, it becomes
    `data.task`, and the `data.path` of the run stays only if its rows are of that task. An
    evaluation that is resumed without `--config` takes the stored config.

    Raises:
        UserError: as `load_config`; one `data.path` for several tasks; runs that differ in
            questions or prompts.
    """
    resumed = stored.stored_config(argv, EvalConfig)
    if resumed:
        loaded = load_config(
            EvalConfig, [*resumed, *argv], prog=prog, description=description
        ).config
        return replace(loaded, run=_all_folders(loaded.run, loaded.ensemble))
    given = given_values(EvalConfig, argv)
    names = _all_folders(given.get("run", ()), given.get("ensemble", False))
    runs = {name: read_trained_run(name) for name in names}
    start = _settings(names, next(iter(runs.values()))) if runs else None
    implied = _implied(given, start)
    loaded = load_config(
        EvalConfig, [*implied, *argv], prog=prog, description=description, start=start
    )
    if "evaluation.calibrator" in loaded.explicit:
        raise UserError(
            "command line: evaluation.calibrator is what training stores; expected none here. Use"
            " --calibrator NAME"
        )
    _require_agreement(runs, {*given, *loaded.explicit})
    config = loaded.config
    return replace(config, run=names, option_score=settled_option_score(config))


def settled_option_score(config: EvalConfig) -> OptionScore:
    """Return the rule that scores options: the given one, that of the runs, the one in the
    calibration.json of adapters or of a merged model, or mean.

    Raises:
        UserError: adapters with different rules.
    """
    if config.option_score is not None and config.option_score != "auto":
        return config.option_score
    if config.run:
        return read_trained_run(config.run[0]).option_score
    from cogcalib_jax.hf.adapter import read_calibration  # brings JAX, which help does not need

    adapters = [adapter for adapter in config.adapter if adapter != BARE]
    folders = adapters or ([] if config.model.path is None else [config.model.path])
    rules: dict[OptionScore, str] = {}
    for folder in folders:
        rule = stored_option_score(read_calibration(Path(folder)) or {})
        if rule is not None:
            rules.setdefault(rule, folder)
    if len(rules) > 1:
        named = ", ".join(f"{rule} in {folder}" for rule, folder in rules.items())
        raise UserError(
            f"adapter: their options are scored by different rules ({named}); give --option-score"
            " for all, or evaluate them one by one"
        )
    return next(iter(rules), DEFAULT_OPTION_SCORE)


def _settings(names: tuple[str, ...], run: RunConfig) -> EvalConfig:
    """Return the settings of `run`, the first of `names`."""
    return EvalConfig(
        run=names,
        option_score=run.option_score,
        seed=run.seed,
        data=run.data,
        world=run.world,
        facts=run.facts,
        model=replace(run.model, path=None),
        evaluation=run.evaluation,
        mesh=run.mesh,
    )


def _implied(given: dict[str, Any], start: EvalConfig | None) -> list[str]:
    """Return arguments that follow from the tasks; explicit arguments come later and win."""
    if given.get("predict") is not None and start is None and "data.task" not in given:
        return ["--data.task", "custom", "--data.path", given["predict"]]
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


def _require_agreement(runs: Mapping[str, RunConfig], given: set[str]) -> None:
    """Refuse runs with different questions, prompts or rules of scoring."""
    if not runs:
        return
    (first, config), *others = runs.items()
    wanted = dict(_asked(config))
    for name, other in others:
        for path, value in _asked(other):
            if path not in given and value != wanted[path]:
                raise UserError(
                    f"{name}: {path} is {value!r}, and {wanted[path]!r} in {first}: they would"
                    f" not be asked alike; give --{path.replace('_', '-')} for both, or evaluate"
                    " them one by one"
                )


def _asked(run: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yield dotted path -> value of all that decides questions, prompts and scoring."""
    for name in ("data", "world", "facts"):
        section = getattr(run, name)
        for path in marked_paths(type(section), "affects_questions"):
            yield f"{name}.{path}", get(to_dict(section), path)
    yield "option_score", run.option_score
    # The seed makes other rows; stored rows are split by data.split_seed.
    yield "seed", run.seed if isinstance(TASKS[run.data.task], MadeTask) else None


def _all_folders(runs: Sequence[str], ensemble: bool) -> tuple[str, ...]:
    """Return the run folders of an evaluation, with the methods of a comparison in its place."""
    # A best epoch is no training of its own, and so no member of an ensemble.
    return tuple(path for name in runs for path in method_folders(name, not ensemble))


def method_folders(name: str, best_epochs: bool = True) -> tuple[str, ...]:
    """Return the run folder `name`, or the folders of all methods of a comparison, with the best
    epochs that were kept if `best_epochs`."""
    folder = Path(name)
    config = _read_config(folder)
    if not config.compare:
        return (name,)
    trained = [folder / key for key in config.resolved_methods()]
    unfinished = [method.name for method in trained if not (method / "adapter").is_dir()]
    if unfinished:
        raise UserError(
            f"{folder}: {', '.join(unfinished)} not finished; continue with"
            f" {stored.resume_command('train.py', folder)}, or name the finished methods"
            f" ({folder}/METHOD)"
        )
    methods = [
        place
        for method in trained
        for place in (method, folder / best_epoch_of(method.name))
        if place == method or (best_epochs and (place / "adapter").is_dir())
    ]
    return tuple(map(str, methods))


def read_trained_run(name: str) -> RunConfig:
    """Return the config of a finished run of one method (UserError for any other folder)."""
    folder = Path(name)
    config = _read_config(folder)
    if not (folder / "adapter").is_dir():
        raise UserError(
            f"{folder}: no adapter, so its training is not finished; continue it with"
            f" {stored.resume_command('train.py', folder)}"
        )
    return config


def _read_config(folder: Path) -> RunConfig:
    file = folder / "config.yaml"
    if not file.exists() and (folder / "eval.json").is_file():
        if is_tempered(folder.name):
            weights = folder.with_name(folder.name.removesuffix(tempered("")))
            raise UserError(
                f"{folder}: holds the answers of {weights} with its temperature; give that folder,"
                " whose adapter/calibration.json has the temperature"
            )
        if folder.name in REFERENCES:
            raise UserError(
                f"{folder}: holds only answers, because nothing was trained; for the base give"
                " --model.path BASE --adapter none"
            )
        raise UserError(
            f"{folder}: holds only answers; its weights were not kept. For the weights of the best"
            " epoch, train the method alone with --training.keep best"
        )
    if not file.is_file():
        raise UserError(
            f"{folder}: no config.yaml, so it is not a run of train.py; give the folder of a run,"
            " or of a comparison of methods"
        )
    refuse_external_links(folder, (file, folder / "adapter", folder / stored.CHOICE_FILE))
    config = stored.read_config(folder, RunConfig)
    if config.option_score == "auto" and not config.compare:
        config = replace(config, option_score=stored.read_choice(folder))
    return config
