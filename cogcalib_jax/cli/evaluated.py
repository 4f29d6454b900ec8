"""The models of an evaluation, and the calibrator of a model's scores.

A calibrator is a stored one, or one fitted on the questions of the model's run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import CALIBRATORS, Calibrator, TemperatureScaler
from cogcalib_jax.cli.eval_config import BARE, STORED, EvalConfig, read_trained_run
from cogcalib_jax.cli.prepare import base_path, require_calibrator
from cogcalib_jax.cli.questions import fitting_sets
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, require_shared_options
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import (
    CALIBRATION_FILE,
    adapter_hash,
    base_hash,
    read_calibration,
    require_trained_on,
)
from cogcalib_jax.hf.adapter_config import WEIGHTS_FILE, read_lora_config
from cogcalib_jax.hf.files import model_folder
from cogcalib_jax.hf.tokenizer import tokenizer_key
from cogcalib_jax.inference import posthoc
from cogcalib_jax.inference.config import DEFAULT_CALIBRATOR, OptionScore, stored_option_score
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.config import LoraConfig
from cogcalib_jax.report.text import count

CALIBRATOR_FILE = "calibrator.json"
"""the calibrator that an evaluation fitted or read"""

Score = Callable[[EncodedSplit, float], Predictions]
"""(questions, temperature) -> predictions with uncalibrated confidences"""


@dataclass(frozen=True)
class Evaluated:
    """A model under evaluation: a base with or without an adapter, or an ensemble."""

    name: str
    """its line in tables, and its folder if there are several models"""
    base: str | Path
    adapter: str | None
    run: RunConfig | None = None
    """the run that trained it, if any"""
    lora: LoraConfig | None = None
    """rank, alpha and targets of the adapter"""
    members: tuple[Evaluated, ...] = ()
    """the models of an ensemble, whose own adapter is None"""

    @property
    def tokenizer_from(self) -> str | None:
        """The adapter whose folder may hold a tokenizer; an ensemble has one for all members."""
        return self.members[0].tokenizer_from if self.members else self.adapter

    @cached_property
    def reads_with(self) -> tuple[str, str]:
        """A key that is equal for models with the same token ids for every text."""
        return str(self.base), tokenizer_key(self.base, self.tokenizer_from)

    @property
    def words(self) -> str:
        """A description of the model by its adapter and its base."""
        members = ", ".join(member.name for member in self.members)
        return f"{members or self.adapter or 'no adapter'} on {self.base}"

    def weights(self) -> dict[str, str | None]:
        """Return hashes of base and adapter, which are equal for the same model."""
        adapter = None
        if self.members:
            adapter = " ".join(str(member.weights()["adapter"]) for member in self.members)
        if self.adapter is not None:
            adapter = adapter_hash(self.adapter)
        return {"base": base_hash(model_folder(self.base)), "adapter": adapter}


def evaluated_models(config: EvalConfig) -> list[Evaluated]:
    """Return the models that `config` names, in that order; a missing base of a world is built.

    Raises:
        UserError: an adapter that cannot be read, was trained on another base, or cannot be
            averaged.
    """
    models = _single_models(config)
    if config.mc_passes is not None:
        for model in models:
            if model.lora is None or model.lora.lora_dropout == 0:
                raise UserError(
                    f"{model.adapter or model.base}: was trained without dropout, so mc_passes has"
                    " nothing to sample; leave it out, or train with --compare mc_dropout,sft"
                )
    return [_ensemble(models)] if config.ensemble else models


def _ensemble(members: Sequence[Evaluated]) -> Evaluated:
    first = members[0]
    if len(members) < 2 or first.lora is None:
        raise UserError(
            "ensemble: needs at least two runs or adapters; give more --run or --adapter"
        )
    if len(by_base(members)) > 1:
        raise UserError(
            f"ensemble: {', '.join(m.name for m in members)} differ in base, tokenizer, rank,"
            " alpha, targets or dropout, so one base cannot serve them together; average what"
            " was trained alike"
        )
    return Evaluated("ensemble", first.base, None, first.run, first.lora, tuple(members))


def _single_models(config: EvalConfig) -> list[Evaluated]:
    models = []
    if config.run:
        bases: dict[tuple[object, ...], str | Path] = {}
        runs = [read_trained_run(name) for name in config.run]
        for name, place, run in zip(_names(config.run), config.run, runs, strict=True):
            made_from = (run.model.path, run.data, run.world, run.pretrain, run.seed)
            if config.model.path is None and made_from not in bases:
                bases[made_from] = base_path(run.model, run.world, run.pretrain, run.seed)
            base = config.model.path or bases[made_from]
            adapter = str(Path(place) / "adapter")
            models.append(_with_adapter(name, base, adapter, run))
        return models
    base = config.model.path
    assert base is not None  # EvalConfig holds that there is a run or a base
    adapters = config.adapter or (BARE,)
    names = _names(["base" if adapter == BARE else adapter for adapter in adapters])
    for name, adapter in zip(names, adapters, strict=True):
        bare = adapter == BARE
        models.append(Evaluated(name, base, None) if bare else _with_adapter(name, base, adapter))
    return models


def _with_adapter(
    name: str, base: str | Path, adapter: str, run: RunConfig | None = None
) -> Evaluated:
    lora = read_lora_config(adapter)
    if not (Path(adapter) / WEIGHTS_FILE).is_file():
        raise UserError(f"{adapter}: no {WEIGHTS_FILE}; give a folder that holds a whole adapter")
    require_trained_on(Path(adapter), model_folder(base), str(base))
    return Evaluated(name, base, adapter, run, lora)


def _names(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that differ from one another: cols, or world-0-cols."""
    parts = [Path(path).resolve().parts for path in paths]
    parts = [p[:-1] if p[-1] == "adapter" else p for p in parts]

    def ends(depth: int) -> list[str]:
        return ["-".join(part.strip("/") for part in p[-depth:]) for p in parts]

    depth = 1
    while len(set(ends(depth))) < len(paths) and depth < max(map(len, parts)):
        depth += 1
    if len(set(ends(depth))) < len(paths):
        raise UserError(f"{', '.join(paths)}: one of them is named twice; name each once")
    return ends(depth)


