"""`calibration.json` beside an adapter: what another tool needs to give the same confidences."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.data.chat import chat_hash
from cogcalib_jax.data.config import CHAT
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.tokenization import prompt_prefix
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.evaluate import VERSIONED, write_json
from cogcalib_jax.evaluation.open_ended import Answers
from cogcalib_jax.evaluation.open_results import fit_calibrators, to_json
from cogcalib_jax.evaluation.posthoc import STORED, fit_calibrator, fit_temperature
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.weights.base_hash import CALIBRATION_FILE, HASH_OF, base_hash
from cogcalib_jax.weights.hub import model_folder, public_name
from cogcalib_jax.weights.peft_adapter import adapter_hash

NO_OPTIONS = (
    "open questions have no options, whose scores a temperature would divide; Platt scaling and the"
    " isotonic map take its place"
)
NOT_ALONE = "this adapter is the start of a run, which is not calibrated; mixtures take its scores"
# Entries of calibration.json that belong to its calibrator.
WHY_NONE = "why_no_calibrator"
OPTIONS = "calibrator_options"
ADAPTER_HASH = "adapter_sha256"
START_HASH = "start_adapter_sha256"


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
    has_options = not calibration.is_open
    spec = config.evaluation.calibrator
    write_json(
        adapter / CALIBRATION_FILE,
        {
            "prompt": asdict(calibration.template),
            "prefix_ids": prompt_prefix(config.data, tokenizer),
            "protocol": config.data.protocol,
            "few_shot": config.data.few_shot,
            "chat_template_sha256": chat_hash(tokenizer) if config.data.prompt == CHAT else None,
            "open_answers": _open_answers(predictions, config),
            "completions": "one token" if calibration.single_token_options else "several tokens",
            "max_length": config.data.max_length,
            "option_score": config.option_score if has_options else None,
            "pmi_prefix_ids": calibration.pmi_prefix_ids,
            "space": {
                "loss": config.loss.space,
                "method": method.build().term_space,
            },
            "temperature": _temperature(predictions) | {"rows": len(calibration)},
            **_calibrator(predictions, spec),
            OPTIONS: _shared_options(spec, calibration),
            ADAPTER_HASH: from_main(lambda: adapter_hash(adapter)),
            START_HASH: from_main(lambda: start_adapter and adapter_hash(start_adapter)),
            "adapter_touches_head": "lm_head" in config.lora.modules,
            "merged": False,
            "probe": probe,
            "base": {
                "name": public_name(base),
                "hash": base_hash(model_folder(base)),
                "hash_of": HASH_OF,
            },
            "versions": {name: version(name) for name in VERSIONED},
        },
    )


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
