"""Answers with confidence to the questions of a file; questions below a cut-off stay open."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS, TemperatureScaler
from cogcalib_jax.cli.eval_config import EvalConfig, settled_option_score
from cogcalib_jax.cli.evaluate import load_model, predict_function
from cogcalib_jax.cli.evaluated import (
    ModelCalibrator,
    asked_calibrator,
    calibrator_words,
    evaluated_models,
    stored_for,
)
from cogcalib_jax.cli.results import Predict, require_numbers
from cogcalib_jax.console import say, warn
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.loading import load_shots, load_splits
from cogcalib_jax.data.task import Question, load_questions
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import whole_file
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, read_calibration
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.inference.config import OptionScore, stored_option_score
from cogcalib_jax.inference.posthoc import (
    WHY_NONE,
    stored_calibrator,
    stored_temperature,
)
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics import top_label
from cogcalib_jax.metrics.scores import ExpectedAccuracy, cutoff_for, expected_accuracy
from cogcalib_jax.report.text import TEXT_WIDTH, count, percent


def answer_questions(config: EvalConfig) -> str:
    """Answer the file `config.predict` into `config.out`, and return the text to print.

    Nothing is written unless all questions can be answered.
    """
    assert config.predict is not None and config.out is not None
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out, or remove it")
    questions, read = load_questions(Path(config.predict), config.data.column_names())
    (model,) = evaluated_models(config)
    say(f"== Answering {count(len(questions), 'question')} with {model.adapter or model.base}")
    say(f"   {read}")
    tokenizer = load_base_tokenizer(model.base, model.adapter)
    # Their lines are their names, so that errors say which question cannot be encoded.
    examples = [replace(question.example, id=question.where) for question in questions]
    shots = load_shots(config.data)
    encoded, notes = encode_split("questions", examples, tokenizer, config.data, shots)
    for note in notes:
        say(f"   note: {note}")
    rule = settled_option_score(config)
    if config.calibrator is None:
        asked = predicting_calibrator(model.adapter, rule)
    else:
        asked = asked_calibrator(config, model, tokenizer, rule)
    if asked is not None:
        asked.require(encoded)
    predict, calibrator = predict_function(load_model(config, model, [encoded]), model, asked)
    if calibrator is not None and config.calibrator is not None:
        say(f"   {calibrator_words(calibrator.calibrator)}")
    below, said = _cut(config, predict, tokenizer)

    predictions = predict(encoded)
    require_numbers(predictions, encoded, model.words)
    asked = {question.where: question for question in questions}
    rows = _rows([asked[e.id] for e in encoded], predictions, below)
    _write(out, rows)
    answered = sum(row["answered"] for row in rows)
    left = f", {len(rows) - answered:,} left open" if answered < len(rows) else ""
    sentences = [textwrap.fill(sentence, TEXT_WIDTH) for sentence in said]
    return "\n".join([*sentences, f"{answered:,} answered{left}: {out}"])


def predicting_calibrator(adapter: str | None, option_score: OptionScore) -> ModelCalibrator | None:
    """Return the calibrator stored with the adapter and log it; None if none fits the rule."""
    content = None if adapter is None else read_calibration(Path(adapter))
    if content is None:
        say("   no fitted temperature: confidences are the model's own")
        return None
    fitted_by = stored_option_score(content)
    calibrator = stored_calibrator(Path(adapter))
    if fitted_by not in (None, option_score):
        kind = "temperature" if calibrator is None else calibrator.name
        say(
            f"   no fitted {kind} for option_score {option_score} (that of"
            f" {adapter}/{CALIBRATION_FILE} is for {fitted_by}): confidences are the model's own"
        )
        return None
    if calibrator is None:
        fitted = stored_temperature(Path(adapter))
        reason = content.get(WHY_NONE) or (fitted and fitted.why_none)
        kind = "temperature" if fitted is None or fitted.value is None else "calibrator"
        warn(f"no {kind} was fitted: {str(reason).removeprefix('temperature: ')}")
        return None
    if calibrator.warning is not None:
        warn(calibrator.warning)
    what = f"by calibrator {CALIBRATORS.spec(calibrator)}"
    if isinstance(calibrator, TemperatureScaler):
        what = f"at temperature {calibrator.temperature_:.3f}"
    say(
        f"   confidences {what}, fitted on {count(calibrator.n_rows_, 'held-out question')}"
        f" ({adapter}/{CALIBRATION_FILE})"
    )
    return stored_for(Path(adapter), option_score)


def _cut(
    config: EvalConfig, predict: Predict, tokenizer: PreTrainedTokenizerBase
) -> tuple[float, list[str]]:
    """Return the lowest confidence of an answer (0: all are given, infinity: none), from the
    validation split if a target is given; and sentences on the accuracy beyond it on the
    calibration split, which fitted nothing but the calibrator."""
    if config.abstain_below is None and config.target_accuracy is None:
        return 0.0, []
    splits = load_splits(config.data, config.seed, made=config.made)

    def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
        encoded, _ = encode_split(name, getattr(splits, name), tokenizer, config.data, splits.shots)
        if encoded.is_open:
            raise UserError(
                f"{config.run[0]}: its held-out questions are open and say nothing of those with"
                " options; leave out --abstain-below and --target-accuracy"
            )
        scored = predict(encoded)
        _, confidence, correct = top_label(scored.probs, scored.mask, scored.answers)
        return confidence, correct

    below = config.abstain_below
    if below is None:
        assert config.target_accuracy is not None
        confidence, correct = held_out("validation")
        below = cutoff_for(config.target_accuracy, confidence, correct)
        if below is None:
            return np.inf, [
                f"No cut-off reaches an accuracy of {percent(config.target_accuracy)} on"
                f" {count(len(confidence), 'validation question')} (all of them together:"
                f" {percent(correct.mean())}), so nothing is answered."
            ]
        chosen = (
            f"Cut-off {below:.3f}: the lowest confidence from which on at least"
            f" {percent(config.target_accuracy)} of"
            f" {count(len(confidence), 'validation question')} are answered right."
        )
    else:
        chosen = f"Cut-off {below:g}, as given."
    expected = expected_accuracy(below, *held_out("calibration"))
    return below, [chosen, _promise(expected, config.data.task)]


def _promise(expected: ExpectedAccuracy | None, task: str) -> str:
    if expected is None:
        return (
            "No calibration question is that confident, so nothing can be said of the accuracy of"
            " what is answered."
        )
    return (
        f"Expected accuracy of what is answered: {percent(expected.accuracy)}, 95 % interval"
        f" {percent(expected.low)} to {percent(expected.high)} (Clopper-Pearson; {expected.right:,}"
        f" right of the {expected.answered:,} that are this confident among {expected.questions:,}"
        " calibration questions). This holds only for questions like the held-out ones, which are"
        f" those of {task}."
    )


def _rows(
    questions: Sequence[Question], predictions: Predictions, below: float
) -> list[dict[str, Any]]:
    """Return one JSON object for each question."""
    raw = replace(predictions, temperature=1.0, calibrator=None).probs
    calibrated = predictions.probs
    rows = []
    for i, (_, example) in enumerate(questions):
        options = len(example.choices)
        best = int(np.argmax(calibrated[i, :options]))
        confidence = float(calibrated[i, best])
        rows.append(
            {
                "id": example.id,
                "question": example.question,
                "prediction": example.choices[best],
                "index": best,
                "confidence": confidence,
                "raw_confidence": float(raw[i, best]),
                "option_probs": calibrated[i, :options].tolist(),
                "answered": confidence >= below,
            }
        )
    return rows


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        with whole_file(out) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another") from error
