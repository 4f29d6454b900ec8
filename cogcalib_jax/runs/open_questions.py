"""What a run or an evaluation needs beside option scores where its questions are open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, read_calibration
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.open_ended import OpenPredictions, OpenPredictor
from cogcalib_jax.inference.open_results import Calibrators, calibrated, from_json
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.models.parameters import FrozenModel

NO_CALIBRATORS = Calibrators(
    notes=("no confidences platt and isotonic: no calibration split was answered with this model",)
)


def open_predictor(
    model: FrozenModel,
    predictor: Predictor,
    evaluation: EvaluationConfig,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    sets: Iterable[EncodedSplit],
) -> OpenPredictor | None:
    """What answers the open questions among `sets`, None where all have options.

    Raises UserError, before anything slow, where the tokenizer cannot write what is asked of it.
    """
    if not any(rows.is_open for rows in sets):
        return None
    return OpenPredictor(model, evaluation, data, tokenizer, predictor)


def stored_calibrators(adapter: Path) -> Calibrators:
    """Those that were fitted when the adapter was made."""
    stored = from_main(lambda: read_calibration(adapter))
    answers = None if stored is None else stored.get("open_answers")
    if answers is None:
        return NO_CALIBRATORS
    try:
        return from_json(answers["calibrators"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{adapter / CALIBRATION_FILE}: damaged ({reason_of(error)}); train again, or fetch it"
            " again"
        ) from error


def answering(
    predictor: OpenPredictor,
    lora: nnx.State,
    seed: int,
    calibrators: Callable[[], Calibrators],
) -> Callable[[EncodedSplit], OpenPredictions]:
    """From open questions to answers; `calibrators` is asked when the first ones are answered."""

    def predict(encoded: EncodedSplit) -> OpenPredictions:
        return calibrated(predictor(lora, encoded, seed=seed), calibrators())

    return predict
