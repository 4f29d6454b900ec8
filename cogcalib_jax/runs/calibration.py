"""`calibration.json` beside an adapter: what another tool needs to give the same confidences."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.chat import chat_hash
from cogcalib_jax.data.config import CHAT
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.tokenization import prompt_prefix
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.evaluate import VERSIONED, write_json
from cogcalib_jax.evaluation.open_ended import Answers
from cogcalib_jax.evaluation.open_results import fit_calibrators, to_json
from cogcalib_jax.evaluation.posthoc import fit_temperature
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.weights.base_hash import CALIBRATION_FILE, HASH_OF, base_hash
from cogcalib_jax.weights.hub import model_folder, public_name

NO_OPTIONS = (
    "open questions have no options, whose scores a temperature would divide; Platt scaling and the"
    " isotonic map take its place"
)


def write_calibration(
    adapter: Path,
    config: RunConfig,
    method: MethodConfig,
    base: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    calibration: EncodedSplit,
    predictions: Predictions | Answers,
    probe: dict[str, Any] | None = None,
) -> None:
    """Write `calibration.json` into the adapter's folder.

    method: resolved. calibration: the split that the temperature is fitted on, as `encode_split`
    gives it; predictions: the adapted model's, of that split, or its answers where its questions
    are open. The temperature is offered to whoever wants it: no number of the run itself uses it;
    the maps of open answers' probabilities are those of `confidences` in the run's results.
    probe: a question with its scores, from `choose_probe`; None for open questions.
    """
    has_options = isinstance(predictions, Predictions)
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
            "option_score": predictions.option_score if has_options else None,
            "pmi_prefix_ids": calibration.pmi_prefix_ids,
            "space": {
                "loss": config.loss.space,
                "method": method.build().term_space,
            },
            "temperature": _temperature(predictions) | {"rows": len(calibration)},
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


def _temperature(predictions: Predictions | Answers) -> dict[str, Any]:
    """What option scores are divided by, or why there is nothing to divide them by."""
    if isinstance(predictions, Answers):
        return {"value": None, "why_none": NO_OPTIONS}
    try:
        return {"value": fit_temperature(predictions), "why_none": None}
    except UserError as error:
        return {"value": None, "why_none": str(error)}


def _open_answers(predictions: Predictions | Answers, config: RunConfig) -> dict[str, Any] | None:
    """Maps from an answer's probability to that of being right, or why there are none."""
    if not isinstance(predictions, Answers):
        return None
    return {
        "max_new_tokens": config.evaluation.open.max_new_tokens,
        "calibrators": to_json(fit_calibrators(predictions)),
    }
