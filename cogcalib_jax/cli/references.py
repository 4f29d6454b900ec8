"""The two rows that every method must beat: the base, and the constant commonest answer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache, partial
from string import ascii_letters
from typing import Any

import numpy as np
from scipy.stats import binomtest

from cogcalib_jax.cli.method_run import Run, score, write_answers
from cogcalib_jax.cli.prepare import answering
from cogcalib_jax.cli.results import require_numbers
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.console import say, warn
from cogcalib_jax.data.config import CHAT, DataConfig
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.prompts import CLEAN
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.distributed import from_main
from cogcalib_jax.files import command_line
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.open_results import fit_calibrators
from cogcalib_jax.inference.predict import commonest_answer, counted_by
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.report.names import BASE, COMMONEST
from cogcalib_jax.report.recommendation import (
    BASE_FILE,
    LETTERS,
    OPEN,
    TEXTS,
    VALIDATION_FILE,
    base_words,
    read_base,
)
from cogcalib_jax.settings import marked_paths
from cogcalib_jax.training.validation import options_belief


def look_at_base(run: Run) -> None:
    """Evaluate the base on the validation questions before training, and log the result.

    With `adapter`, the base has that adapter. `base.json` holds

    - `model`: its name in sentences; `task`, `n`, `kind` (`letters`, `texts` or `open`)
    - `accuracy` with `low` and `high` (Clopper-Pearson, 95 %), `nll` in nats
    - `chance`: the accuracy of guessing; `commonest_answer`: that of the constant prediction
    - `option_mass`: the mean probability of all options together over the vocabulary; null if the
      options do not exclude one another
    - `try`: commands that ask in another form

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
        require_numbers(predictions, validation, f"{BASE} on {run.base}")
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
        "try": other_forms(run.command, run.config.data, kind, bool(run.tokenizer.chat_template)),
    }


def _kind_of_options(encoded: EncodedSplit) -> str:
    answers = {text.strip(" \n().:") for row in encoded for text in row.completions}
    letters = all(len(text) == 1 and text in ascii_letters for text in answers)
    # Letters of several tokens have a mass, too, if none begins another.
    return LETTERS if letters and encoded.exclusive_options else TEXTS


def other_forms(command: str, data: DataConfig, kind: str, has_chat: bool) -> list[str]:
    """Return the commands that ask the same questions in another form.

    Args:
        command: the command that started the run.
        kind: LETTERS, TEXTS or OPEN.
        has_chat: whether the tokenizer has a chat template.
    """
    if isinstance(TASKS[data.task], MadeTask):
        return []
    prompts = {LETTERS: ["cloze"], TEXTS: ["letters"], OPEN: []}[kind]
    if has_chat and data.prompt != CHAT:
        prompts = [*prompts, CHAT]
    roles = ("folder", "resume", "prompt", "protocol")
    places = {role: marked_paths(RunConfig, "role", role)[0] for role in roles}
    more = []
    if data.protocol == CLEAN:
        del places["protocol"]
    else:
        more = [f"--{places['protocol']}", CLEAN]
    words = _without(shlex.split(command), set(places.values()))
    return [command_line(*words, *more, f"--{places['prompt']}", prompt) for prompt in prompts]


def _without(words: Sequence[str], options: set[str]) -> list[str]:
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word[2:].partition("=")[0].replace("-", "_") in options
        if not dropping:
            kept.append(word)
    return kept


def reference_rows(run: Run) -> dict[str, dict[str, Any]]:
    """Score both references on the test sets, each into a folder of its name.

    Open questions have no commonest answer.
    """
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
