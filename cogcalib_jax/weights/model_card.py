"""The README.md of a merged model: what it is made of, and how well its confidence was measured.

It says what the files at hand say, and "unknown" where they say nothing. Names of folders, which
may hold those of people, are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cogcalib_jax.configlib import command_line
from cogcalib_jax.errors import UserError
from cogcalib_jax.models.lora_config import LoraConfig
from cogcalib_jax.weights.foreign import damage
from cogcalib_jax.weights.hub import public_name

UNKNOWN_LICENCE = "unknown: see the base"
UNTIED = (
    "a tensor of its own (`lm_head.weight`, `tie_word_embeddings` false). The base's head is its"
    " embedding; the adapter changes the head alone"
)
DAMAGED = (FileNotFoundError, ValueError, RecursionError, LookupError, TypeError, AttributeError)
_FOLDERS = re.compile(r"(?<![\w.])(?:\"\$HOME\"|~|\.{1,2})?/(?:(?:\"\$USER\"|[^\s/'\"=,]+)/)+")


def model_card(
    run: Path | None,
    base_name: str,
    base: Path,
    lora: LoraConfig,
    argv: Sequence[str],
    *,
    untied: bool = False,
) -> str:
    """The card's text.

    run: the run folder the adapter comes from, where known. base_name, base: the base as it was
    named, and its folder. argv: the merge's arguments. untied: whether the merge gave the head a
    tensor of its own. Raises UserError for damaged files.
    """
    shown = public_name(base_name)
    licence, licence_link = _licence(base)
    hub_id = base_name if shown == base_name and "/" in base_name else None
    sections = [
        _front_matter(hub_id, licence),
        f"# {shown}, fine-tuned with LoRA and merged",
        _facts(
            {
                "Base": f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else shown,
                "Licence of the base": (licence or UNKNOWN_LICENCE) + licence_link,
                "Adapter": f"LoRA of rank {lora.r}, alpha {lora.lora_alpha:g}, on "
                + ", ".join(lora.target_modules),
            }
            | ({"Head": UNTIED} if untied else {})
            | _training_facts(run)
        ),
        "## Calibration",
        _calibration(run),
        "## Commands",
        _commands(run, argv),
    ]
    return "\n\n".join(sections) + "\n"


@contextmanager
def _reading(file: Path) -> Iterator[str]:
    """The file's text, and a word for what one that was cut off or edited by hand lacks."""
    try:
        yield file.read_text(encoding="utf-8")
    except (*DAMAGED, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: damaged ({damage(error)}); give --adapter its adapter instead of --run, for a"
            " card without its numbers"
        ) from error


def without_folders(command: str) -> str:
    """A command in which every path keeps only its last part."""
    return _FOLDERS.sub(".../", command)


def _front_matter(hub_id: str | None, licence: str | None) -> str:
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["calibration", "lora"]}
    if hub_id:
        fields["base_model"] = hub_id
    if licence:
        fields["license"] = licence
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---"


def _licence(base: Path) -> tuple[str | None, str]:
    """(name of the base's licence, where its text is), from the base's own files."""
    files = sorted(path.name for path in base.glob("LICENSE*") if path.is_file())
    link = f" (its text: [{files[0]}]({files[0]}))" if files else ""
    readme = base / "README.md"
    if readme.is_file():
        parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                fields = yaml.safe_load(parts[1])
            except (*DAMAGED, ArithmeticError, yaml.YAMLError):
                fields = None  # someone else's text; no licence can be read from it
            if isinstance(fields, dict):
                for key in ("license_name", "license"):
                    if isinstance(fields.get(key), str) and fields[key]:
                        return fields[key], link
    return None, link


def _facts(facts: dict[str, str]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _training_facts(run: Path | None) -> dict[str, str]:
    if run is None:
        return {"Data, method, threshold": "unknown: merged from an adapter without its run"}
    with _reading(run / "config.yaml") as text:
        config = yaml.safe_load(text)
        data, method = config["data"], config["method"]
        facts = {
            "Data": f"task `{data['task']}`"
            + (f" from `{Path(data['path']).name}`" if data["path"] else "")
            + f", {config['training']['epochs']:g} epochs, seed {config['seed']}"
        }
        if method["term"] == "none":
            return facts | {"Method": "plain cross-entropy", "Threshold": "not used"}
        facts["Method"] = (
            f"cross-entropy + {method['weight']:g} x {method['term']} over the {method['space']},"
            f" applied to: {method['gate']}"
        )
    facts["Threshold"] = _threshold(run) if method["gate"] != "all" else "not used"
    return facts


def _threshold(run: Path) -> str:
    """The last threshold that was fitted."""
    with _reading(run / "metrics.jsonl") as text:
        fits = [fit for fit in map(json.loads, text.splitlines()) if fit["phase"] == "refit"]
        if not fits:
            return "unknown: none in metrics.jsonl"
        fit = fits[-1]
        if fit["threshold"] is None:  # answers all right, or all wrong
            return f"none (last fit, step {fit['step']}: {fit['note']})"
        return (
            f"an example counts as known at an NLL of at most {fit['threshold']:.4g} nats (last"
            f" fit, step {fit['step']}; true positive rate {fit['tpr']:.3f}, true negative rate"
            f" {fit['tnr']:.3f} on {fit['n']} calibration questions)"
        )


def _calibration(run: Path | None) -> str:
    if run is None or not (run / "eval.json").is_file():
        return "Not measured on this adapter by the tool that merged it."
    with _reading(run / "config.yaml") as text:
        bins = yaml.safe_load(text)["evaluation"]["bins"]
    lines = [
        "Measured on test questions with base and adapter, before they were merged. ECE with"
        f" {bins} equal-width bins; its floor is the ECE (mean, 95th percentile) that a perfectly"
        " calibrated model with these confidences would show for as many questions.",
        "",
        "| task | space | n | accuracy | ECE | floor | NLL | Brier | AUROC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rules = []
    with _reading(run / "eval.json") as text:
        for task, metrics in json.loads(text).items():
            if task != "provenance":
                lines += _rows(task, metrics)
                rules.append(metrics.get("option_score"))
    names = ", ".join(f"`{rule}`" for rule in dict.fromkeys(filter(None, rules)))
    if names:
        lines += ["", f"Options are scored by the rule {names} of cogcalib_jax's `option_score`."]
    return "\n".join(lines)


def _rows(task: str, metrics: dict[str, Any]) -> Iterator[str]:
    spaces = {"answers": metrics}  # open questions have no options
    if metrics["vocab"] is not None:
        spaces = {"options": metrics, "vocabulary": metrics["vocab"]}
    for space, values in spaces.items():
        floor = values["ece_noise_floor"]
        cells = [task, space, f"{metrics['n']:,}"]
        cells += [_number(values[key]) for key in ("accuracy", "ece")]
        cells.append(f"{_number(floor['mean'])}, {_number(floor['p95'])}")
        cells += [_number(values[key]) for key in ("nll", "brier", "auroc")]
        yield f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _commands(run: Path | None, argv: Sequence[str]) -> str:
    commands = [command_line("python", "-m", "cogcalib_jax.weights.merge", *argv)]
    if run is not None and (run / "eval.json").is_file():
        with _reading(run / "eval.json") as text:
            commands.insert(0, str(json.loads(text)["provenance"]["command"]))
    return "\n".join(f"    {without_folders(command)}" for command in commands)
