"""One method of a run: trained from a start into a folder of its own, calibrated and scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS, Calibrator, TemperatureScaler
from cogcalib_jax.cli.prepare import Prepared, answering, stored_calibrators
from cogcalib_jax.cli.questions import TAUGHT_FIT, fitting_sets
from cogcalib_jax.cli.results import Predict, has_results, read_results, write_results
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import write_config
from cogcalib_jax.cli.tracking import tracked
from cogcalib_jax.console import say, warn
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main, in_main, main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, adapter_hash, read_calibration, save_adapter
from cogcalib_jax.hf.card import write_card
from cogcalib_jax.hf.tokenizer import copy_tokenizer
from cogcalib_jax.inference import posthoc
from cogcalib_jax.inference.evaluate import fit_calibrators, write_json
from cogcalib_jax.inference.open_ended import Answers
from cogcalib_jax.inference.predictions import Predictions, write_rows
from cogcalib_jax.models.parameters import without_uncertainty
from cogcalib_jax.report.recommendation import VALIDATION_FILE
from cogcalib_jax.report.text import count
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, Watch, finetune
from cogcalib_jax.training.log import Belief, Followed, options_belief
from cogcalib_jax.training.storage import Journal

NO_OPTIONS = (
    "open questions have no options, whose scores a temperature would divide; Platt scaling and the"
    " isotonic map take its place"
)
KNOWN_FILE = "known.jsonl"
"""the start's answers to the questions in the form of `known_by`"""
SCORES = "knownness.jsonl"
"""NLL and confidence of the questions that are followed, one file for each method"""
NOT_ALONE = "this adapter is the start of a run, which is not calibrated; mixtures take its scores"


@dataclass(frozen=True)
class Run(Prepared):
    """A run under way, with all that its methods share."""

    folder: Path
    command: str

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.tokenizer


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
        return self.folder / posthoc.START


def train_method(
    run: Run, trainer: Trainer, config: RunConfig, start: Start, folder: Path
) -> FinetuneResult:
    """Fine-tune the one method of `config` into `folder`, and write its adapter.

    The start's adapter is written, too, unless it is there. trainer: the run's, or one that differs
    in seed or dropout as `config` does.
    """
    method = config.method.resolve()
    term = f"term {method.term} on {method.gate}, weight {method.weight:g}"
    plain = method.term == "none"
    updates = count(trainer.total_steps, "update")
    say(f"== {method.label}: {'no term' if plain else term}, {updates}")
    if not from_main((start.adapter / CALIBRATION_FILE).is_file):
        _save(run, trainer, config, start.lora, start.adapter)
        calibration = trainer.splits["calibration"]
        write_calibration(start.adapter, config, run.base.place, run.tokenizer, calibration, None)
    with tracked(run.folder, config, run.base.place, trainer, start.style, folder) as tracking:
        watch = _watch_known(run, folder)
        result = finetune(tracking, method, start.lora, start.style, folder, watch)
    keep_adapter(run, trainer, config, start, result.lora, folder)
    return result


def keep_adapter(
    run: Run, trainer: Trainer, config: RunConfig, start: Start, lora: nnx.State, folder: Path
) -> None:
    """Write `adapter/` with its `calibration.json`, and log the warnings of its calibrator."""
    adapter, calibration = folder / "adapter", trainer.splits["calibration"]
    _save(run, trainer, config, lora, adapter)
    probe, taught = None, None
    if trainer.answers is not None:
        predictions = trainer.answers.answers(lora, calibration)
    else:
        predictions = trainer.predictor(lora, calibration)
        # The question that best shows whether a server applies the whole adapter.
        reduced = posthoc.reduced_adapter(lora, touches_head="lm_head" in config.lora.modules)
        probe = posthoc.choose_probe(
            calibration, predictions, trainer.predictor(reduced, calibration)
        )
        first = None
        if CALIBRATORS.make(config.evaluation.calibrator).needs_start:
            first = start.lora

        def scored(rows: EncodedSplit, own: Predictions) -> Predictions:
            return own if first is None else posthoc.with_start(own, trainer.predictor(first, rows))

        predictions = scored(calibration, predictions)
        if config.evaluation.fit_taught:
            rows = fitting_sets(config, run.tokenizer, calibration)[TAUGHT_FIT]
            taught = scored(rows, trainer.predictor(lora, rows))
    write_calibration(
        adapter,
        config,
        run.base.place,
        run.tokenizer,
        calibration,
        predictions,
        taught=taught,
        probe=probe,
        start_adapter=start.adapter,
    )
    for warning in _warnings(adapter):
        warn(f"{folder.name}: {warning}")
    write_card(adapter, run.base.place, config.lora, run=folder)


