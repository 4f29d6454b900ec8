"""The rule by which a run scores options, settled once if its config says `auto`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flax import nnx

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.option_choice import Choice, choose_option_score
from cogcalib_jax.inference.option_score import OptionScore
from cogcalib_jax.runs.stored import CHOICE_FILE, read_choice
from cogcalib_jax.training.finetune import Trainer


def require_prefix(option_score: OptionScore, sets: Iterable[EncodedSplit]) -> None:
    """Refuse pmi for a tokenizer with no token to begin a text with (UserError)."""
    for rows in sets:
        if option_score == "pmi" and not rows.is_open and rows.pmi_prefix_ids is None:
            raise UserError(
                "option_score = pmi: the tokenizer has neither a BOS nor an end-of-text token after"
                " which options could be scored without their question; use mean, sum or chars"
            )


def settle_option_score(
    trainer: Trainer, start: nnx.State, folder: Path, seed: int
) -> tuple[OptionScore, str]:
    """Return the rule that `auto` chooses for a run, and a line about the choice.

    The rule is chosen on the start (the model in which fine-tuning begins) and kept in `folder`, so
    that a resumed run takes the same one.

    Args:
        trainer: has the splits and the predictor.
        start: LoRA parameters after style adaptation.
        folder: the run's folder.
        seed: of the bootstrap over questions.
    """
    if from_main((folder / CHOICE_FILE).is_file):
        rule = from_main(lambda: read_choice(folder))
        return rule, f"option_score: {rule}, as it was chosen when the run was started"
    choice = choose_option_score(
        trainer.predictor(start, trainer.splits["calibration"]),
        trainer.predictor(start, trainer.splits["validation"]),
        seed,
    )
    write_json(folder / CHOICE_FILE, choice.record())
    return choice.option_score, _line(choice)


def _line(choice: Choice) -> str:
    numbers = ", ".join(f"{rule} {one.nll:.3f}" for rule, one in choice.tried.items())
    shown = f" (validation NLL at a fitted temperature: {numbers})" if numbers else ""
    return f"option_score: {choice.option_score}, for {choice.reason}{shown}"
