"""All rules of `option_score` on the same log-probabilities, with and without a temperature.

    python benchmarks/option_scores.py --run RUN [RUN ...] [--data.test-rows 1000]
    python benchmarks/option_scores.py --model.path BASE [--adapter ADAPTER] --data.task TASK ...

Takes what eval.py takes for models on one base, with options of several tokens; beside runs stands
their base. Each model scores the
calibration and the test questions once; every rule is then computed from these numbers. A rule's
temperature is fitted on the calibration questions. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from cogcalib_jax.cli.eval_config import EvalConfig, load_evaluation
from cogcalib_jax.cli.evaluate import load_model, predict_function
from cogcalib_jax.cli.evaluated import Evaluated, evaluated_models
from cogcalib_jax.console import say
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.tokenizer import load_base_tokenizer
from cogcalib_jax.inference.config import OPTION_SCORES
from cogcalib_jax.inference.evaluate import task_metrics
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.report.tables import Table, as_markdown

HEADER = ("model", "rule", "T", "accuracy", "ECE", "its floor", "NLL", "AUROC")


def encoded_splits(config: EvalConfig, base: str) -> dict[str, EncodedSplit]:
    """The calibration and test questions of the runs, as token ids."""
    splits = load_splits(config.data, config.seed, made=config.made)
    tokenizer = load_base_tokenizer(base)
    encoded = {}
    for name in ("calibration", "test"):
        rows = getattr(splits, name)
        encoded[name], _ = encode_split(name, rows, tokenizer, config.data, splits.shots)
    return encoded


def rows_of(
    name: str, calibration: Predictions, test: Predictions, config: EvalConfig
) -> Iterator[tuple[str, ...]]:
    """Two table rows for each rule: at temperature 1, and at the fitted one."""
    for rule in OPTION_SCORES:
        fitted = fit_temperature(replace(calibration, option_score=rule))
        for temperature in (1.0, fitted):
            scored = replace(test, option_score=rule, temperature=temperature)
            numbers = task_metrics(scored, config.evaluation, config.seed, exclusive=False)
            floor = numbers["ece_noise_floor"]["p95"]
            shown = (numbers["accuracy"], numbers["ece"], floor, numbers["nll"], numbers["auroc"])
            yield (name, rule, f"{temperature:.3g}", *(f"{value:.3f}" for value in shown))


def main(argv: list[str]) -> None:
    config = load_evaluation(argv, prog="option_scores.py", description=__doc__)
    # One pass with pmi gives everything that the other rules need, too.
    config = replace(config, option_score="pmi")
    models = evaluated_models(config)
    base = models[0].base
    if config.run:
        models.insert(0, Evaluated("base", base, None))
    splits = encoded_splits(config, str(base))
    rows: list[tuple[str, ...]] = []
    for model in models:
        say(f"== {model.name}: {model.words}")
        predict, _ = predict_function(load_model(config, model, splits.values()), model)
        rows += rows_of(model.name, predict(splits["calibration"]), predict(splits["test"]), config)
    note = f"n = {len(splits['test']):,} test questions; T = 1: no temperature."
    print(as_markdown(Table(HEADER, tuple(rows), note)))


if __name__ == "__main__":
    sys.exit(run_main(main))