def _save(run: Run, trainer: Trainer, config: RunConfig, lora: nnx.State, adapter: Path) -> None:
    # A PEFT adapter holds the mean of a distribution over parameters.
    decoder = without_uncertainty(trainer.trainable.model.merge(lora))
    save_adapter(adapter, decoder, run.base.place)
    main_only(copy_tokenizer)(run.base.place, config.adapter, adapter)


@in_main
def _warnings(adapter: Path) -> list[str]:
    """Return the warnings about the temperature and the calibrator of `calibration.json`."""
    found = [posthoc.stored_temperature(adapter).warning]
    content, calibrator = read_calibration(adapter), posthoc.stored_calibrator(adapter)
    if calibrator is not None:
        found.append(calibrator.warning)
    elif found[0] is None:
        found.append(f"no calibrator was fitted: {content[posthoc.WHY_NONE]}")
    return list(dict.fromkeys(filter(None, found)))


def keep_best_epoch(
    run: Run, config: RunConfig, start: Start, result: FinetuneResult, folder: Path
) -> None:
    """Make `folder` a run folder of the parameters at the lowest validation NLL.

    Its config is the one that trains them alone (`training.keep best`).
    """
    alone = replace(config, training=replace(config.training, keep="best"))
    write_config(folder, alone)
    keep_adapter(run, run.trainer, alone, start, result.best_lora, folder)


def score_adapter(
    run: Run, folder: Path, tempered: Path, start: Start, lora: nnx.State
) -> dict[str, dict[str, Any]]:
    """Score the test sets with `lora`, whose adapter is in `folder`, and keep its answers to the
    validation questions there.

    The numbers with the temperature of `calibration.json`, if there is one, go to the folder
    `tempered`; one pass over a set gives both.

    Returns:
        Folder name -> task -> numbers: one entry, or two.
    """
    adapter, trainer = folder / "adapter", run.trainer
    temperature = from_main(lambda: posthoc.stored_temperature(adapter).value)
    _write_validation(run, folder, start, lora)
    if trainer.answers is not None:
        predict = answering(
            trainer.answers, lora, run.config.seed, lambda: stored_calibrators(adapter)
        )
        rows = {folder.name: score(run, folder, predict)}
        write_card(adapter, run.base.place, run.config.lora, run=folder, results=[folder])
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
    write_card(adapter, run.base.place, run.config.lora, run=folder, results=results)
    return rows


def _write_validation(run: Run, folder: Path, start: Start, lora: nnx.State) -> None:
    """Write the answers of `--predict` to the validation questions, unless they are there.

    The recommendation is chosen from these files. Open questions have the NLL of the reference
    answer, as during training.
    """
    trainer = run.trainer
    validation, file = trainer.splits["validation"], folder / VALIDATION_FILE
    if not validation or from_main(file.is_file):
        return
    if trainer.answers is not None:
        write_answers(file, validation, trainer.belief(lora, validation))
        return

    def read() -> dict[str, Any] | None:
        stored = posthoc.stored_calibrator(folder / "adapter")
        return stored and stored.to_json()

    stored = from_main(read)
    calibrator = stored and Calibrator.from_json(stored)
    needs_start = calibrator is not None and calibrator.needs_start
    first = trainer.predictor(start.lora, validation) if needs_start else None
    scored = posthoc.with_calibrator(trainer.predictor(lora, validation), calibrator, first)
    write_answers(file, validation, options_belief(scored))


def write_answers(file: Path, encoded: EncodedSplit, belief: Belief) -> None:
    """Write one JSON line for each question: its id, whether it is right, confidence and NLL."""
    write_rows(file, _answer_lines(encoded, belief))


def _answer_lines(encoded: EncodedSplit, belief: Belief) -> list[dict[str, Any]]:
    rows = zip(encoded, belief.correct, belief.confidence, belief.nll, strict=True)
    return [
        {"id": e.id, "correct": bool(c), "confidence": float(p), "nll": float(n)}
        for e, c, p, n in rows
    ]


def store_known(run: Run, start: nnx.State) -> None:
    """Ask the start all questions in the form of `known_by`, and keep its answers, once a run.

    This tells what the start knows, and nothing is scored, fitted or chosen by it.

    Raises:
        UserError: a resumed run that asked them in a form other than `known_by`.
    """
    file, form, lines = run.folder / KNOWN_FILE, run.config.known_by, []
    if not run.known:
        return
    if stored := from_main(partial(_stored_form, file)):
        if stored != form:
            raise UserError(
                f"known_by is {form}; expected {stored}, the form in which {file} has the start's"
                f" answers. Give --known-by {stored}, or another --run-dir"
            )
        return
    say(f"== What the start knows: all questions in another form ({form})")
    for data, encoded in run.known.items():
        belief = options_belief(run.trainer.predictor(start, encoded))
        lines += [{"form": form, "data": data} | x for x in _answer_lines(encoded, belief)]
        say(f"   {data}: {int(belief.correct.sum()):,} of {len(encoded):,} right")
    write_rows(file, lines)


