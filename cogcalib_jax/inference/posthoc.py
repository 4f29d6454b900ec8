"""Choices made on held-out questions, and calibration.json, which keeps them with an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import Calibrator, TemperatureScaler, equal_weights
from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.calibration.scaling import at_bound, bound_warning
from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.encoding import pmi_prefix, prompt_prefix
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.prompts import Template, chat_hash
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of, refuse_external_links
from cogcalib_jax.hf.adapter import (
    CALIBRATION_FILE,
    HASH_OF,
    QUANTISE,
    adapter_hash,
    base_hash,
    read_calibration,
)
from cogcalib_jax.hf.adapter_config import WEIGHTS_FILE
from cogcalib_jax.hf.files import model_folder, public_name
from cogcalib_jax.inference.config import DEFAULT_OPTION_SCORE, WITHOUT_PRIOR, OptionScore
from cogcalib_jax.inference.evaluate import VERSIONED
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics.significance import paired_difference
from cogcalib_jax.models.config import LoraConfig, Quantise
from cogcalib_jax.models.parameters import map_parameters

Fitted = TypeVar("Fitted", bound=Calibrator)
STORED = "calibrator"
"""the entry of calibration.json that holds a calibrator, or null"""


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature that `calibration.json` stores, or the reason why there is none."""

    value: float | None
    why_none: str | None
    rows: int
    """calibration questions it was fitted on"""

    @property
    def warning(self) -> str | None:
        """The sentence that a user must read before using it; None for an ordinary fit."""
        if self.value is None:
            return f"no temperature was fitted: {str(self.why_none).removeprefix('temperature: ')}"
        return bound_warning(self.value, self.rows)


