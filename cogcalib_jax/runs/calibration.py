"""`calibration.json` beside an adapter: what another tool needs to give the same confidences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, adapter_hash
from cogcalib_jax.inference.calibration_file import OPTIONS, START_HASH, WHY_NONE, how_asked
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.open_ended import Answers
from cogcalib_jax.inference.open_results import fit_calibrators, to_json
from cogcalib_jax.inference.posthoc import STORED, fit_calibrator, fit_temperature
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.config import RunConfig

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
        "temperature": _temperature(predictions) | {"rows": len(calibration)},
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


def _temperature(predictions: Predictions | Answers | None) -> dict[str, Any]:
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
