"""What eval.py prints of a finished evaluation."""

from __future__ import annotations

from pathlib import Path

from cogcalib_jax.reporting.evaluations import COMPARISON, results_text, write_comparison
from cogcalib_jax.reporting.names import long_name
from cogcalib_jax.runs.eval_config import EvalConfig, read_trained_run
from cogcalib_jax.runs.results import FILE, read_results


def evaluation_text(config: EvalConfig, folder: Path) -> str:
    """Whose numbers, the tables, and where the files lie; comparison.md and .csv of several models
    are written on the way."""
    if (folder / f"{COMPARISON}.json").is_file():
        comparison = write_comparison(folder, config.evaluation.bins)
        return (
            f"{comparison}\n\nThe same: {folder / COMPARISON}.md, .csv and .json\n"
            f"Every answer: {folder / 'MODEL' / 'predictions'}"
        )
    text = f"{_whose(config)}:\n\n{results_text(read_results(folder))}\n\n"
    text += f"All numbers: {folder / FILE}"
    if config.predictions is None:
        text += f"\nEvery answer: {folder / 'predictions'}"
    return text


def _whose(config: EvalConfig) -> str:
    if config.predictions is not None:
        return config.predictions
    if config.ensemble:
        return f"Ensemble of {', '.join(config.run or config.adapter)}"
    if config.run:
        (run,) = config.run
        return f"{long_name(read_trained_run(run).method.label)}, from {run}"
    return f"{config.model.path} with {config.adapter[0] if config.adapter else 'no adapter'}"