def _stored_form(file: Path) -> str | None:
    """Return the form in which the questions of `file` were asked; None if there is no file, or one
    that does not say so."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        return json.loads(next(lines)).get("form")


def read_known(folder: Path, data: str) -> dict[str, bool]:
    """Return id -> whether the start of the run in `folder` was right in the form of `known_by`.

    It is {} for a run without `known_by`.
    """
    file = folder / KNOWN_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = map(json.loads, text.splitlines())
    return {line["id"]: line["correct"] for line in lines if line["data"] == data}


def known_rows(folder: Path, followed: Followed) -> dict[str, list[int]]:
    """Return {"known": [rows] 0 or 1} of the questions that are followed; {} without `known_by`."""
    found = read_known(folder, followed.data)
    # A row that the other form left out (`on_bad_row: skip`) was not shown to be known.
    return {"known": [int(found.get(e.id, False)) for e in followed.encoded]} if found else {}


def _watch_known(run: Run, folder: Path) -> Watch | None:
    """Return what writes NLL and confidence of every question that is followed, and whether the
    start knows it; None without `known_by`, and for a training that was begun without it."""

    def begun_without() -> bool:
        begun = any((folder / "checkpoints").glob("[0-9]*"))
        return begun and not (folder / SCORES).is_file()

    if not run.known or from_main(begun_without):
        return None

    def records(
        lora: nnx.State, beliefs: Sequence[tuple[Followed, Belief]]
    ) -> Iterator[dict[str, Any]]:
        for one, belief in beliefs:
            yield {
                "data": one.data,
                "nll": belief.nll.tolist(),
                "confidence": belief.confidence.tolist(),
                "correct": belief.correct.astype(int).tolist(),
                **from_main(partial(known_rows, run.folder, one)),
            }

    return Watch(Journal(folder / SCORES), records)


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
            model=f"{folder.name} on {run.base.place}",
            vocabulary=vocabulary,
            quantise=config.model.quantise,
        )
    return read_results(folder)


def write_calibration(
    adapter: Path,
    config: RunConfig,
    base: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    calibration: EncodedSplit,
    predictions: Predictions | Answers | None,
    *,
    taught: Predictions | None = None,
    probe: dict[str, Any] | None = None,
    start_adapter: Path | None = None,
) -> None:
    """Write `calibration.json`, with which other tools give the same confidences.

    Args:
        calibration: the split that temperature and calibrator are fitted on.
        predictions: of the adapted model on that split, with the start's scores if the calibrator
            needs them; its answers if the questions are open; None for the start of a run.
        taught: of the adapted model on taught facts, which have equal weight in fits.
        probe: a question with its scores, from `choose_probe`.
        start_adapter: folder of the start's adapter, of which the hash is stored.
    """
    spec, is_open = config.evaluation.calibrator, calibration.is_open
    rule = None if is_open else config.option_score
    asked = posthoc.how_asked(
        *(adapter, base, config.lora, config.data, calibration.template, tokenizer, rule),
        config.model.quantise,
    )
    open_answers = options = temperature = calibrator = None
    why_no_temperature = why_no_calibrator = None
    if isinstance(predictions, Predictions):
        populations = [predictions] if taught is None else [predictions, taught]
        try:
            temperature = posthoc.fit_on(TemperatureScaler(), populations).temperature_
        except UserError as error:
            why_no_temperature = str(error)
        try:
            calibrator = posthoc.fit_on(CALIBRATORS.make(spec), populations).to_json()
        except UserError as error:
            why_no_calibrator = str(error)
    else:
        why_no_temperature = why_no_calibrator = NOT_ALONE if predictions is None else NO_OPTIONS
    if isinstance(predictions, Answers):
        open_answers = {
            "max_new_tokens": config.evaluation.open.max_new_tokens,
            "calibrators": fit_calibrators(predictions).to_json(),
        }
    if not is_open and CALIBRATORS.make(spec).needs_classes:
        options = list(calibration[0].completions)
    method = config.method.resolve().build()
    fitted = {
        "open_answers": open_answers,
        "completions": "one token" if calibration.single_token_options else "several tokens",
        "space": {"loss": config.loss.space, "method": method.term_space},
        "temperature": {
            "value": temperature,
            "why_none": why_no_temperature,
            "rows": len(calibration) + (0 if taught is None else len(taught.answers)),
        },
        posthoc.STORED: calibrator,
        posthoc.WHY_NONE: why_no_calibrator,
        posthoc.OPTIONS: options,
        posthoc.START_HASH: from_main(lambda: start_adapter and adapter_hash(start_adapter)),
        "probe": probe,
    }
    write_json(adapter / CALIBRATION_FILE, asked | fitted)