def by_base(models: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Group models that share a loaded base and swap only LoRA parameters."""
    groups: dict[tuple[object, ...], list[Evaluated]] = {}
    for model in models:
        lora = model.lora
        shape = lora and (*lora.form.values(), lora.lora_dropout)
        groups.setdefault((*model.reads_with, shape), []).append(model)
    return list(groups.values())


@dataclass(frozen=True)
class ModelCalibrator:
    """A calibrator for one model, and its inputs beside the model's scores."""

    calibrator: Calibrator
    populations: tuple[EncodedSplit, ...] = ()
    """the questions to fit it on, each split with equal weight; none: it is fitted"""
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
            scored.append(posthoc.with_start(score(rows, 1.0), start))
        posthoc.fit_on(self.calibrator, scored)
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
        return posthoc.with_calibrator(score(encoded, temperature), calibrator, start)

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
        start = posthoc.start_of(Path(model.adapter), spec)
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
    """Return the calibrator in an adapter's calibration.json (UserError: a mixture of other
    adapters than those that the file names); None if there is none for `rule`."""
    calibrator, content = posthoc.stored_calibrator(adapter), read_calibration(adapter) or {}
    if calibrator is None or stored_option_score(content) not in (None, rule):
        return None
    start, options, spec = None, None, CALIBRATORS.spec(calibrator)
    if calibrator.needs_classes:
        options = content.get(posthoc.OPTIONS)
        if not isinstance(options, list):
            raise UserError(
                f"{adapter / CALIBRATION_FILE}: damaged ({posthoc.OPTIONS} is {options!r:.40};"
                f" expected the list that calibrator {spec} is for); train again, or fetch it again"
            )
        options = tuple(options)
    if calibrator.needs_start:
        if content.get(posthoc.ADAPTER_HASH) != adapter_hash(adapter):
            raise UserError(
                f"{adapter}: its weights are not those that its calibrator {spec} was fitted with"
                f" ({posthoc.ADAPTER_HASH} in {CALIBRATION_FILE}); fetch both again"
            )
        start = posthoc.start_of(adapter, spec)
    return ModelCalibrator(calibrator, (), start, options)
