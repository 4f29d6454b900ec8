"""A training run: base, data, style adaptation, fine-tuning, evaluation, recommendation.

With `compare`, every method starts from the same style-adapted model and sees the same batches.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from cogcalib_jax.cli import run_folder
from cogcalib_jax.cli.method_run import (
    Run,
    Start,
    keep_best_epoch,
    score_adapter,
    store_known,
    train_method,
)
from cogcalib_jax.cli.prepare import prepare, with_processes
from cogcalib_jax.cli.references import look_at_base, reference_rows
from cogcalib_jax.cli.run_config import BEST_EPOCHS, PROGRAM, RunConfig
from cogcalib_jax.cli.sampling import sampling_rows
from cogcalib_jax.cli.stored import (
    CHOICE_FILE,
    CONFIG_FILE,
    INPUTS_FILE,
    read_choice,
    require_same_config,
    resume_command,
)
from cogcalib_jax.console import say, warn
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.distributed import from_main, in_main
from cogcalib_jax.errors import UserError, any_of
from cogcalib_jax.files import whole_folder, write_whole
from cogcalib_jax.inference.config import WITHOUT_PRIOR, OptionScore
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.inference.posthoc import choose_option_score
from cogcalib_jax.metrics.significance import paired_difference
from cogcalib_jax.report.load_run import TEMPERED
from cogcalib_jax.report.recommendation import (
    RECOMMENDED_FILE,
    THE_RUN,
    VALIDATION_FILE,
    read_validation_nll,
)
from cogcalib_jax.report.text import BASE, COMMONEST, best_epoch_of, is_tempered, tempered
from cogcalib_jax.settings import style_identity, with_places_of
from cogcalib_jax.training.config import compose
from cogcalib_jax.training.finetune import FinetuneResult, Trainer, style_phase


def train_run(config: RunConfig, name: str, argv: list[str], style: Path | None = None) -> Path:
    """Train and evaluate all methods of `config`, and return the run's folder.

    Args:
        name: the preset's name, for a default run folder.
        argv: the command line, which is stored.
        style: the finished style folder of another run with the same `style_identity`.
    """
    config = with_processes(config)
    with run_folder.holding_locks():
        run = open_run(config, name, argv)
        with run_folder.resumable(run.folder, resume_command(PROGRAM, run.folder)):
            _train_and_score(run, style)
    return run.folder


def _train_and_score(run: Run, style: Path | None) -> None:
    config = run.config
    look_at_base(run)
    if style is not None:
        _take_over(style, run.folder / "style")
    say(f"== Style adaptation: {run.trainer.style_steps} updates of plain cross-entropy")
    lora = style_phase(
        run.trainer, run.assembled.lora, run.folder / "style", style_identity(config)
    )
    start = Start(lora, run.folder)
    run = with_option_score(run, lora)
    references = reference_rows(run) if config.compare else {}
    run = composed(run, lora)
    store_known(run, lora)
    config = run.config

    methods = config.resolved_methods()
    if not config.compare:
        (method,) = methods.values()
        trainer = held_trainer(run, method.label)
        result = train_method(run, trainer, config.for_method(method), start, run.folder)
        score_adapter(run, run.folder, run.folder / TEMPERED, start, result.lora)
        recommend(run, [THE_RUN])
        return
    results: dict[str, dict[str, Any]] = references
    sft = None
    for key, method in methods.items():
        folder = run.folder / key
        alone = config.for_method(method, key)
        run_folder.write_config(folder, alone)
        result = train_method(run, held_trainer(run, key), alone, start, folder)
        results |= score_adapter(run, folder, run.folder / tempered(key), start, result.lora)
        if key in BEST_EPOCHS:
            results |= _best_epoch(run, alone, key, start, result)
        if key == "sft":
            sft = result
    candidates = simplest_first(list(results))
    recommend(run, [*candidates, *_with_adapter(run)])
    plain = replace(run, trainer=held_trainer(run, "sft"))
    results |= sampling_rows(plain, start, sft)
    write_json(run.folder / "comparison.json", results)


def held_trainer(run: Run, key: str) -> Trainer:
    """Return the run's trainer for the method of folder `key`: with anchors, or without."""
    trainer, config = run.trainer, run.config
    trainable, own = trainer.trainable, config.anchor.of_training
    if not config.holds(key):
        return replace(trainer, trainable=replace(trainable, anchors=None))
    if not own:
        return trainer
    # Style adaptation, over by now, stays as long as it was.
    training = replace(trainable.training, style_steps=trainer.style_steps, **own)
    return replace(trainer, trainable=replace(trainable, training=training))


