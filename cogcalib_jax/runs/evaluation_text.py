"""What eval.py prints of a finished evaluation."""

from __future__ import annotations

import textwrap
from pathlib import Path

from cogcalib_jax.calibration import CALIBRATORS, Calibrator, TemperatureScaler
from cogcalib_jax.files import read_object
from cogcalib_jax.hf.adapter import CALIBRATION_FILE
from cogcalib_jax.inference.posthoc import stored_calibrator, stored_temperature
from cogcalib_jax.report.comparison import COMPARISON, results_text, write_comparison
from cogcalib_jax.report.names import best_epoch_of, long_name
from cogcalib_jax.report.text import TEXT_WIDTH, count
from cogcalib_jax.runs.calibrators import FILE as CALIBRATOR
from cogcalib_jax.runs.eval_config import BARE, EvalConfig
from cogcalib_jax.runs.results import FILE, read_results
from cogcalib_jax.runs.trained_run import read_trained_run


def evaluation_text(config: EvalConfig, folder: Path) -> str:
    """Whose numbers, the tables, and where the files lie; comparison.md and .csv of several models
    are written on the way."""
    if (folder / f"{COMPARISON}.json").is_file():
        comparison = write_comparison(folder, config.evaluation.bins)
        return (
            f"{comparison}\n\nThe same: {folder / COMPARISON}.md, .csv and .json\n"
            f"Every answer: {folder / 'MODEL' / 'predictions'}"
        )
    text = f"{_whose(config)}{_calibrated(folder)}:\n\n{results_text(read_results(folder))}\n\n"
    notes = [textwrap.fill(line, TEXT_WIDTH) for line in _temperature(config)]
    text += "".join(f"{note}\n\n" for note in notes)
    text += f"All numbers: {folder / FILE}"
    if config.predictions is None:
        text += f"\nEvery answer: {folder / 'predictions'}"
    return text


def _calibrated(folder: Path) -> str:
    file = folder / CALIBRATOR
    if not file.is_file():
        return ""
    calibrator = Calibrator.from_json(read_object(file, ""))
    rows = count(calibrator.n_rows_, "calibration question")
    return f", calibrated by {CALIBRATORS.spec(calibrator)} fitted on {rows}"


def _temperature(config: EvalConfig) -> list[str]:
    """Say that the table is without the calibrator that `--predict` uses, if there is one."""
    if config.calibrator is not None:
        return []
    adapters = [str(Path(run) / "adapter") for run in config.run] or list(config.adapter)
    if config.ensemble or config.mc_passes or len(adapters) != 1 or adapters[0] == BARE:
        return []
    fitted = stored_temperature(Path(adapters[0]))
    if fitted is None:
        return []
    if fitted.value is None:
        return [f"Warning: {fitted.warning}."]
    calibrator, file = stored_calibrator(Path(adapters[0])), f"{adapters[0]}/{CALIBRATION_FILE}"
    told = (
        "These are the model's own confidences. --predict divides the scores by the temperature"
        f" {fitted.value:.3g}, as {file} says."
    )
    if calibrator is not None and not isinstance(calibrator, TemperatureScaler):
        spec = CALIBRATORS.spec(calibrator)
        told = f"These are the model's own confidences. --predict applies the {spec} of {file}."
    return [told] if fitted.warning is None else [told, f"Warning: {fitted.warning}."]


def _whose(config: EvalConfig) -> str:
    if config.predictions is not None:
        return config.predictions
    if config.ensemble:
        return f"Ensemble of {', '.join(config.run or config.adapter)}"
    if config.run:
        (run,) = config.run
        trained = read_trained_run(run)
        label = trained.method.label
        kept = best_epoch_of(label) if trained.training.keep == "best" else label
        return f"{long_name(kept)}, from {run}"
    return f"{config.model.path} with {config.adapter[0] if config.adapter else 'no adapter'}"
