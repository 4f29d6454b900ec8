"""The folders of finished runs: which methods a comparison has, and the config of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import refuse_external_links
from cogcalib_jax.report.names import REFERENCES, best_epoch_of, is_tempered, tempered
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.stored import CHOICE_FILE, read_choice, read_config, resume_command


def method_folders(name: str, best_epochs: bool = True) -> tuple[str, ...]:
    """Return the run folder `name` itself, or those of all methods of a comparison.

    best_epochs: whether best epochs that were kept are among them.
    """
    folder = Path(name)
    config = _read_config(folder)
    if not config.compare:
        return (name,)
    trained = [folder / key for key in config.resolved_methods()]
    unfinished = [method.name for method in trained if not (method / "adapter").is_dir()]
    if unfinished:
        raise UserError(
            f"{folder}: {', '.join(unfinished)} not finished; continue with"
            f" {resume_command('train.py', folder)}, or name the finished methods"
            f" ({folder}/METHOD)"
        )
    methods = [
        place
        for method in trained
        for place in (method, folder / best_epoch_of(method.name))
        if place == method or (best_epochs and (place / "adapter").is_dir())
    ]
    return tuple(map(str, methods))


def read_trained_run(name: str) -> RunConfig:
    """The config of a finished run of one method.

    Raises UserError for a folder that is no run or not finished.
    """
    folder = Path(name)
    config = _read_config(folder)
    if not (folder / "adapter").is_dir():
        raise UserError(
            f"{folder}: no adapter, so its training is not finished; continue it with"
            f" {resume_command('train.py', folder)}"
        )
    return config


def _read_config(folder: Path) -> RunConfig:
    file = folder / "config.yaml"
    if not file.exists() and (folder / "eval.json").is_file():
        if is_tempered(folder.name):
            weights = folder.with_name(folder.name.removesuffix(tempered("")))
            raise UserError(
                f"{folder}: holds the answers of {weights} with its temperature; give that folder,"
                " whose adapter/calibration.json has the temperature"
            )
        if folder.name in REFERENCES:
            raise UserError(
                f"{folder}: holds answers alone, for nothing was trained; for the base give"
                " --model.path BASE --adapter none"
            )
        raise UserError(
            f"{folder}: holds answers alone, its weights were not kept; for those of the best epoch"
            " train the method by itself with --training.keep best"
        )
    if not file.is_file():
        raise UserError(
            f"{folder}: no config.yaml, so it is no run that train.py wrote; give the folder of a"
            " run, or of a comparison of methods"
        )
    refuse_external_links(folder, (file, folder / "adapter", folder / CHOICE_FILE))
    config = read_config(folder, RunConfig)
    if config.option_score == "auto" and not config.compare:
        config = replace(config, option_score=read_choice(folder))
    return config
