"""Rows of a comparison that train nothing: the start, and the weights between start and sft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx

from cogcalib_jax.calibration import TemperatureScaler
from cogcalib_jax.cli.method_run import Run, Start, score
from cogcalib_jax.cli.questions import fitting_sets
from cogcalib_jax.console import say
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main, main_only
from cogcalib_jax.hf.adapter import load_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.stacking import stack_adapters
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.posthoc import fit_on, mean_nll
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.parameters import FrozenModel, abstract_decoder, random_lora

Predict = Callable[[EncodedSplit], Predictions]
PATH = "path"
"""folder of the shares that were tried, each with an adapter and predictions"""
SHARES = (0.4, 0.6, 0.8)
CHOICE = "interpolation.json"


def start_row(run: Run, start: Start) -> Predict:
    """Return the function that answers with the model in which fine-tuning begins."""
    return partial(run.trainer.predictor, start.lora)


def interpolation_row(run: Run, start: Start, folder: Path) -> Predict:
    """Choose weights between the start and the comparison's sft, and write their adapter.

    Every share of `SHARES` is scored into `folder/path/SHARE`. The chosen one has the lowest NLL at
    its own temperature, on populations with the same say (`fitting_sets`); `interpolation.json`
    keeps the numbers.
    """
    end = run.folder / "sft" / "adapter"
    sets = fitting_sets(run.config, run.tokenizer, run.trainer.splits["calibration"])
    say(f"== interpolation: {len(SHARES)} models between the start and sft")
    tried, predicts = {}, {}
    for share in SHARES:
        place = folder / PATH / f"{share:g}"
        if not from_main((place / "adapter").is_dir):
            main_only(stack_adapters)(start.adapter, end, share, place / "adapter")
        predicts[share] = _predictor(run, place / "adapter")
        score(run, place, predicts[share])
        parts = [predicts[share](encoded) for encoded in sets.values()]
        temperature = fit_on(TemperatureScaler(), parts).temperature_
        at = [replace(one, temperature=temperature) for one in parts]
        tried[share] = float(np.mean([mean_nll(one) for one in at]))
    chosen = min(tried, key=lambda share: tried[share])
    if not from_main((folder / "adapter").is_dir):
        main_only(stack_adapters)(start.adapter, end, chosen, folder / "adapter")
    numbers = {f"{share:g}": value for share, value in tried.items()}
    write_json(folder / CHOICE, {"share": chosen, "fitted_on": list(sets), "nll": numbers})
    say(f"   {chosen:g} of sft, chosen on {' and '.join(sets)}")
    return predicts[chosen]


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
