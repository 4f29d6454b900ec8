"""The calibrator of a model's scores: a stored one, or one fitted on its run's questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS, Calibrator, TemperatureScaler
from cogcalib_jax.cli.eval_config import BARE, STORED, EvalConfig
from cogcalib_jax.cli.evaluated import Evaluated
from cogcalib_jax.cli.prepare import require_calibrator
from cogcalib_jax.cli.questions import fitting_sets
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, require_shared_options
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import (
    CALIBRATION_FILE,
    adapter_hash,
    read_calibration,
    require_trained_on,
)
from cogcalib_jax.hf.download import model_folder
from cogcalib_jax.inference.calibration_file import ADAPTER_HASH, OPTIONS, start_of
from cogcalib_jax.inference.config import DEFAULT_CALIBRATOR
from cogcalib_jax.inference.option_score import OptionScore, stored_option_score
from cogcalib_jax.inference.posthoc import (
    fit_on,
    stored_calibrator,
    with_calibrator,
    with_start,
)
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.report.text import count

CALIBRATOR_FILE = "calibrator.json"
"""the calibrator that an evaluation fitted or read"""

Score = Callable[[EncodedSplit, float], Predictions]
"""(questions, temperature) -> predictions with uncalibrated confidences"""


@dataclass(frozen=True)
class ModelCalibrator:
    """A calibrator for one model, and its inputs beside the model's scores."""

    calibrator: Calibrator
    populations: tuple[EncodedSplit, ...] = ()
    """the questions to fit it on, each split with the same say; none: it is fitted"""
    start: Path | Literal["none"] | None = None
    """adapter of the start, if the calibrator needs it; "none": the bare base"""
    options: tuple[str, ...] | None = None
    """the one list of options, if the calibrator needs one"""

    def fitted(self, score: Score, score_start: Score | None) -> ModelCalibrator:
        """Return a fitted calibrator (UserError if the questions do not allow it)."""
        if not self.populations:
            return self
        scored = []
        for rows in self.populations:
            start = None if score_start is None else score_start(rows, 1.0)
            scored.append(with_start(score(rows, 1.0), start))
        fit_on(self.calibrator, scored)
        return replace(self, populations=())

    def __call__(
        self, encoded: EncodedSplit, score: Score, score_start: Score | None
    ) -> Predictions:
        """Return calibrated predictions of `encoded`."""
        self.require(encoded)
        calibrator, temperature = self.calibrator, 1.0
        if isinstance(calibrator, TemperatureScaler):
            # The same pass gives the vocabulary's numbers at the temperature.
            temperature = calibrator.temperature_
        start = None
        if score_start is not None and calibrator.needs_start:
            start = score_start(encoded, 1.0)
        return with_calibrator(score(encoded, temperature), calibrator, start)

    def require(self, encoded: EncodedSplit) -> None:
        """Refuse open questions, and questions with other options than the calibrator's."""
        spec = CALIBRATORS.spec(self.calibrator)
        if encoded.is_open:
            raise UserError(
                f"calibrator is {spec}; expected none for open questions, whose confidences have"
                " calibrators of their own; leave it out"
            )
        if self.options is not None:
            require_shared_options(encoded, f"calibrator is {spec}", "the input", self.options)


def asked_calibrator(
    config: EvalConfig, model: Evaluated, tokenizer: PreTrainedTokenizerBase, rule: OptionScore
) -> ModelCalibrator | None:
    """Return the calibrator that `config` names for `model`, if any; nothing is scored yet.

    Args:
        rule: the rule that scores the options.

    Raises:
        UserError: no stored calibrator for this rule, or a model without the run, start or shared
            options that the calibrator needs.
    """
    spec = config.calibrator
    if spec is None:
        return None
    if spec == STORED:
        found = None if model.adapter is None else stored_for(Path(model.adapter), rule)
        if found is None:
            raise UserError(
                f"calibrator is {STORED}, and {model.adapter or model.base} stores none for"
                f" option_score {rule}; expected one in its {CALIBRATION_FILE}. Name one to be"
                f" fitted on a run: --run RUN --calibrator {DEFAULT_CALIBRATOR}"
            )
        return found
    assert model.adapter is not None  # EvalConfig holds that there is one
    calibrator = CALIBRATORS.make(spec)
    asked_as: EvalConfig | RunConfig = config if model.run is None else model.run
    data = config.data if config.data.task == asked_as.data.task else asked_as.data
    splits = load_splits(data, asked_as.seed, made=asked_as.made)
    rows, _ = encode_split("calibration", splits.calibration, tokenizer, data, splits.shots)
    populations = (rows,)
    if config.evaluation.fit_taught:
        require_calibrator(replace(config.evaluation, calibrator=spec), data.task, rows)
        named = replace(asked_as, data=data)
        populations = tuple(fitting_sets(named, tokenizer, rows).values())
    options = None
    if calibrator.needs_classes:
        options = require_shared_options(rows, f"calibrator is {spec}", data.task)
    start: Path | Literal["none"] | None = None
    if calibrator.needs_start and model.run is not None:
        start = start_of(Path(model.adapter), spec)
    elif calibrator.needs_start:
        start = BARE if config.start is None else Path(config.start)
        if config.start is not None:
            require_trained_on(Path(config.start), model_folder(model.base), str(model.base))
    asked = ModelCalibrator(calibrator, populations, start, options)
    asked.require(rows)
    return asked


def calibrator_words(calibrator: Calibrator) -> str:
    """Return a line on the source of confidences, with the calibrator's warning."""
    words = (
        f"confidences by calibrator {CALIBRATORS.spec(calibrator)}, fitted on"
        f" {count(calibrator.n_rows_, 'calibration question')}"
    )
    return words if calibrator.warning is None else f"{words}; warning: {calibrator.warning}"


def stored_for(adapter: Path, rule: OptionScore) -> ModelCalibrator | None:
    """Return the calibrator in an adapter's calibration.json; None if there is none for `rule`.

    Raises:
        UserError: a mixture of other adapters than those that the file names.
    """
    calibrator, content = stored_calibrator(adapter), read_calibration(adapter) or {}
    if calibrator is None or stored_option_score(content) not in (None, rule):
        return None
    start, options, spec = None, None, CALIBRATORS.spec(calibrator)
    if calibrator.needs_classes:
        options = content.get(OPTIONS)
        if not isinstance(options, list):
            raise UserError(
                f"{adapter / CALIBRATION_FILE}: damaged ({OPTIONS} is {options!r:.40}; expected the"
                f" list that calibrator {spec} is for); train again, or fetch it again"
            )
        options = tuple(options)
    if calibrator.needs_start:
        if content.get(ADAPTER_HASH) != adapter_hash(adapter):
            raise UserError(
                f"{adapter}: its weights are not those that its calibrator {spec} was fitted with"
                f" ({ADAPTER_HASH} in {CALIBRATION_FILE}); fetch both again"
            )
        start = start_of(adapter, spec)
    return ModelCalibrator(calibrator, (), start, options)
