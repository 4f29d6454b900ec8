"""The README.md of a merged model: what it is made of, and how well its confidence was measured.
That of an adapter (adapter_card.py) shares its parts.

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
from cogcalib_jax.hf.download import public_name
from cogcalib_jax.hf.foreign import damage
from cogcalib_jax.models.lora_config import LoraConfig

UNKNOWN_LICENCE = "unknown: see the base"
NOT_MEASURED = "Not measured on this adapter by the tool that wrote this card."
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
    facts = base_facts(base_name, base, lora)
    sections = [
        front_matter("transformers", base_name, base),
        f"# {public_name(base_name)}, fine-tuned with LoRA and merged",
        fact_list(facts | ({"Head": UNTIED} if untied else {}) | training_facts(run)),
        "## Calibration",
        _calibration(run),
        "## Commands",
        _commands(run, argv),
    ]
    return "\n\n".join(sections) + "\n"


@contextmanager
def reading(file: Path) -> Iterator[str]:
    """The file's text, and a word for what one that was cut off or edited by hand lacks."""
    try:
        yield file.read_text(encoding="utf-8")
    except (*DAMAGED, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: damaged ({damage(error)}); put it back from a copy, or merge its adapter with"
            " --adapter instead of --run, for a card without its numbers"
        ) from error


def without_folders(command: str) -> str:
    """A command in which every path keeps only its last part."""
    return _FOLDERS.sub(".../", command)


def front_matter(library: str, base_name: str, base: Path) -> str:
    """The metadata that the Hub reads.

    library: what loads the model. base_name, base: as for `model_card`.
    """
    hub_id, (licence, _) = _hub_id(base_name), _licence(base)
    fields: dict[str, Any] = {"library_name": library, "tags": ["calibration", "lora"]}
    if hub_id:
        fields["base_model"] = hub_id
    if licence:
        fields["license"] = licence
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---"


def base_facts(base_name: str, base: Path, lora: LoraConfig) -> dict[str, str]:
    """Return the base of the adapter, and its form."""
    hub_id, (licence, link) = _hub_id(base_name), _licence(base)
    return {
        "Base": f"[{hub_id}](https://huggingface.co/{hub_id})"
        if hub_id
        else public_name(base_name),
        "Licence of the base": (licence or UNKNOWN_LICENCE) + link,
        "Adapter": f"LoRA of rank {lora.r}, alpha {lora.lora_alpha:g}, on "
        + ", ".join(lora.target_modules),
    }


def _hub_id(base_name: str) -> str | None:
    return base_name if public_name(base_name) == base_name and "/" in base_name else None


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


def fact_list(facts: dict[str, str]) -> str:
    """A line for each fact, its name in bold."""
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def training_facts(run: Path | None) -> dict[str, str]:
    """Data, method and threshold, as the files of a run folder say."""
    if run is None:
        return {"Data, method, threshold": "unknown: merged from an adapter without its run"}
    with reading(run / "config.yaml") as text:
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
    with reading(run / "metrics.jsonl") as text:
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
        return NOT_MEASURED
    measured = "Measured on test questions with base and adapter, before they were merged."
    return "\n".join([f"{measured} {ece_words(run)}", "", *test_table(run), *_scored_by(run)])


def ece_words(run: Path) -> str:
    """Return a sentence about the ECE and its floor."""
    with reading(run / "config.yaml") as text:
        bins = yaml.safe_load(text)["evaluation"]["bins"]
    return (
        f"ECE with {bins} equal-width bins; its floor is the ECE (mean, 95th percentile) that a"
        " perfectly calibrated model with these confidences would show for as many questions."
    )


def test_table(folder: Path) -> list[str]:
    """Lines with the numbers of `eval.json`."""
    lines = [
        "| task | space | n | accuracy | ECE | floor | NLL | Brier | AUROC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with reading(folder / "eval.json") as text:
        for task, metrics in json.loads(text).items():
            if task != "provenance":
                lines += _rows(task, metrics)
    return lines


def _scored_by(run: Path) -> list[str]:
    with reading(run / "eval.json") as text:
        tasks = [numbers for task, numbers in json.loads(text).items() if task != "provenance"]
    rules = dict.fromkeys(filter(None, (numbers.get("option_score") for numbers in tasks)))
    names = ", ".join(f"`{rule}`" for rule in rules)
    if not names:
        return []
    return ["", f"Options are scored by the rule {names} of cogcalib_jax's `option_score`."]


def _rows(task: str, metrics: dict[str, Any]) -> Iterator[str]:
    spaces = {"answers": metrics}  # open questions have no options
    if metrics["vocab"] is not None:
        spaces = {"options": metrics, "vocabulary": metrics["vocab"]}
    for space, values in spaces.items():
        floor = values["ece_noise_floor"]
        cells = [task, space, f"{metrics['n']:,}"]
        cells += [number(values[key]) for key in ("accuracy", "ece")]
        cells.append(f"{number(floor['mean'])}, {number(floor['p95'])}")
        cells += [number(values[key]) for key in ("nll", "brier", "auroc")]
        yield f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    """A number as tables show it."""
    return "none" if value is None else f"{value:.3f}"


def _commands(run: Path | None, argv: Sequence[str]) -> str:
    commands = [command_line("python", "-m", "cogcalib_jax.hf.merge", *argv)]
    if run is not None and (run / "eval.json").is_file():
        with reading(run / "eval.json") as text:
            commands.insert(0, str(json.loads(text)["provenance"]["command"]))
    return "\n".join(f"    {without_folders(command)}" for command in commands)