def stored_temperature(adapter: Path) -> FittedTemperature | None:
    """Read the temperature in an adapter's `calibration.json` (UserError: a damaged file); None if
    there is no such file."""
    calibration = read_calibration(adapter)
    if calibration is None:
        return None
    file = adapter / CALIBRATION_FILE
    try:
        stored = calibration["temperature"]
        value = stored["value"] if stored["value"] is None else float(stored["value"])
        fitted = FittedTemperature(value, stored.get("why_none"), int(stored["rows"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: damaged ({reason_of(error)}); train again, or fetch it again"
        ) from error
    if value is not None and not 0 < value < np.inf:
        raise UserError(f"{file}: temperature is {value}; expected a positive number. Train again")
    return fitted


def stored_calibrator(adapter: Path) -> Calibrator | None:
    """Read the calibrator in an adapter's `calibration.json`; None if it stores none.

    Files of earlier releases store a temperature alone. Raises UserError for a damaged file.
    """
    content = read_calibration(adapter) or {}
    if STORED in content:
        stored = content[STORED]
    else:
        fitted = stored_temperature(adapter)
        stored = None
        if fitted is not None and fitted.value is not None:
            stored = {KIND: "temperature", "temperature_": fitted.value}
            stored |= {"converged_": not at_bound(fitted.value), "n_rows_": fitted.rows}
    try:
        return None if stored is None else Calibrator.from_json(stored)
    except UserError as error:
        raise UserError(f"{adapter / CALIBRATION_FILE}: damaged ({error})") from error


def with_calibrator(
    predictions: Predictions, calibrator: Calibrator | None, start: Predictions | None = None
) -> Predictions:
    """Return `predictions` with the probabilities of `calibrator`, which may need the start's
    predictions of the same questions; None: the model's own."""
    if isinstance(calibrator, TemperatureScaler):
        return replace(predictions, temperature=calibrator.temperature_)
    if calibrator is None:
        return predictions
    return replace(with_start(predictions, start), calibrator=calibrator)


def with_start(predictions: Predictions, start: Predictions | None) -> Predictions:
    """Return `predictions` with the option scores of `start` beside their own, if there is one."""
    if start is None:
        return predictions
    return replace(predictions, start_scores=start.option_scores)


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature that `TemperatureScaler` fits to the scores of `predictions`.

    Fitted on the calibration split, never on test questions. Raises UserError for a split that is
    answered without a mistake.
    """
    return fit_on(TemperatureScaler(), [predictions]).temperature_


def fit_on(calibrator: Fitted, populations: Sequence[Predictions]) -> Fitted:
    """Fit `calibrator` to populations of questions with equal weight, and return it.

    Raises UserError as its `fit` does, also where it needs `start_scores` and there are none; a
    calibrator that weighs no rows takes one population.
    """
    if len(populations) == 1:
        (one,) = populations
        return calibrator.fit(
            one.option_scores, one.answers, mask=one.mask, start_scores=one.start_scores
        )
    width = max(one.mask.shape[1] for one in populations)

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        wide = [((0, 0), (0, width - part.shape[1])) for part in parts]
        filled = [np.pad(p, w, constant_values=-np.inf) for p, w in zip(parts, wide, strict=True)]
        return np.concatenate(filled)

    scores = joined([one.option_scores for one in populations])
    starts = [one.start_scores for one in populations if one.start_scores is not None]
    return calibrator.fit(
        scores,
        np.concatenate([one.answers for one in populations]),
        mask=np.isfinite(scores),
        start_scores=joined(starts) if len(starts) == len(populations) else None,
        weights=equal_weights([len(one.answers) for one in populations]),
    )


def mean_nll(predictions: Predictions) -> float:
    """Return the mean NLL over the options, in nats."""
    rows = np.arange(len(predictions.answers))
    return float(-predictions.log_option_probs[rows, predictions.answers].mean())


@dataclass(frozen=True)
class Tried:
    """The results of one rule."""

    nll: float
    """nats, mean over the validation questions, at the temperature"""
    temperature: float
    """fitted on the calibration questions"""
    low: float
    """lower end of the 95 % interval of its NLL minus that of mean"""
    high: float


@dataclass(frozen=True)
class Choice:
    """A rule and why it was chosen."""

    option_score: OptionScore
    tried: Mapping[OptionScore, Tried]
    """empty if there was nothing to compare"""
    reason: str

    def record(self) -> dict[str, Any]:
        """Return what a run keeps of it, as JSON."""
        numbers = {
            rule: {
                "validation_nll": one.nll,
                "temperature": one.temperature,
                "difference_to_mean_ci95": [one.low, one.high],
            }
            for rule, one in self.tried.items()
        }
        return {"option_score": self.option_score, "reason": self.reason, "tried": numbers}


def _rules_agree(predictions: Predictions) -> bool:
    """Return True if the rules differ by no more than a temperature."""
    if predictions.tokens.max(initial=0) > 1:
        return False
    if predictions.characters is None:
        return True
    lengths = predictions.characters[predictions.tokens > 0]
    return len(np.unique(lengths)) <= 1


def choose_option_score(calibration: Predictions, validation: Predictions, seed: int) -> Choice:
    """Choose a rule of `WITHOUT_PRIOR` by the validation NLL at a fitted temperature.

    mean stays unless the NLL of another rule is lower beyond the 95 % interval of the paired
    difference (bootstrap over questions); among several such rules the one with the lowest NLL is
    taken.

    Args:
        calibration: one model's predictions, by any rule, on which each rule's temperature is
            fitted.
        validation: the same model's predictions of other questions.
    """
    if _rules_agree(calibration) and _rules_agree(validation):
        return Choice(
            DEFAULT_OPTION_SCORE,
            {},
            "every option is one token and all are equally long, so all rules agree",
        )
    if not len(calibration.answers) or not len(validation.answers):
        return Choice(
            DEFAULT_OPTION_SCORE, {}, "there are no calibration or no validation questions"
        )
    temperatures, losses = {}, {}
    for rule in WITHOUT_PRIOR:
        try:
            temperatures[rule] = fit_temperature(replace(calibration, option_score=rule))
        except UserError as error:
            if rule == DEFAULT_OPTION_SCORE:
                return Choice(DEFAULT_OPTION_SCORE, {}, f"mean has no fitted temperature ({error})")
            continue  # the others cannot be compared with mean at a temperature of 0
        scored = replace(validation, option_score=rule, temperature=temperatures[rule])
        rows = np.arange(len(scored.answers))
        losses[rule] = -scored.log_option_probs[rows, scored.answers]
    tried = {}
    for rule, values in losses.items():
        difference = paired_difference([values], [losses[DEFAULT_OPTION_SCORE]], seed=seed)
        tried[rule] = Tried(
            float(values.mean()), temperatures[rule], difference.low, difference.high
        )
    better = [rule for rule, one in tried.items() if one.high < 0]
    if not better:
        return Choice(
            DEFAULT_OPTION_SCORE, tried, "no other rule is better than mean beyond its interval"
        )
    best = min(better, key=lambda rule: tried[rule].nll)
    return Choice(best, tried, f"{best} is better than mean beyond its interval")


# Entries that belong to the calibrator.
WHY_NONE = "why_no_calibrator"
OPTIONS = "calibrator_options"
ADAPTER_HASH = "adapter_sha256"
START_HASH = "start_adapter_sha256"
START = "start_adapter"
"""the folder of the start's adapter, in that of a run or of a comparison"""
NOT_FITTED = "none was fitted; fit one with Model.calibrate"
# Nats a token. Servers compute in bfloat16 with kernels of their own, so that the same weights give
# log-probabilities that differ by about 0.1; a tolerance below the smaller bound would refuse them.
TOLERANCES = (0.05, 0.25)


def how_asked(
    adapter: Path,
    base: str | Path,
    lora: LoraConfig,
    data: DataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    option_score: OptionScore | None,
    quantise: Quantise,
) -> dict[str, Any]:
    """Return the entries about prompt, scoring rule, adapter and base.

    Args:
        adapter: the folder of the adapter, which is written already.
        template: of every prompt, solved questions included.
        option_score: the rule by which options are scored; None for open questions.
        quantise: the form in which the base is held; entered only if it is one.
    """
    prefix = None if option_score is None else pmi_prefix(template, tokenizer)
    return {
        "prompt": asdict(template),
        "prefix_ids": prompt_prefix(data, tokenizer),
        "protocol": data.protocol,
        "few_shot": data.few_shot,
        "chat_template_sha256": chat_hash(tokenizer) if data.prompt == CHAT else None,
        "max_length": data.max_length,
        "option_score": option_score,
        "pmi_prefix_ids": prefix,
        ADAPTER_HASH: from_main(lambda: adapter_hash(adapter)),
        "adapter_touches_head": "lm_head" in lora.modules,
        "merged": False,
        "base": {
            "name": public_name(base),
            "hash": base_hash(model_folder(base)),
            "hash_of": HASH_OF,
            **({} if quantise == "none" else {QUANTISE: quantise}),
        },
        "versions": {name: version(name) for name in VERSIONED},
    }


def require_rule(rule: str, fitted_by: str) -> None:
    """Refuse scores by another rule than that of the model's calibrator."""
    if rule != fitted_by:
        raise UserError(
            f"option_score is {rule}; expected {fitted_by}, the rule of the model's calibrator."
            " Give calibrator=..., fitted by this rule, beside it"
        )


def fitted_elsewhere(calibrator: Calibrator | None) -> dict[str, Any]:
    """Return the entries of a calibrator that was fitted before the adapter is saved (UserError:
    one that an adapter alone cannot apply)."""
    if calibrator is not None and (calibrator.needs_start or calibrator.needs_classes):
        needs = "the start's scores" if calibrator.needs_start else "one list of options"
        raise UserError(
            f"calibrator is {calibrator.name}, which needs {needs}; expected one that an adapter"
            " alone can apply. Save the model with_calibrator(None), and the calibrator's to_json()"
            " beside it"
        )
    is_temperature = isinstance(calibrator, TemperatureScaler)
    value = calibrator.temperature_ if is_temperature else None
    why = None if is_temperature else f"temperature: {NOT_FITTED}"
    rows = 0 if calibrator is None else calibrator.n_rows_
    return {
        "open_answers": None,
        "completions": None,
        "space": None,
        "temperature": {"value": value, "why_none": why, "rows": rows},
        STORED: None if calibrator is None else calibrator.to_json(),
        WHY_NONE: NOT_FITTED if calibrator is None else None,
        OPTIONS: None,
        START_HASH: None,
        "probe": None,
    }


def start_of(adapter: Path, spec: str) -> Path:
    """Return the folder of the start's adapter that an adapter's calibration.json names by hash: in
    the folder of its run, or of the comparison.

    spec: the calibrator that needs it. Raises UserError if there is none, or another one.
    """
    wanted = (read_calibration(adapter) or {}).get(START_HASH)
    run = adapter.resolve().parent
    for folder in (run / START, run.parent / START):
        refuse_external_links(folder.parent, (folder, folder / WEIGHTS_FILE))
        if (folder / WEIGHTS_FILE).is_file() and adapter_hash(folder) == wanted:
            return folder
    raise UserError(
        f"calibrator is {spec}, which mixes the model with its start, and {run / START} with the"
        f" weights that {adapter / CALIBRATION_FILE} names is not there; expected the folder that"
        " training left. Runs of earlier releases kept none: use another calibrator, or train again"
    )


def reduced_adapter(lora: nnx.State, *, touches_head: bool) -> nnx.State:
    """Return the adapter with a part switched off, as a faulty server might apply it.

    The part is that of the head if the adapter has one, because servers drop only that part;
    otherwise it is the whole adapter.
    """

    def switch_off(path: tuple[str, ...], leaf: nnx.Variable) -> nnx.Variable:
        shows = path[-1] in ("lora_B", "lora_magnitude", "lora_rows")
        if not shows or (touches_head and path[0] != "lm_head"):
            return leaf
        return leaf.replace(jnp.zeros_like(leaf.get_value()))

    return map_parameters(switch_off, lora)


def choose_probe(
    encoded: EncodedSplit, adapted: Predictions, reduced: Predictions
) -> dict[str, Any] | None:
    """Return the question on which the adapter and its reduced form differ most, for a JSON file.

    adapted, reduced: predictions of `encoded` with the adapter and with `reduced_adapter`. Log-
    probabilities are summed over an option's tokens. The tolerance is in nats a token: half the
    difference between the two models on this question, within `TOLERANCES`. None if a score is not
    a finite number.
    """
    if not np.isfinite(adapted.logprobs[adapted.mask] - reduced.logprobs[adapted.mask]).all():
        return None
    gaps = np.abs(adapted.logprobs - reduced.logprobs) / np.maximum(adapted.tokens, 1)
    largest = np.nanmax(gaps, axis=1)
    row = int(np.argmax(largest))
    chosen = encoded[row]
    return {
        "prompt": chosen.prompt,
        "completions": list(chosen.completions),
        "prompt_ids": list(chosen.prompt_ids),
        "completion_ids": [list(ids) for ids in chosen.completion_ids],
        "option_logprobs": adapted.logprobs[row, : len(chosen.completions)].tolist(),
        "tolerance": float(np.clip(largest[row] / 2, *TOLERANCES)),
    }
