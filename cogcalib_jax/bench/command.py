"""The command around a measurement: its config, its file of figures and its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import refuse_meaningless, require_writable
from cogcalib_jax.configlib.loading import Loaded, load_config
from cogcalib_jax.configlib.sources import DEFAULT_PRESET, find_preset
from cogcalib_jax.files import command_line
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.settings import Role


def run_benchmark(
    program: str,
    config_class: type,
    argv: Sequence[str],
    measure: Callable[[Any], dict[str, Any]],
    table: Callable[[dict[str, Any]], Table],
    *,
    description: str,
    refused: Mapping[Role, str] | None = None,
    settle: Callable[[Loaded[Any]], Any] = lambda loaded: loaded.config,
) -> str:
    """Run a measurement: write its figures to `--json` and return the table as text.

    Args:
        program: the words that start it.
        config_class: of a run, it starts from the default preset.
        refused: roles of options that mean nothing here, each with what to write instead.
        settle: the config to measure, from the one that was loaded.
    """
    of_a_run = issubclass(config_class, RunConfig)
    loaded = load_config(
        config_class,
        argv,
        prog=program,
        description=description,
        default_preset=find_preset(DEFAULT_PRESET) if of_a_run else None,
    )
    refuse_meaningless(loaded, refused or {}, "a benchmark")
    config = settle(loaded)
    file = config.json
    if file is not None:
        require_writable(Path(file), "--json")
    figures = measure(config)
    if file is not None:
        command = command_line(*program.split(), *argv)
        write_json(Path(file), figures | {"command": command})
    return as_text(table(figures))
