"""The README.md beside an adapter, as the Hub shows it: how it was made, asked and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.distributed import main_only
from cogcalib_jax.files import write_whole
from cogcalib_jax.hf.base_hash import read_calibration
from cogcalib_jax.hf.download import model_folder, public_name
from cogcalib_jax.hf.model_card import (
    NOT_MEASURED,
    base_facts,
    ece_words,
    fact_list,
    front_matter,
    number,
    reading,
    test_table,
    training_facts,
)
from cogcalib_jax.models.lora_config import LoraConfig

CARD_FILE = "README.md"
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


@main_only
def write_card(
    adapter: Path,
    base_name: str | Path,
    lora: LoraConfig,
    asked: Mapping[str, Any] | None = None,
    run: Path | None = None,
    results: Sequence[Path] = (),
) -> None:
    """Write the card into the folder of an adapter.

    Arguments and errors as for `adapter_card`; asked: None: what its calibration.json says.
    """
    base = model_folder(base_name)
    asked = read_calibration(adapter) or {} if asked is None else asked
    write_whole(adapter / CARD_FILE, adapter_card(str(base_name), base, lora, asked, run, results))


def adapter_card(
    base_name: str,
    base: Path,
    lora: LoraConfig,
    asked: Mapping[str, Any],
    run: Path | None = None,
    results: Sequence[Path] = (),
) -> str:
    """The card's text.

    Args:
        base_name: the base as it was named.
        base: its folder.
        lora: the adapter's form.
        asked: `prompt`, `option_score`, `temperature` and `calibrator`, as in `calibration.json`;
            each may be missing.
        run: the run folder that holds the adapter, where there is one.
        results: folders whose eval.json is of this adapter, the second one with its temperature;
            none: the numbers of its validation during training, if `run` has them.

    Raises:
        UserError: damaged files.
    """
    facts = base_facts(base_name, base, lora)
    if run is not None:
        facts |= training_facts(run) | _updates(run)
    sections = [
        front_matter("peft", base_name, base),
        f"# LoRA adapter on {public_name(base_name)}",
        "Fine-tuned with cogcalib_jax, which trains confidences to keep their meaning.",
        fact_list(facts),
        "## Prompt and answers",
        _prompt(asked),
        fact_list(_scoring(asked)),
        "## Calibration",
        _tested(run, results) if run is not None and results else _validated(run),
        "## Use",
        USE.replace("BASE", public_name(base_name)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _updates(run: Path) -> dict[str, str]:
    """How many updates were made, and which of them the adapter is of."""
    lines = _journal(run)
    last = {line["phase"]: line["step"] for line in lines}
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
    with reading(file) as text:
        return [json.loads(line) for line in text.splitlines()]


def _keeps_best(run: Path) -> bool:
    with reading(run / "config.yaml") as text:
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
    """The validation that the adapter is of: the last, or with `keep: best` the best one."""
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
            f"| {one['epoch']:g} | {' | '.join(number(one[key]) for key in MEASURES)} |",
        ]
    )


def _tested(run: Path, results: Sequence[Path]) -> str:
    plain, *tempered = results
    lines = [f"Measured on test questions. {ece_words(run)}", "", *test_table(plain)]
    for folder in tempered:
        lines += ["", "The same with the temperature:", "", *test_table(folder)]
    return "\n".join(lines)