def _with_adapter(run: Run) -> list[str]:
    """Make the folder that the config recommends one of an adapter, and return its name; [] if
    there is none. Its predictions are there: with the temperature of the adapter."""
    key = run.config.recommended
    if key is None:
        return []
    folder = run.folder / key
    source = next(
        run.folder / name for name in run.config.resolved_methods() if tempered(name) == key
    )
    if not from_main(folder.is_dir):
        warn(f"recommended = {key}: no temperature could be fitted; another method is chosen")
        return []

    def copy() -> None:
        for name in (CONFIG_FILE, VALIDATION_FILE):
            if (source / name).is_file():
                write_whole(folder / name, (source / name).read_text(encoding="utf-8"))
        if not (folder / "adapter").exists():
            with whole_folder(folder / "adapter") as building:
                shutil.copytree(source / "adapter", building, dirs_exist_ok=True)

    from_main(copy)
    return [key]


def _best_epoch(
    run: Run, config: RunConfig, key: str, start: Start, result: FinetuneResult
) -> dict[str, dict[str, Any]]:
    """Return the rows of a method's best validation epoch."""
    best = best_epoch_of(key)
    folder = run.folder / best
    say(f"== {best}: epoch {result.best_epoch:.1f} of the same training")
    keep_best_epoch(run, config, start, result, folder)
    return score_adapter(run, folder, run.folder / tempered(best), start, result.best_lora)


def open_run(config: RunConfig, name: str, argv: list[str]) -> Run:
    """Choose or lock the folder of a run, prepare its parts, and write or check its first files."""
    folder = run_folder.choose_folder(config.run_dir, name, config.resume)
    with run_folder.resumable(folder, resume_command(PROGRAM, folder)):
        return _open(config, folder, argv)


def _open(config: RunConfig, folder: Path, argv: list[str]) -> Run:
    methods = ", ".join([*config.resolved_methods(), *config.baselines])
    if config.resume:
        say(f"== Resuming {folder}: {methods}")
        run_folder.take_up(folder)
    else:
        say(f"== Run {folder}: {methods}")
    prepared = prepare(config)
    config = prepared.config

    # A mistake until here leaves no folder behind.
    run_folder.make_folder(folder)
    command = run_folder.original_command(folder, PROGRAM, argv)
    written = config.as_written()
    hashes = prepared.hashes
    inputs = run_folder.hash_inputs(config, prepared.base.place, hashes)
    if config.resume:
        stored = require_same_config(folder, written, places_too=False)
        run_folder.require_same_inputs(folder, config, inputs)
        moved = with_places_of(stored, written)
        if moved != stored:
            run_folder.write_config(folder, moved)
    else:
        write_json(folder / INPUTS_FILE, inputs)
        run_folder.write_config(folder, written)
    trainer = prepared.trainer
    made_from = {"data": {key: hashes[key] for key in trainer.splits}, "base": inputs["base"]}
    trainer = replace(trainer, trainable=replace(trainer.trainable, made_from=made_from))
    # The configs of methods do not mention a resume.
    prepared = replace(prepared, config=replace(config, resume=False), trainer=trainer)
    return Run(**vars(prepared), folder=folder, command=command)


@in_main
def _take_over(style: Path, folder: Path) -> None:
    """Copy the style phase of another run, unless this run has begun its own."""
    if style.is_dir() and not folder.exists():
        with whole_folder(folder) as building:
            shutil.copytree(style, building, dirs_exist_ok=True)


def composed(run: Run, start: nnx.State) -> Run:
    """Return the run with the fine-tuning rows that `composition` selects."""
    trainer, composition = run.trainer, run.config.composition
    train = compose(
        trainer.splits["train"],
        composition,
        lambda: trainer.known_at(start, trainer.splits["train"]),
        run.config.data.split_seed,
    )
    if train is trainer.splits["train"]:
        return run
    say(f"   composed: {len(train)} fine-tuning rows, {composition.words} known")
    return replace(run, trainer=trainer.with_train_split(train))


