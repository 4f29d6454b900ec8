"""One method of a run: trained from a start into a folder of its own, and scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS, Calibrator
from cogcalib_jax.cli.prepare import Assembled, answering, stored_calibrators
from cogcalib_jax.cli.results import Predict, has_results, read_results, write_results
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import write_config
from cogcalib_jax.cli.tracking import tracked
from cogcalib_jax.console import say, warn
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main, main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, adapter_hash, read_calibration, save_adapter
from cogcalib_jax.hf.card import write_card
from cogcalib_jax.hf.tokenizer import copy_tokenizer
from cogcalib_jax.inference.calibration_file import OPTIONS, START, START_HASH, WHY_NONE, how_asked
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.open_ended import Answers
from cogcalib_jax.inference.open_results import fit_calibrators, to_json
from cogcalib_jax.inference.posthoc import (
    STORED,
    fit_calibrator,
    fit_temperature,
    stored_calibrator,
    stored_temperature,
    with_calibrator,
    with_start,
)
from cogcalib_jax.inference.predictions import Predictions, write_rows
from cogcalib_jax.inference.probe import choose_probe, reduced_adapter
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.parameters import without_uncertainty
from cogcalib_jax.report.recommendation import VALIDATION_FILE
from cogcalib_jax.report.text import count
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, finetune
from cogcalib_jax.training.validation import Belief, options_belief


@dataclass(frozen=True)
class Run:
    """A run under way: everything its methods share."""

    config: RunConfig
    folder: Path
    command: str
    base: str | Path
    tokenizer: PreTrainedTokenizerBase
    assembled: Assembled
    trainer: Trainer
    sets: dict[str, EncodedSplit]
    """task -> test questions"""


@dataclass(frozen=True)
class Start:
    """The model in which fine-tuning begins."""

    lora: nnx.State
    """LoRA parameters after the style phase"""
    folder: Path
    """holds `style/`, the journal of that phase, and `start_adapter/`"""

    @property
    def style(self) -> Path:
        return self.folder / "style"

    @property
    def adapter(self) -> Path:
        return self.folder / START


def train_method(
    run: Run, trainer: Trainer, config: RunConfig, start: Start, folder: Path
) -> FinetuneResult:
    """Fine-tune the one method of `config` into `folder` and write its adapter, and the start's
    unless it is there.

    trainer: the run's, or one that differs in seed or dropout as `config` does.
    """
    method = config.method.resolve()
    term = f"term {method.term} on {method.gate}, weight {method.weight:g}"
    plain = method.term == "none"
    updates = count(trainer.total_steps, "update")
    say(f"== {method.label}: {'no term' if plain else term}, {updates}")
    if not from_main((start.adapter / CALIBRATION_FILE).is_file):
        _save(run, trainer, config, start.lora, start.adapter)
        _write_calibration(run, trainer, config, start.adapter, None)
    result = tracked(
        run.folder,
        config,
        run.base,
        trainer,
        start.style,
        folder,
        lambda trainer: finetune(trainer, method, start.lora, start.style, folder),
    )
    keep_adapter(run, trainer, config, start, result.lora, folder)
    return result


def keep_adapter(
    run: Run, trainer: Trainer, config: RunConfig, start: Start, lora: nnx.State, folder: Path
) -> None:
    """Write `adapter/` with its `calibration.json`, and warn about a calibrator that is none."""
    adapter = folder / "adapter"
    _save(run, trainer, config, lora, adapter)
    predictions = _on_calibration_split(trainer, lora)
    probe = _probe(trainer, config, lora, predictions)
    calibrator = CALIBRATORS.make(config.evaluation.calibrator)
    if calibrator.needs_start and isinstance(predictions, Predictions):
        first = trainer.predictor(start.lora, trainer.splits["calibration"])
        predictions = with_start(predictions, first)
    _write_calibration(run, trainer, config, adapter, predictions, probe, start.adapter)
    for warning in from_main(lambda: _warnings(adapter)):
        warn(f"{folder.name}: {warning}")
    write_card(adapter, run.base, config.lora, run=folder)


def _save(run: Run, trainer: Trainer, config: RunConfig, lora: nnx.State, adapter: Path) -> None:
    # A PEFT adapter has no distributions: of one it holds the mean.
    decoder = without_uncertainty(trainer.trainable.model.merge(lora))
    save_adapter(adapter, decoder, config.lora, run.base)
    _keep_tokenizer(run.base, config.adapter, adapter)


def _write_calibration(
    run: Run,
    trainer: Trainer,
    config: RunConfig,
    adapter: Path,
    predictions: Predictions | Answers | None,
    probe: dict[str, Any] | None = None,
    start_adapter: Path | None = None,
) -> None:
    write_calibration(
        adapter,
        config,
        config.method.resolve(),
        run.base,
        run.tokenizer,
        trainer.splits["calibration"],
        predictions,
        probe,
        start_adapter,
    )


def _warnings(adapter: Path) -> list[str]:
    """Return the warnings about the temperature and the calibrator of `calibration.json`."""
    found = [stored_temperature(adapter).warning]
    content, calibrator = read_calibration(adapter), stored_calibrator(adapter)
    if calibrator is not None:
        found.append(calibrator.warning)
    elif found[0] is None:
        found.append(f"no calibrator was fitted: {content[WHY_NONE]}")
    return list(dict.fromkeys(filter(None, found)))


def keep_best_epoch(
    run: Run, config: RunConfig, start: Start, result: FinetuneResult, folder: Path
) -> None:
    """Make `folder` a run folder of the parameters at the lowest validation NLL.

    Its config is the one that would train them alone (`training.keep best`).
    """
    alone = replace(config, training=replace(config.training, keep="best"))
    write_config(folder, alone)
    keep_adapter(run, run.trainer, alone, start, result.best_lora, folder)


@main_only
def _keep_tokenizer(base: str | Path, start: str | None, adapter: Path) -> None:
    copy_tokenizer(base, start, adapter)


def _probe(
    trainer: Trainer, config: RunConfig, lora: nnx.State, predictions: Predictions | Answers
) -> dict[str, Any] | None:
    """The calibration question that best shows whether a server applies the whole adapter."""
    if isinstance(predictions, Answers):
        return None
    reduced = reduced_adapter(lora, touches_head="lm_head" in config.lora.modules)
    without = trainer.predictor(reduced, trainer.splits["calibration"])
    return choose_probe(trainer.splits["calibration"], predictions, without)


def _on_calibration_split(trainer: Trainer, lora: nnx.State) -> Predictions | Answers:
    scorer = trainer.predictor if trainer.answers is None else trainer.answers.answers
    return scorer(lora, trainer.splits["calibration"])


def score_adapter(
    run: Run, folder: Path, tempered: Path, start: Start, lora: nnx.State
) -> dict[str, dict[str, Any]]:
    """Score the test sets with `lora`, whose adapter lies in `folder`, and keep its answers to the
    validation questions there.

    The numbers with the temperature of `calibration.json` go to the folder `tempered`, if there is
    one. Each set is scored in one pass for both.

    Returns:
        Folder name -> task -> numbers: one entry, or two.
    """
    adapter, trainer = folder / "adapter", run.trainer
    temperature = _temperature(adapter)
    _write_validation(run, folder, start, lora)
    if trainer.answers is not None:
        predict = answering(
            trainer.answers, lora, run.config.seed, lambda: stored_calibrators(adapter)
        )
        rows = {folder.name: score(run, folder, predict)}
        write_card(adapter, run.base, run.config.lora, run=folder, results=[folder])
        return rows
    scored: dict[int, Predictions] = {}

    def both(encoded: EncodedSplit) -> Predictions:
        if id(encoded) not in scored:
            scored[id(encoded)] = trainer.predictor(lora, encoded, temperature or 1.0)
        return scored[id(encoded)]

    def plain(encoded: EncodedSplit) -> Predictions:
        return replace(both(encoded), temperature=1.0, tempered_logprobs=None)

    rows = {folder.name: score(run, folder, plain)}
    if temperature is not None:
        rows[tempered.name] = score(run, tempered, both)
    results = [folder] if temperature is None else [folder, tempered]
    write_card(adapter, run.base, run.config.lora, run=folder, results=results)
    return rows


def _stored_calibrator(adapter: Path) -> Calibrator | None:
    def read() -> dict[str, Any] | None:
        stored = stored_calibrator(adapter)
        return stored and stored.to_json()

    stored = from_main(read)
    return stored and Calibrator.from_json(stored)


def _temperature(adapter: Path) -> float | None:
    return from_main(lambda: stored_temperature(adapter).value)


def _write_validation(run: Run, folder: Path, start: Start, lora: nnx.State) -> None:
    """Keep in `validation.jsonl` how --predict would answer the validation questions, unless it is
    there.

    The recommendation is chosen from these files. For open questions the reference answer is
    followed, as during training.
    """
    trainer = run.trainer
    validation, file = trainer.splits["validation"], folder / VALIDATION_FILE
    if not validation or from_main(file.is_file):
        return
    if trainer.answers is None:
        calibrator = _stored_calibrator(folder / "adapter")
        needs_start = calibrator is not None and calibrator.needs_start
        first = trainer.predictor(start.lora, validation) if needs_start else None
        scored = with_calibrator(trainer.predictor(lora, validation), calibrator, first)
        write_answers(file, validation, options_belief(scored))
    else:
        write_answers(file, validation, trainer.belief(lora, validation))


def write_answers(file: Path, encoded: EncodedSplit, belief: Belief) -> None:
    """Write one JSON line for each question: its id, whether it is right, confidence and NLL."""
    rows = zip(encoded, belief.correct, belief.confidence, belief.nll, strict=True)
    write_rows(
        file,
        [
            {"id": e.id, "correct": bool(c), "confidence": float(p), "nll": float(n)}
            for e, c, p, n in rows
        ],
    )


def score(
    run: Run, folder: Path, predict: Predict, *, vocabulary: bool = True
) -> dict[str, dict[str, Any]]:
    """Write predictions/ and eval.json of every test set, unless they are there.

    vocabulary: whether `predict` gives probabilities over the whole vocabulary. Returns task ->
    numbers.
    """
    if not has_results(folder):
        config = run.config
        write_results(
            folder,
            run.sets,
            predict,
            config.evaluation,
            config.seed,
            run.command,
            model=f"{folder.name} on {run.base}",
            vocabulary=vocabulary,
        )
    return read_results(folder)


NO_OPTIONS = (
    "open questions have no options, whose scores a temperature would divide; Platt scaling and the"
    " isotonic map take its place"
)
NOT_ALONE = "this adapter is the start of a run, which is not calibrated; mixtures take its scores"


def write_calibration(
    adapter: Path,
    config: RunConfig,
    method: MethodConfig,
    base: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    calibration: EncodedSplit,
    predictions: Predictions | Answers | None,
    probe: dict[str, Any] | None = None,
    start_adapter: Path | None = None,
) -> None:
    """Write `calibration.json` into the adapter's folder.

    method: resolved. calibration: the split that the temperature is fitted on, as `encode_split`
    gives it; predictions: the adapted model's, of that split, or its answers where its questions
    are open; None for an adapter that only a mixture uses. They have the start's scores where
    `config.evaluation.calibrator` needs them. Temperature and calibrator are offered to whoever
    wants them; the maps of open answers' probabilities are those of `confidences` in the run's
    results. probe: a question with its scores, from `choose_probe`; None for open questions.
    start_adapter: folder of the start's adapter, which is named by its hash.
    """
    spec = config.evaluation.calibrator
    rule = None if calibration.is_open else config.option_score
    asked = how_asked(
        adapter, base, config.lora, config.data, calibration.template, tokenizer, rule
    )
    fitted = {
        "open_answers": _open_answers(predictions, config),
        "completions": "one token" if calibration.single_token_options else "several tokens",
        "space": {"loss": config.loss.space, "method": method.build().term_space},
        "temperature": _fitted_temperature(predictions) | {"rows": len(calibration)},
        **_calibrator(predictions, spec),
        OPTIONS: _shared_options(spec, calibration),
        START_HASH: from_main(lambda: start_adapter and adapter_hash(start_adapter)),
        "probe": probe,
    }
    write_json(adapter / CALIBRATION_FILE, asked | fitted)


def _calibrator(predictions: Predictions | Answers | None, spec: str) -> dict[str, Any]:
    """The fitted calibrator that `spec` describes, or why there is none."""
    if not isinstance(predictions, Predictions):
        return {STORED: None, WHY_NONE: _without_predictions(predictions)}
    try:
        fitted = fit_calibrator(CALIBRATORS.make(spec), predictions)
    except UserError as error:
        return {STORED: None, WHY_NONE: str(error)}
    return {STORED: fitted.to_json(), WHY_NONE: None}


def _without_predictions(predictions: Answers | None) -> str:
    return NOT_ALONE if predictions is None else NO_OPTIONS


def _shared_options(spec: str, calibration: EncodedSplit) -> list[str] | None:
    """The one list of options of all questions, for a calibrator that takes one."""
    if calibration.is_open or not CALIBRATORS.make(spec).needs_classes:
        return None
    return list(calibration[0].completions)


def _fitted_temperature(predictions: Predictions | Answers | None) -> dict[str, Any]:
    """What option scores are divided by, or why there is nothing to divide them by."""
    if not isinstance(predictions, Predictions):
        return {"value": None, "why_none": _without_predictions(predictions)}
    try:
        return {"value": fit_temperature(predictions), "why_none": None}
    except UserError as error:
        return {"value": None, "why_none": str(error)}


def _open_answers(
    predictions: Predictions | Answers | None, config: RunConfig
) -> dict[str, Any] | None:
    """Maps from an answer's probability to that of being right, or why there are none."""
    if not isinstance(predictions, Answers):
        return None
    return {
        "max_new_tokens": config.evaluation.open.max_new_tokens,
        "calibrators": to_json(fit_calibrators(predictions)),
    }
