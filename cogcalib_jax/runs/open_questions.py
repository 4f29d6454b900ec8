"""What a run or an evaluation needs beside option scores where its questions are open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from flax import nnx
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main
from cogcalib_jax.engine.step import SplitModel
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.config import EvaluationConfig
from cogcalib_jax.evaluation.open_ended import OpenPredictions, OpenPredictor
from cogcalib_jax.evaluation.open_results import Calibrators, calibrated, from_json
from cogcalib_jax.evaluation.predict import Predictor
from cogcalib_jax.weights.base_hash import CALIBRATION_FILE, read_calibration
from cogcalib_jax.weights.foreign import damage

NO_CALIBRATORS = Calibrators(
    notes=("no confidences platt and isotonic: no calibration split was answered with this model",)
)


def open_predictor(
    model: SplitModel,
    context: int,
    predictor: Predictor,
    evaluation: EvaluationConfig,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    sets: Iterable[EncodedSplit],
) -> OpenPredictor | None:
    """What answers the open questions among `sets`, None where all have options.

    Raises UserError, before anything slow, where an answer would not fit into the model's `context`
    tokens or the tokenizer cannot write what is asked of it.
    """
    lengths = [len(e.prompt_ids) for rows in sets if rows.is_open for e in rows]
    if not lengths:
        return None
    _require_room(context, max(lengths), evaluation.open.max_new_tokens)
    return OpenPredictor(model, evaluation, data, tokenizer, predictor)


def _require_room(context: int, longest: int, new: int) -> None:
    if longest + new <= context:
        return
    shorter = f"set --data.max-length to at most {context - new}, which cuts long passages, or "
    raise UserError(
        f"open questions: the longest prompt of {longest} tokens and an answer of up to {new}"
        f" (evaluation.open.max_new_tokens) exceed the model's context of {context};"
        f" {shorter if new < context else ''}lower --evaluation.open.max-new-tokens"
    )


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
            f"{adapter / CALIBRATION_FILE}: damaged ({damage(error)}); train again, or fetch it"
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
