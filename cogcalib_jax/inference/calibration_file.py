"""The entries of `calibration.json` that every adapter has, and a question to check a server by."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.calibration import Calibrator, TemperatureScaler
from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.encoding import pmi_prefix, prompt_prefix
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.prompts import Template, chat_hash
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import refuse_external_links
from cogcalib_jax.hf.adapter import (
    CALIBRATION_FILE,
    HASH_OF,
    QUANTISE,
    adapter_hash,
    base_hash,
    read_calibration,
)
from cogcalib_jax.hf.adapter_config import WEIGHTS_FILE
from cogcalib_jax.hf.download import model_folder, public_name
from cogcalib_jax.inference.evaluate import VERSIONED
from cogcalib_jax.inference.option_score import OptionScore
from cogcalib_jax.inference.posthoc import STORED
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.config import LoraConfig, Quantise
from cogcalib_jax.models.parameters import map_parameters

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
        base: Hub id or folder of the base.
        lora: the adapter's form.
        data: how questions are encoded.
        template: of every prompt, solved questions included.
        tokenizer: that the questions are read with.
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


def fitted_elsewhere(calibrator: Calibrator | None) -> dict[str, Any]:
    """Return the entries of a calibrator that was fitted before the adapter is saved.

    Raises:
        UserError: a calibrator that one adapter alone cannot apply.
    """
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

    The part is the head's where the adapter has one, for servers drop that part alone; otherwise
    it is the whole adapter.
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
