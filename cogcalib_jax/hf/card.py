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
from cogcalib_jax.errors import DAMAGED, UserError
from cogcalib_jax.files import command_line, reason_of, write_whole
from cogcalib_jax.hf.adapter import QUANTISE, read_calibration
from cogcalib_jax.hf.files import model_folder, public_name
from cogcalib_jax.models.config import LoraConfig

CARD_FILE, JOURNAL, RESULTS = "README.md", "metrics.jsonl", "eval.json"
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
_FOLDERS = re.compile(r"(?<![\w.])(?:\"\$HOME\"|~|\.{1,2})?/(?:(?:\"\$USER\"|[^\s/'\"=,]+)/)+")


@main_only
def write_card(
    adapter: Path,
    base_name: str | Path,
    lora: LoraConfig,
    run: Path | None = None,
    results: Sequence[Path] = (),
) -> None:
    """Write the card of an adapter into its folder, which may hold a calibration.json.

    Args:
        run: the run folder that holds the adapter, if there is one.
        results: folders whose eval.json is of this adapter, the second one with its temperature;
            none: the numbers of its validation during training, if `run` has them.

    Raises:
        UserError: damaged files.
    """
    base_name, base = str(base_name), model_folder(base_name)
    asked = read_calibration(adapter) or {}
    front, facts = _about_base("peft", base_name, base, lora)
    facts |= _held((asked.get("base") or {}).get(QUANTISE))
    if run is not None:
        facts |= _training_facts(run) | _updates(run)
    sections = [
        front,
        f"# LoRA adapter on {public_name(base_name)}",
        "Fine-tuned with cogcalib_jax, which trains models to have calibrated confidences.",
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
        untied: whether the merge gave the head a tensor of its own.
        quantise: how the base was held while the adapter was trained, if that is known.

    Raises:
        UserError: damaged files.
    """
    front, facts = _about_base("transformers", base_name, base, lora)
    facts |= ({"Head": UNTIED} if untied else {}) | _held(quantise)
    if run is None:
        facts["Data, method, threshold"] = "unknown: merged from an adapter without its run"
    else:
        facts |= _training_facts(run)
    sections = [
        front,
        f"# {public_name(base_name)}, fine-tuned with LoRA and merged",
        _fact_list(facts),
        "## Calibration",
        _measured_before_merge(run),
        "## Commands",
        _commands(run, argv),
    ]
    return "\n\n".join(sections) + "\n"


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """The contents of a YAML or JSON file, or of JSON lines; what a damaged one lacks within the
    block is a UserError."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            yield [json.loads(line) for line in text.splitlines()]
        else:
            yield yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    except (*DAMAGED, FileNotFoundError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: damaged ({reason_of(error)}); put it back from a copy, or merge its adapter"
            " with --adapter instead of --run (the card then has no numbers)"
        ) from error


def without_folders(command: str) -> str:
    """Return a command in which every path keeps its last part alone."""
    return _FOLDERS.sub(".../", command)


def _about_base(
    library: str, base_name: str, base: Path, lora: LoraConfig
) -> tuple[str, dict[str, str]]:
    """The metadata that the Hub reads, and facts; `library` loads the model."""
    name = public_name(base_name)
    hub_id = base_name if name == base_name and "/" in name else None
    licence = _licence(base)
    fields = {"base_model": hub_id, "library_name": library, "license": licence}
    fields = {key: value for key, value in fields.items() if value} | {
        "tags": ["calibration", "lora"]
    }
    texts = sorted(path.name for path in base.glob("LICENSE*") if path.is_file())
    link = f" (its text: [{texts[0]}]({texts[0]}))" if texts else ""
    facts = {
        "Base": f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else name,
        "Licence of the base": (licence or UNKNOWN_LICENCE) + link,
        "Adapter": f"{lora.kind} of rank {lora.r}, alpha {lora.lora_alpha:g}, on "
        + ", ".join(lora.target_modules)
        + (" (by layer: see adapter_config.json)" if lora.placement else ""),
    }
    return f"---\n{yaml.safe_dump(fields)}---", facts


def _licence(base: Path) -> str | None:
    """The name of the base's licence, from the base's own card."""
    readme = base / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        fields = yaml.safe_load(parts[1])
    except (*DAMAGED, ArithmeticError, yaml.YAMLError):
        return None  # someone else's text, from which no licence can be read
    if not isinstance(fields, dict):
        return None
    names = (fields.get(key) for key in ("license_name", "license"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _held(quantise: str | None) -> dict[str, str]:
    """Return what a card says of a base that was quantised for training."""
    if quantise in (None, "none"):
        return {}
    words = f"held in {quantise} (`model.quantise`); with whole weights the numbers differ"
    return {"Base in training": words}


def _fact_list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _training_facts(run: Path) -> dict[str, str]:
    """Data, method and threshold, from the files of a run folder."""
    with _reading(run / "config.yaml") as config:
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
    with _reading(run / JOURNAL) as lines:
        fits = [line for line in lines if line["phase"] == "refit"]
        if not fits:
            return f"unknown: none in {JOURNAL}"
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
    if not (run / JOURNAL).is_file():
        return []
    with _reading(run / JOURNAL) as lines:
        return lines


def _keeps_best(run: Path) -> bool:
    with _reading(run / "config.yaml") as config:
        return config["training"]["keep"] == "best"


def _prompt(asked: Mapping[str, Any]) -> str:
    prompt = asked.get("prompt")
    if prompt is None:
        return "How its questions are asked is not stored with it."
    # As JSON: it shows spaces and lines, and nothing in it can end the block.
    text = json.dumps(prompt, indent=2, ensure_ascii=False)
    return (
        "Prompts are these pieces, in the order start, passage (left out if a question has"
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
    row = [f"{one['epoch']:g}", *(_number(one[key]) for key in MEASURES)]
    table = _table("epoch accuracy ECE NLL Brier AUROC", [row])
    return f"Measured on validation questions while training, without a calibrator.\n\n{table}"


def _tested(run: Path, results: Sequence[Path]) -> str:
    plain, *tempered = results
    parts = [f"Measured on test questions. {_ece_sentence(run)}", _test_table(plain)]
    for folder in tempered:
        parts += ["The same with the temperature:", _test_table(folder)]
    return "\n\n".join(parts)


def _measured_before_merge(run: Path | None) -> str:
    if run is None or not (run / RESULTS).is_file():
        return NOT_MEASURED
    measured = "Measured on test questions with base and adapter, before they were merged."
    parts = [f"{measured} {_ece_sentence(run)}", _test_table(run)]
    with _reading(run / RESULTS) as results:
        tasks = [numbers for task, numbers in results.items() if task != "provenance"]
    rules = dict.fromkeys(filter(None, (numbers.get("option_score") for numbers in tasks)))
    if rules:
        names = ", ".join(f"`{rule}`" for rule in rules)
        parts.append(f"Options are scored by the rule {names} of cogcalib_jax's `option_score`.")
    return "\n\n".join(parts)


def _ece_sentence(run: Path) -> str:
    with _reading(run / "config.yaml") as config:
        bins = config["evaluation"]["bins"]
    return (
        f"ECE with {bins} equal-width bins; its floor is the ECE (mean, 95th percentile) that a"
        " perfectly calibrated model with these confidences would show for as many questions."
    )


def _test_table(folder: Path) -> str:
    """The table of the numbers in eval.json."""
    rows = []
    with _reading(folder / RESULTS) as results:
        for task, metrics in results.items():
            if task == "provenance":
                continue
            spaces = {"answers": metrics}  # open questions have no options
            if metrics["vocab"] is not None:
                spaces = {"options": metrics, "vocabulary": metrics["vocab"]}
            for space, values in spaces.items():
                accuracy, ece, *others = (_number(values[key]) for key in MEASURES)
                floor = ", ".join(
                    _number(values["ece_noise_floor"][key]) for key in ("mean", "p95")
                )
                rows.append([task, space, f"{metrics['n']:,}", accuracy, ece, floor, *others])
    return _table("task space n accuracy ECE floor NLL Brier AUROC", rows)


def _table(names: str, rows: Sequence[Sequence[str]]) -> str:
    columns = names.split()
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _commands(run: Path | None, argv: Sequence[str]) -> str:
    commands = [command_line("python", "-m", "cogcalib_jax.hf.merge", *argv)]
    if run is not None and (run / RESULTS).is_file():
        with _reading(run / RESULTS) as results:
            commands.insert(0, str(results["provenance"]["command"]))
    return "\n".join(f"    {without_folders(command)}" for command in commands)
