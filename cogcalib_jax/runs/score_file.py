"""Numbers for predictions that came from elsewhere: a peer's, an API's, or an old run's."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from cogcalib_jax.errors import UserError
from cogcalib_jax.files import is_plain_name
from cogcalib_jax.inference.evaluate import provenance, write_json
from cogcalib_jax.inference.scored_rows import read_scored
from cogcalib_jax.inference.subgroups import require_fields, subgroups
from cogcalib_jax.runs.assemble import say
from cogcalib_jax.runs.eval_config import EvalConfig
from cogcalib_jax.runs.folder import (
    choose_folder,
    holding_locks,
    make_folder,
    original_command,
    write_config,
)
from cogcalib_jax.runs.results import FILE


@holding_locks()
def score_predictions(config: EvalConfig, argv: list[str]) -> Path:
    """Score the file `config.predictions`, without a model; returns the folder of the results.

    argv: the command line, kept for the record. The file's own name stands for the task.
    """
    assert config.predictions is not None
    file = Path(config.predictions)
    task = file.stem
    if task == "provenance" or not is_plain_name(task):
        raise UserError(
            f"{file}: its name stands for the task in the results, where {task!r} cannot; give it"
            " another"
        )
    folder = choose_folder(config.run_dir, "eval", resume=False)
    scored = read_scored(file)
    require_fields(config.by, {task: scored.fields})
    for note in scored.notes:
        say(f"   note: {note}")
    metrics = {"split": "file"} | scored.scores.metrics(config.seed, config.evaluation)
    metrics |= scored.scoring
    if config.by:
        part = partial(scored.scores.metrics, config.seed)
        metrics["by"] = subgroups(config.by, scored.fields, config.evaluation, part)
    make_folder(folder)
    command = original_command(folder, "eval.py", argv)
    write_config(folder, config)
    made = provenance(config.seed, {task: hashlib.sha256(file.read_bytes()).hexdigest()})
    # How the questions were split and asked is known to whoever made the predictions.
    del made["protocol"]
    write_json(folder / FILE, {task: metrics, "provenance": made | {"command": command}})
    return folder
