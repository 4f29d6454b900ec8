"""Rows of a comparison that train nothing.

Every method must beat two of them: the base, and the constant commonest answer. The others are the
start, and weights between the start and sft.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
from flax import nnx
from scipy.stats import binomtest

from cogcalib_jax.calibration import TemperatureScaler
from cogcalib_jax.cli.method_run import Run, Start, score, write_answers
from cogcalib_jax.cli.prepare import answering
from cogcalib_jax.cli.questions import fitting_sets
from cogcalib_jax.cli.results import Predict, require_numbers
from cogcalib_jax.console import say, warn
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main, in_main
from cogcalib_jax.hf.adapter import load_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.stacking import stack_adapters
from cogcalib_jax.inference.evaluate import fit_calibrators, write_json
from cogcalib_jax.inference.posthoc import fit_on, mean_nll
from cogcalib_jax.inference.predict import Predictor, commonest_answer, counted_by
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.parameters import FrozenModel, abstract_decoder, random_lora
from cogcalib_jax.report.recommendation import (
    BASE_FILE,
    LETTERS,
    OPEN,
    TEXTS,
    VALIDATION_FILE,
    base_words,
    read_base,
)
from cogcalib_jax.report.text import BASE, COMMONEST
from cogcalib_jax.training.log import options_belief

PATH = "path"
"""folder of the shares that were tried, each with an adapter and predictions"""
SHARES = (0.4, 0.6, 0.8)
CHOICE = "interpolation.json"


def look_at_base(run: Run) -> None:
    """Evaluate the base on the validation questions before training, and log the result.

    With `adapter`, the base has that adapter. `base.json` holds

    - `model`: its name in sentences; `task`, `n`, `kind` (`letters`, `texts` or `open`)
    - `accuracy` with `low` and `high` (Clopper-Pearson, 95 %), `nll` in nats
    - `chance`: the accuracy of guessing; `commonest_answer`: that of the constant prediction
    - `option_mass`: the mean probability of all options together over the vocabulary; null if the
      options do not exclude one another

    and `validation.jsonl` in the folders of both rows holds the answers.
    """
    if not run.trainer.splits["validation"]:
        return
    base = from_main(lambda: read_base(run.folder))
    if base is None:
        base = _ask_base(run)
        write_json(run.folder / BASE_FILE, base)
    first, *warnings = base_words(base)
    say(f"   {first}")
    for warning in warnings:
        warn(warning)


def _ask_base(run: Run) -> dict[str, Any]:
    trainer, lora = run.trainer, run.assembled.lora
    validation = trainer.splits["validation"]
    commonest = mass = None
    chance = 0.0
    if trainer.answers is not None:
        belief, kind = trainer.belief(lora, validation), OPEN
    else:
        predictions = trainer.predictor(lora, validation)
        require_numbers(predictions, validation, f"{BASE} on {run.base.place}")
        belief, kind = options_belief(predictions), _kind_of_options(validation)
        chance = float(np.mean(1 / predictions.mask.sum(-1)))
        if validation.exclusive_options:
            mass = float(predictions.vocab_probs.sum(-1).mean())
        constant = options_belief(commonest_answer(trainer.splits["train"], validation))
        commonest = float(constant.correct.mean())
        write_answers(run.folder / COMMONEST / VALIDATION_FILE, validation, constant)
    write_answers(run.folder / BASE / VALIDATION_FILE, validation, belief)
    right, n = int(belief.correct.sum()), len(validation)
    interval = binomtest(right, n).proportion_ci(method="exact")
    return {
        "model": "the base" if run.config.adapter is None else "the base with the given adapter",
        "task": run.config.data.task,
        "n": n,
        "kind": kind,
        "accuracy": right / n,
        "low": float(interval.low),
        "high": float(interval.high),
        "nll": float(belief.nll.mean()),
        "chance": chance,
        "commonest_answer": commonest,
        "option_mass": mass,
    }


def _kind_of_options(encoded: EncodedSplit) -> str:
    answers = {text.strip(" \n().:") for row in encoded for text in row.completions}
    letters = all(len(text) == 1 and text in ascii_letters for text in answers)
    # Letters of several tokens have a mass, too, if none begins another.
    return LETTERS if letters and encoded.exclusive_options else TEXTS


def reference_rows(run: Run) -> dict[str, dict[str, Any]]:
    """Score both references on the test sets, each into a folder of its name; open questions have
    no commonest answer."""
    trainer, lora = run.trainer, run.assembled.lora
    say("== Base, and always the commonest answer")
    if trainer.answers is not None:
        answers, calibration = trainer.answers, trainer.splits["calibration"]
        fitted = cache(lambda: fit_calibrators(answers.answers(lora, calibration)))
        predict = answering(answers, lora, run.config.seed, fitted)
        return {BASE: score(run, run.folder / BASE, predict)}
    train = trainer.splits["train"]

    def constant(encoded: EncodedSplit) -> Predictions:
        return commonest_answer(train, encoded)

    by = sorted({counted_by(train, encoded) for encoded in run.sets.values()})
    say(f"   answers are counted by {' and '.join(by)}, over {len(train):,} fine-tuning rows")
    return {
        BASE: score(run, run.folder / BASE, partial(trainer.predictor, lora)),
        COMMONEST: score(run, run.folder / COMMONEST, constant, vocabulary=False),
    }


def interpolation_row(run: Run, start: Start, folder: Path) -> Predict:
    """Choose weights between the start and the comparison's sft, and write their adapter.

    Every share of `SHARES` is scored into `folder/path/SHARE`. The chosen one has the lowest NLL at
    its own temperature, on populations with equal weight (`fitting_sets`); `interpolation.json`
    keeps the numbers.
    """
    end = run.folder / "sft" / "adapter"
    sets = fitting_sets(run.config, run.tokenizer, run.trainer.splits["calibration"])
    say(f"== interpolation: {len(SHARES)} models between the start and sft")
    tried, predicts = {}, {}
    for share in SHARES:
        place = folder / PATH / f"{share:g}"
        _stack(start.adapter, end, share, place / "adapter")
        predicts[share] = _predictor(run, place / "adapter")
        score(run, place, predicts[share])
        parts = [predicts[share](encoded) for encoded in sets.values()]
        temperature = fit_on(TemperatureScaler(), parts).temperature_
        at = [replace(one, temperature=temperature) for one in parts]
        tried[share] = float(np.mean([mean_nll(one) for one in at]))
    chosen = min(tried, key=lambda share: tried[share])
    _stack(start.adapter, end, chosen, folder / "adapter")
    numbers = {f"{share:g}": value for share, value in tried.items()}
    write_json(folder / CHOICE, {"share": chosen, "fitted_on": list(sets), "nll": numbers})
    say(f"   {chosen:g} of sft, chosen on {' and '.join(sets)}")
    return predicts[chosen]


@in_main
def _stack(start: Path, end: Path, share: float, folder: Path) -> None:
    """Write the adapter between two others, unless it is there."""
    if not folder.is_dir():
        stack_adapters(start, end, share, folder)


def _predictor(run: Run, adapter: Path) -> Predict:
    """Return the function that answers with an adapter of another rank than the run's."""
    decoder, config = run.assembled.decoder, run.config
    lora = read_lora_config(adapter)
    graphdef, abstract = abstract_decoder(
        decoder.config,
        lora,
        decoder.dtype,
        run.assembled.mesh,
        attention=config.model.attention,
        quantise=run.assembled.model.quantise,
    )
    model = FrozenModel(graphdef, run.assembled.model.frozen)
    wide = model.merge(random_lora(decoder.config, lora, abstract, 0))
    load_adapter(adapter, wide)
    predictor = Predictor(model, run.assembled.mesh, config.evaluation, config.option_score)
    return partial(predictor, nnx.state(wide, nnx.LoRAParam))
