"""The README.md of an adapter and of a merged model: what it is made of, and how it was measured.

A card repeats what the files at hand hold, and says "unknown" for the rest. Names of folders, which
may hold those of people, are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import command_line, reason_of, write_whole
from cogcalib_jax.hf.adapter import QUANTISE, read_calibration
from cogcalib_jax.hf.download import model_folder, public_name
from cogcalib_jax.models.config import LoraConfig

CARD_FILE = "README.md"
UNKNOWN_LICENCE = "unknown: see the base"
NOT_MEASURED = "Not measured on this adapter by the tool that wrote this card."
UNTIED = (
    "a tensor of its own (`lm_head.weight`, `tie_word_embeddings` false). The base's head is its"
    " embedding; the adapter changes the head alone"
)
USE = """With cogcalib_jax, which asks and scores as above, from a folder that holds these files:

```python
import cogcalib_jax as cc

model = cc.Model.from_pretrained("BASE", adapter="FOLDER")
print(model.ask("QUESTION", ["ONE", "ANOTHER"]))
```

With PEFT, where prompt, scores and temperature are yours to apply:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(base, "FOLDER")
```"""
MEASURES = ("accuracy", "ece", "nll", "brier", "auroc")
DAMAGED = (FileNotFoundError, ValueError, RecursionError, LookupError, TypeError, AttributeError)
_FOLDERS = re.compile(r"(?<![\w.])(?:\"\$HOME\"|~|\.{1,2})?/(?:(?:\"\$USER\"|[^\s/'\"=,]+)/)+")


@main_only
def write_card(
    adapter: Path,
    base_name: str | Path,
    lora: LoraConfig,
    asked: Mapping[str, Any] | None = None,
    run: Path | None = None,
    results: Sequence[Path] = (),
) -> None:
    """Write the card of an adapter into its folder.

    Args:
        adapter: the folder.
        base_name: Hub id or folder of the base.
        lora: the adapter's form.
        asked: `prompt`, `option_score`, `temperature` and `calibrator`, as in `calibration.json`,
            each of which may be missing; None: the contents of that file.
        run: the run folder that holds the adapter, if there is one.
        results: folders whose eval.json is of this adapter, the second one with its temperature;
            none: the numbers of its validation during training, if `run` has them.

    Raises:
        UserError: damaged files.
    """
    base_name, base = str(base_name), model_folder(base_name)
    asked = read_calibration(adapter) or {} if asked is None else asked
    facts = _base_facts(base_name, base, lora)
    facts |= _held((asked.get("base") or {}).get(QUANTISE))
    if run is not None:
        facts |= _training_facts(run) | _updates(run)
    sections = [
        _front_matter("peft", base_name, base),
        f"# LoRA adapter on {public_name(base_name)}",
        "Fine-tuned with cogcalib_jax, which trains confidences to keep their meaning.",
        _fact_list(facts),
        "## Prompt and answers",
        _prompt(asked),
        _fact_list(_scoring(asked)),
        "## Calibration",
        _tested(run, results) if run is not None and results else _validated(run),
        "## Use",
        USE.replace("BASE", public_name(base_name)),
    ]
    write_whole(adapter / CARD_FILE, "\n\n".join(filter(None, sections)) + "\n")


def model_card(
    run: Path | None,
    base_name: str,
    base: Path,
    lora: LoraConfig,
    argv: Sequence[str],
    *,
    untied: bool = False,
    quantise: str | None = None,
) -> str:
    """Return the text of a merged model's card.

    Args:
        run: the run folder that the adapter comes from, if known.
        base_name: the base as it was named.
        base: its folder.
        lora: the adapter's form.
        argv: the merge's arguments.
        untied: whether the merge gave the head a tensor of its own.
        quantise: how the base was held while the adapter was trained, if that is known.

    Raises:
        UserError: damaged files.
    """
    facts = _base_facts(base_name, base, lora) | ({"Head": UNTIED} if untied else {})
    facts |= _held(quantise)
    if run is None:
        facts["Data, method, threshold"] = "unknown: merged from an adapter without its run"
    else:
        facts |= _training_facts(run)
    sections = [
        _front_matter("transformers", base_name, base),
        f"# {public_name(base_name)}, fine-tuned with LoRA and merged",
        _fact_list(facts),
        "## Calibration",
        _measured_before_merge(run),
        "## Commands",
        _commands(run, argv),
    ]
    return "\n\n".join(sections) + "\n"


@contextmanager
def _reading(file: Path) -> Iterator[str]:
    """The file's text; what a damaged one lacks within the block is a UserError."""
    try:
        yield file.read_text(encoding="utf-8")
    except (*DAMAGED, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: damaged ({reason_of(error)}); put it back from a copy, or merge its adapter"
            " with --adapter instead of --run, for a card without its numbers"
        ) from error


def without_folders(command: str) -> str:
    """Return a command in which every path keeps its last part alone."""
    return _FOLDERS.sub(".../", command)


def _front_matter(library: str, base_name: str, base: Path) -> str:
    """The metadata that the Hub reads; `library` loads the model."""
    hub_id, (licence, _) = _hub_id(base_name), _licence(base)
    fields: dict[str, Any] = {"library_name": library, "tags": ["calibration", "lora"]}
    if hub_id:
        fields["base_model"] = hub_id
    if licence:
        fields["license"] = licence
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---"


def _base_facts(base_name: str, base: Path, lora: LoraConfig) -> dict[str, str]:
    hub_id, (licence, link) = _hub_id(base_name), _licence(base)
    return {
        "Base": f"[{hub_id}](https://huggingface.co/{hub_id})"
        if hub_id
        else public_name(base_name),
        "Licence of the base": (licence or UNKNOWN_LICENCE) + link,
        "Adapter": f"{lora.kind} of rank {lora.r}, alpha {lora.lora_alpha:g}, on "
        + ", ".join(lora.target_modules)
        + (" (by layer: see adapter_config.json)" if lora.placement else ""),
    }


def _held(quantise: str | None) -> dict[str, str]:
    """Return what a card says of a base that was quantised for training."""
    if quantise in (None, "none"):
        return {}
    words = f"held in {quantise} (`model.quantise`); with whole weights the numbers differ"
    return {"Base in training": words}


def _hub_id(base_name: str) -> str | None:
    return base_name if public_name(base_name) == base_name and "/" in base_name else None


def _licence(base: Path) -> tuple[str | None, str]:
    """(name of the base's licence, link to its text), from the base's own files."""
    files = sorted(path.name for path in base.glob("LICENSE*") if path.is_file())
    link = f" (its text: [{files[0]}]({files[0]}))" if files else ""
    readme = base / "README.md"
    if readme.is_file():
        parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                fields = yaml.safe_load(parts[1])
            except (*DAMAGED, ArithmeticError, yaml.YAMLError):
                fields = None  # someone else's text, from which no licence can be read
            if isinstance(fields, dict):
                for key in ("license_name", "license"):
                    if isinstance(fields.get(key), str) and fields[key]:
                        return fields[key], link
    return None, link


def _fact_list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _training_facts(run: Path) -> dict[str, str]:
    """Data, method and threshold, from the files of a run folder."""
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


def _updates(run: Path) -> dict[str, str]:
    """The number of updates, and the one that the adapter is from."""
    last = {line["phase"]: line["step"] for line in _journal(run)}
    if "finetune" not in last:
        return {}
    best = " The adapter is that of the lowest NLL of a validation." if _keeps_best(run) else ""
    return {
        "Updates": f"{last['finetune']:,}, of which {last.get('style', 0):,} of style adaptation"
        f" with plain cross-entropy.{best}"
    }


def _journal(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    with _reading(file) as text:
        return [json.loads(line) for line in text.splitlines()]


def _keeps_best(run: Path) -> bool:
    with _reading(run / "config.yaml") as text:
        return yaml.safe_load(text)["training"]["keep"] == "best"


def _prompt(asked: Mapping[str, Any]) -> str:
    prompt = asked.get("prompt")
    if prompt is None:
        return "How its questions are asked is not stored with it."
    # As JSON: it shows spaces and lines, and nothing in it can end the block.
    text = json.dumps(prompt, indent=2, ensure_ascii=False)
    return (
        "Prompts are these pieces, in the order start, passage (left out where a question has"
        " none), question, option (once for each), end; the answer follows as `completion`. The"
        " files of the tokenizer are beside the adapter.\n\n"
        f"```json\n{text}\n```"
    )


def _scoring(asked: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    if asked.get("option_score"):
        facts["Options"] = (
            f"scored by the rule `{asked['option_score']}` of cogcalib_jax's `option_score`, then a"
            " softmax over the options of a question"
        )
    temperature = asked.get("temperature")
    if temperature is not None:
        facts["Temperature"] = (
            f"none ({temperature['why_none']})"
            if temperature["value"] is None
            else f"{temperature['value']:.4g}, which divides option scores; fitted on"
            f" {temperature['rows']:,} calibration questions"
        )
    calibrator = asked.get("calibrator")
    if calibrator is not None:
        settings = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in calibrator.items()
            if name != KIND and isinstance(value, int | float | str)
        )
        facts["Calibrator"] = f"`{calibrator[KIND]}`" + (f" ({settings})" if settings else "")
    return facts


def _validated(run: Path | None) -> str:
    """The validation that belongs to the adapter: the last, or the best with `keep: best`."""
    # The first is of the start, which is no candidate.
    found = [] if run is None else [x for x in _journal(run) if x["phase"] == "validation"][1:]
    if run is None or not found or "nll" not in found[0]:
        return NOT_MEASURED
    one = min(found, key=lambda line: line["nll"]) if _keeps_best(run) else found[-1]
    return "\n".join(
        [
            "Measured on validation questions while training, without a calibrator.",
            "",
            "| epoch | accuracy | ECE | NLL | Brier | AUROC |",
            "|---|---|---|---|---|---|",
            f"| {one['epoch']:g} | {' | '.join(_number(one[key]) for key in MEASURES)} |",
        ]
    )


def _tested(run: Path, results: Sequence[Path]) -> str:
    plain, *tempered = results
    lines = [f"Measured on test questions. {_ece_sentence(run)}", "", *_test_table(plain)]
    for folder in tempered:
        lines += ["", "The same with the temperature:", "", *_test_table(folder)]
    return "\n".join(lines)


def _measured_before_merge(run: Path | None) -> str:
    if run is None or not (run / "eval.json").is_file():
        return NOT_MEASURED
    measured = "Measured on test questions with base and adapter, before they were merged."
    lines = [f"{measured} {_ece_sentence(run)}", "", *_test_table(run)]
    with _reading(run / "eval.json") as text:
        tasks = [numbers for task, numbers in json.loads(text).items() if task != "provenance"]
    rules = dict.fromkeys(filter(None, (numbers.get("option_score") for numbers in tasks)))
    if rules:
        names = ", ".join(f"`{rule}`" for rule in rules)
        lines += ["", f"Options are scored by the rule {names} of cogcalib_jax's `option_score`."]
    return "\n".join(lines)


def _ece_sentence(run: Path) -> str:
    with _reading(run / "config.yaml") as text:
        bins = yaml.safe_load(text)["evaluation"]["bins"]
    return (
        f"ECE with {bins} equal-width bins; its floor is the ECE (mean, 95th percentile) that a"
        " perfectly calibrated model with these confidences would show for as many questions."
    )


def _test_table(folder: Path) -> list[str]:
    """Lines of a table with the numbers of eval.json."""
    lines = [
        "| task | space | n | accuracy | ECE | floor | NLL | Brier | AUROC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with _reading(folder / "eval.json") as text:
        for task, metrics in json.loads(text).items():
            if task == "provenance":
                continue
            spaces = {"answers": metrics}  # open questions have no options
            if metrics["vocab"] is not None:
                spaces = {"options": metrics, "vocabulary": metrics["vocab"]}
            for space, values in spaces.items():
                floor = values["ece_noise_floor"]
                cells = [task, space, f"{metrics['n']:,}"]
                cells += [_number(values[key]) for key in ("accuracy", "ece")]
                cells.append(f"{_number(floor['mean'])}, {_number(floor['p95'])}")
                cells += [_number(values[key]) for key in ("nll", "brier", "auroc")]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _commands(run: Path | None, argv: Sequence[str]) -> str:
    commands = [command_line("python", "-m", "cogcalib_jax.hf.merge", *argv)]
    if run is not None and (run / "eval.json").is_file():
        with _reading(run / "eval.json") as text:
            commands.insert(0, str(json.loads(text)["provenance"]["command"]))
    return "\n".join(f"    {without_folders(command)}" for command in commands)
