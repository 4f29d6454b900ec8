"""An evaluation: models, questions, scores, numbers, and the text that eval.py prints."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from cogcalib_jax.baselines.sampling import DropoutPredictor, EnsemblePredictor
from cogcalib_jax.baselines.tfb import FILE as TFB_FILE
from cogcalib_jax.baselines.tfb import Fitted, fit, parse
from cogcalib_jax.calibration import CALIBRATORS, Calibrator, TemperatureScaler
from cogcalib_jax.cli import run_folder
from cogcalib_jax.cli.eval_config import (
    BARE,
    EvalConfig,
    read_trained_run,
    settled_option_score,
)
from cogcalib_jax.cli.evaluated import (
    CALIBRATOR_FILE,
    Evaluated,
    ModelCalibrator,
    asked_calibrator,
    by_base,
    calibrator_words,
    evaluated_models,
)
from cogcalib_jax.cli.prepare import (
    NO_CALIBRATORS,
    answering,
    open_predictor,
    stored_calibrators,
    with_processes,
)
from cogcalib_jax.cli.questions import (
    encode_questions,
    note_trained_questions,
    test_questions,
    tfb_anchors,
)
from cogcalib_jax.cli.results import (
    FILE,
    Predict,
    finished_tasks,
    has_results,
    read_results,
    write_results,
)
from cogcalib_jax.cli.stored import require_same_config, resume_command
from cogcalib_jax.cli.train import require_prefix
from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import read_object
from cogcalib_jax.hf.adapter import CALIBRATION_FILE
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.inference.base_model import BaseModel, load_on_mesh, split_base
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, OptionScore
from cogcalib_jax.inference.evaluate import data_hash, question_fields, require_fields, write_json
from cogcalib_jax.inference.open_ended import OpenPredictions, OpenPredictor
from cogcalib_jax.inference.posthoc import stored_calibrator, stored_temperature
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.report.comparison import COMPARISON, results_text, write_comparison
from cogcalib_jax.report.report import write_evaluation_report
from cogcalib_jax.report.text import TEXT_WIDTH, best_epoch_of, count, long_name
from cogcalib_jax.settings import with_places_of
from cogcalib_jax.sharding import make_mesh
from cogcalib_jax.training.compatible import check_context

PROGRAM = "eval.py"
Sets = Mapping[str, EncodedSplit]
"""task -> its questions as token ids"""


def evaluate_run(config: EvalConfig, argv: list[str]) -> Path:
    """Evaluate all models of `config`, store `argv` with the results, and return their folder."""
    config = with_processes(config)
    folder = run_folder.choose_folder(config.run_dir, "eval", config.resume)
    with run_folder.holding_locks(), run_folder.resumable(folder, resume_command(PROGRAM, folder)):
        if config.resume:
            run_folder.take_up(folder)
            stored = require_same_config(folder, config, places_too=False)
            moved = with_places_of(stored, config)
            if moved != stored:
                run_folder.write_config(folder, moved)
        _evaluate_all(config, folder, argv)
    return folder


def _evaluate_all(config: EvalConfig, folder: Path, argv: list[str]) -> None:
    models = evaluated_models(config)
    say(f"== Evaluating {', '.join(model.name for model in models)}")
    sets = _question_sets(config, models)
    several = len(models) > 1
    places = {model.name: folder / model.name if several else folder for model in models}
    todo = [model for model in models if not _is_done(places[model.name], model, sets)]
    calibrators = _calibrators(config, todo, sets)
    anchors = {model.name: _anchors_of(config, model, sets) for model in todo}
    for group in by_base(todo):
        loaded = load_model(config, group[0], sets[group[0].reads_with].values())
        answered = [
            (
                model,
                *predict_function(loaded, model, calibrators.get(model.name), anchors[model.name]),
            )
            for model in group
        ]
        # A mistake until here leaves no folder behind.
        run_folder.make_folder(folder)
        command = run_folder.original_command(folder, PROGRAM, argv)
        if not config.resume:
            run_folder.write_config(folder, config)
        for model, predict, calibrator in answered:
            say(f"== {model.name}: {model.words}")
            place = places[model.name]
            if isinstance(predict, Fitted):
                write_json(place / TFB_FILE, predict.record)
                say(f"   {predict.words}")
            if calibrator is not None:
                write_json(place / CALIBRATOR_FILE, calibrator.calibrator.to_json())
                say(f"   {calibrator_words(calibrator.calibrator)}")
            write_results(
                place,
                sets[model.reads_with],
                predict,
                config.evaluation,
                config.seed,
                command,
                model=model.words,
                by=config.by,
                weights=model.weights(),
                quantise=config.model.quantise,
                started=lambda task: say(f"   {task}"),
            )
    if several:
        results = {model.name: read_results(places[model.name]) for model in models}
        write_json(folder / f"{COMPARISON}.json", results)


def _calibrators(
    config: EvalConfig, models: Sequence[Evaluated], sets: Mapping[tuple[str, str], Sets]
) -> dict[str, ModelCalibrator]:
    """Return name -> calibrator, before any model is loaded."""
    if config.calibrator is None:
        return {}
    asked = {}
    for model in models:
        tokenizer = load_base_tokenizer(model.base, model.tokenizer_from, note=lambda _: None)
        rule = settled_option_score(config)
        one = asked_calibrator(config, model, tokenizer, rule)
        assert one is not None
        for encoded in sets[model.reads_with].values():
            one.require(encoded)
        asked[model.name] = one
    return asked


def _anchors_of(
    config: EvalConfig, model: Evaluated, sets: Mapping[tuple[str, str], Sets]
) -> EncodedSplit | None:
    """Return the anchors of TFB for `model`; None without TFB (UserError if there are none)."""
    if config.tfb is None:
        return None
    if model.adapter is None:
        raise UserError(f"tfb: {model.name} has no adapter to add noise to; leave it out")
    tokenizer = load_base_tokenizer(model.base, model.tokenizer_from, note=lambda _: None)
    return tfb_anchors(config, model.run, tokenizer, sets[model.reads_with].values())


def _question_sets(config: EvalConfig, models: Sequence[Evaluated]) -> dict[tuple[str, str], Sets]:
    """Return `Evaluated.reads_with` -> task -> questions as token ids of that tokenizer."""
    questions = test_questions(config, [m.run for m in models if m.run is not None])
    members = chain.from_iterable(model.members or (model,) for model in models)
    note_trained_questions(config, [m.run for m in members if m.run is not None], questions)
    sets: dict[tuple[str, str], Sets] = {}
    for reading, model in {model.reads_with: model for model in models}.items():
        tokenizer = load_base_tokenizer(model.base, model.tokenizer_from)
        sets[reading] = encode_questions(config, questions, tokenizer)
        _require_suitable(config, sets[reading])
    return sets


def _require_suitable(config: EvalConfig, sets: Sets) -> None:
    """Refuse questions without the fields or the options that `config` needs (UserError)."""
    require_fields(config.by, {task: question_fields(encoded) for task, encoded in sets.items()})
    averaging = next((n for n in ("ensemble", "mc_passes", "tfb") if getattr(config, n)), None)
    for task, encoded in sets.items():
        if averaging and encoded.is_open:
            raise UserError(
                f"{averaging}: averages the probabilities of options, and questions of {task} are"
                " open; leave it out"
            )


def _is_done(folder: Path, model: Evaluated, sets: Mapping[tuple[str, str], Sets]) -> bool:
    """Return whether `folder` holds the results of this model; refuse those of another one."""
    if not has_results(folder):
        return False
    hashes = {task: data_hash(encoded) for task, encoded in sets[model.reads_with].items()}
    return bool(finished_tasks(folder / FILE, hashes, model.weights()))


@dataclass(frozen=True)
class Loaded:
    """A base on its devices, for adapters of one rank and one set of targets."""

    config: EvalConfig
    rule: OptionScore
    base: BaseModel
    predictor: Predictor
    answers: OpenPredictor | None
    """the predictor of open questions, if there are any"""

    @cached_property
    def sampled(self) -> DropoutPredictor:
        """The predictor with dropout, which averages passes."""
        passes = replace(self.config.evaluation, mc_passes=self.config.mc_passes)
        return DropoutPredictor(self.base.split, self.base.mesh, passes, self.rule)

    @cached_property
    def together(self) -> EnsemblePredictor:
        """The predictor that averages several adapters."""
        evaluation = self.config.evaluation
        return EnsemblePredictor(self.base.split, self.base.mesh, evaluation, self.rule)

    def parameters(self, adapter: str | Path | None) -> nnx.State:
        """Return the LoRA parameters of `adapter`; of the bare base there are none."""
        if adapter is None:
            return nnx.state(self.base.decoder, nnx.LoRAParam)
        return self.base.read_adapter(adapter)

    def start_parameters(self, start: str | Path) -> nnx.State:
        """Return the LoRA parameters of the start; zeros for the bare base."""
        if start == BARE:
            return jax.tree.map(jnp.zeros_like, self.parameters(None))
        return self.parameters(start)


def load_model(config: EvalConfig, model: Evaluated, sets: Collection[EncodedSplit]) -> Loaded:
    """Load the base of `model` for adapters of its shape; `sets` are the questions."""
    rule = settled_option_score(config)
    require_prefix(rule, sets)
    mesh, settings = make_mesh(config.mesh), replace(config.model, path=str(model.base))
    decoder = load_on_mesh(settings, mesh, model.lora, None, config.seed)
    tokenizer = load_base_tokenizer(model.base, model.tokenizer_from, note=lambda _: None)
    base, _ = split_base(str(model.base), decoder, tokenizer)
    predictor = Predictor(base.split, mesh, config.evaluation, rule)
    context = decoder.config.max_position_embeddings
    for text in check_context(context, sets, config.evaluation.open.max_new_tokens):
        show_note(text)
    scorer = predictor.scored_by(DEFAULT_OPTION_SCORE)
    parts = (base.split, scorer, config.evaluation, config.data, tokenizer)
    return Loaded(config, rule, base, predictor, open_predictor(*parts, sets))


def predict_function(
    loaded: Loaded,
    model: Evaluated,
    calibrator: ModelCalibrator | None = None,
    anchors: EncodedSplit | None = None,
) -> tuple[Predict, ModelCalibrator | None]:
    """Return the function from questions to predictions of `model`, and its fitted calibrator."""
    config, base = loaded.config, loaded.base
    if model.members:
        members = [loaded.parameters(one.adapter) for one in model.members]
        return partial(loaded.together, members), None
    lora, open_maps = loaded.parameters(model.adapter), NO_CALIBRATORS
    if model.adapter is not None:
        open_maps = stored_calibrators(Path(model.adapter))
    if config.tfb is not None and anchors is not None:
        settings = (parse(config.tfb), base.split, lora, base.mesh, anchors, config.evaluation)
        return fit(*settings, loaded.rule, config.seed), None
    if config.mc_passes is not None:
        return partial(loaded.sampled, lora, seed=config.seed), None
    if calibrator is not None:
        score, first = partial(loaded.predictor, lora), None
        if calibrator.start is not None:
            first = partial(loaded.predictor, loaded.start_parameters(calibrator.start))
        calibrator = calibrator.fitted(score, first)
        return partial(calibrator, score=score, score_start=first), calibrator

    def predict(encoded: EncodedSplit) -> Predictions | OpenPredictions:
        if encoded.is_open:
            assert loaded.answers is not None  # `load_model` was told of these questions
            return answering(loaded.answers, lora, config.seed, lambda: open_maps)(encoded)
        return loaded.predictor(lora, encoded)

    return predict, None


def evaluation_text(config: EvalConfig, folder: Path) -> str:
    """Return the tables of a finished evaluation and the places of its files; for several models
    write comparison.md and comparison.csv."""
    if (folder / f"{COMPARISON}.json").is_file():
        comparison = write_comparison(folder, config.evaluation.bins)
        return (
            f"{comparison}\n\nReport: {write_evaluation_report(folder)}\n"
            f"The same: {folder / COMPARISON}.md, .csv and .json\n"
            f"Every answer: {folder / 'MODEL' / 'predictions'}"
        )
    text = f"{_whose(config)}{_calibrated(folder)}:\n\n{results_text(read_results(folder))}\n\n"
    notes = [textwrap.fill(line, TEXT_WIDTH) for line in _temperature(config)]
    text += "".join(f"{note}\n\n" for note in notes)
    text += f"All numbers: {folder / FILE}"
    if config.predictions is None:
        text += f"\nReport: {write_evaluation_report(folder, _short_name(config), notes)}"
        text += f"\nEvery answer: {folder / 'predictions'}"
    return text


def _calibrated(folder: Path) -> str:
    file = folder / CALIBRATOR_FILE
    if not file.is_file():
        return ""
    calibrator = Calibrator.from_json(read_object(file, ""))
    rows = count(calibrator.n_rows_, "calibration question")
    return f", calibrated by {CALIBRATORS.spec(calibrator)} fitted on {rows}"


def _temperature(config: EvalConfig) -> list[str]:
    """Return a note that the table leaves out the calibrator of `--predict`, if there is one."""
    if config.calibrator is not None:
        return []
    adapters = [str(Path(run) / "adapter") for run in config.run] or list(config.adapter)
    if (
        config.ensemble
        or config.mc_passes
        or config.tfb
        or len(adapters) != 1
        or adapters[0] == BARE
    ):
        return []
    fitted = stored_temperature(Path(adapters[0]))
    if fitted is None:
        return []
    if fitted.value is None:
        return [f"Warning: {fitted.warning}."]
    calibrator, file = stored_calibrator(Path(adapters[0])), f"{adapters[0]}/{CALIBRATION_FILE}"
    told = (
        "These are the model's own confidences. --predict divides the scores by the temperature"
        f" {fitted.value:.3g}, as {file} says."
    )
    if calibrator is not None and not isinstance(calibrator, TemperatureScaler):
        spec = CALIBRATORS.spec(calibrator)
        told = f"These are the model's own confidences. --predict applies the {spec} of {file}."
    return [told] if fitted.warning is None else [told, f"Warning: {fitted.warning}."]


def _short_name(config: EvalConfig) -> str:
    """The single model's name in the report's tables: the last part of its path."""
    if config.ensemble:
        return "ensemble"
    adapters = [adapter for adapter in config.adapter if adapter != BARE]
    return Path([*config.run, *adapters, str(config.model.path)][0]).resolve().name


def _whose(config: EvalConfig) -> str:
    if config.predictions is not None:
        return config.predictions
    if config.ensemble:
        return f"Ensemble of {', '.join(config.run or config.adapter)}"
    if config.run:
        (run,) = config.run
        trained = read_trained_run(run)
        label = trained.method.label
        kept = best_epoch_of(label) if trained.training.keep == "best" else label
        return f"{long_name(kept)}, from {run}"
    return f"{config.model.path} with {config.adapter[0] if config.adapter else 'no adapter'}"