def with_option_score(run: Run, start: nnx.State) -> Run:
    """Return the run with the rule that scores its options; `auto` chooses on the start."""
    config = run.config
    if config.option_score != "auto":
        return run
    rule, line = settle_option_score(run.trainer, start, run.folder, config.seed)
    say(f"   {line}")
    trainer = run.trainer.scored_by(rule)
    return replace(run, config=replace(config, option_score=rule), trainer=trainer)


def require_prefix(option_score: OptionScore, sets: Iterable[EncodedSplit]) -> None:
    """Refuse pmi for a tokenizer with no token to begin a text with (UserError)."""
    for rows in sets:
        if option_score == "pmi" and not rows.is_open and rows.pmi_prefix_ids is None:
            raise UserError(
                "option_score = pmi: the tokenizer has neither a BOS nor an end-of-text token after"
                " which options could be scored without their question; use"
                f" {any_of(WITHOUT_PRIOR)}"
            )


def settle_option_score(
    trainer: Trainer, start: nnx.State, folder: Path, seed: int
) -> tuple[OptionScore, str]:
    """Return the rule that `auto` chooses on the start, and a line about the choice.

    The run's folder keeps the rule for resumed runs. seed: of the bootstrap over questions.
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
    numbers = ", ".join(f"{rule} {one.nll:.3f}" for rule, one in choice.tried.items())
    shown = f" (validation NLL at a fitted temperature: {numbers})" if numbers else ""
    line = f"option_score: {choice.option_score}, for {choice.reason}{shown}"
    return choice.option_score, line


def recommend(run: Run, candidates: Sequence[str]) -> None:
    """Write `recommended.json` of a finished run.

    The choice uses the NLL of validation questions, answered as by `--predict`. Candidates are
    equal to the lowest NLL if the paired 95 % interval of the difference holds 0; the simplest,
    the first of `candidates`, is recommended. Averages over several models are no candidates, as
    `--predict` answers with one adapter.
    """
    validation = run.trainer.splits["validation"]
    if not validation:
        return
    named = run.config.recommended
    chosen = from_main(
        lambda: choose_adapter(run.folder, candidates, named if named in candidates else None)
    )
    write_json(run.folder / RECOMMENDED_FILE, chosen | {"question": _example(validation)})


def simplest_first(folders: Sequence[str]) -> list[str]:
    """Return the folders of a comparison that hold an adapter: the best epoch of sft, sft, the
    others in their order."""
    kept = [key for key in folders if key not in (BASE, COMMONEST) and not is_tempered(key)]
    order = [best_epoch_of("sft"), "sft"]
    return sorted(kept, key=lambda key: order.index(key) if key in order else len(order))


def choose_adapter(
    run: Path, candidates: Sequence[str], recommended: str | None = None
) -> dict[str, Any]:
    """Choose among `candidates` (the simplest first) by the files in their folders.

    Returns:
        The content of `recommended.json` without its example: `method`, the folder; `chosen_on`,
        validation or config; `n` questions; `validation_nll` of every candidate and reference, in
        nats; `equal_to_best`, the candidates whose difference from the lowest NLL may be noise;
        `not_better_than`, the references within the paired interval of the method.
    """
    nll = {key: read_validation_nll(run / key) for key in candidates}
    best = min(nll, key=lambda key: nll[key].mean())
    equal = [key for key in nll if key == best or _low(nll[key], nll[best]) <= 0]
    method = recommended or equal[0]
    references = {
        key: read_validation_nll(run / key)
        for key in (BASE, COMMONEST)
        if (run / key / VALIDATION_FILE).is_file()
    }
    return {
        "method": method,
        "chosen_on": "validation" if recommended is None else "config",
        "n": len(nll[method]),
        "validation_nll": {key: float(values.mean()) for key, values in (nll | references).items()},
        "equal_to_best": equal,
        "not_better_than": [
            key for key, values in references.items() if _low(values, nll[method]) <= 0
        ],
    }


def _low(values: np.ndarray, others: np.ndarray) -> float:
    """Return the lower end of the paired 95 % interval of the mean difference."""
    return paired_difference([values], [others]).low


def _example(validation: EncodedSplit) -> Mapping[str, Any] | None:
    """Return a question in the shape that `--predict` reads; None for an open question."""
    if validation.is_open:
        return None
    example = validation[0].example
    passage = {"passage": example.passage} if example.passage else {}
    return passage | {"question": example.question, "choices": list(example.choices)}
