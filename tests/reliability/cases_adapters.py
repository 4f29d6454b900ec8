"""Bad adapters, mostly of a run that starts from one."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.case import MERGE, Case
from tests.reliability.place import ADAPTER_WEIGHTS, Pickle, Place, cut, link_out, tensors, write

CONFIG = "adapter_config.json"


def _pickled_adapter(place: Place) -> list[str]:
    adapter = place.adapter()
    (adapter / ADAPTER_WEIGHTS).unlink()
    write(adapter / "adapter_model.bin", pickle.dumps(Pickle()))
    return _start_from(place)


def _start_from(place: Place) -> list[str]:
    argv = place.train("--adapter", "adapter")
    at = argv.index("--lora.r")
    return argv[:at] + argv[at + 2 :]


def adapter(change=None, **settings):
    """A run that starts from an adapter with other tensors or another adapter_config.json."""

    def arrange(place: Place) -> list[str]:
        folder = place.adapter(**settings)
        if change is not None:
            change(folder)
        return _start_from(place)

    return arrange


def _rank_again(place: Place) -> list[str]:
    place.adapter()
    return place.train("--adapter", "adapter")


def _no_base(place: Place) -> list[str]:
    place.adapter(base_model_name_or_path=None)
    return ["--adapter", "adapter", "--out", "merged"]


def _without_first(all_tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(list(all_tensors.items())[1:])


def _wider(all_tensors: dict[str, Any]) -> dict[str, Any]:
    """For a base of twice the width."""
    return {n: np.repeat(t, 2, 1) if "lora_A" in n else t for n, t in all_tensors.items()}


def _other_base(place: Place) -> list[str]:
    place.adapter()
    write(Path("adapter/calibration.json"), {"base": {"name": "other", "hash": "0" * 64}})
    return _start_from(place)


def _other_ids(place: Place) -> list[str]:
    folder = place.adapter()
    content = json.loads((place.base() / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    write(folder / "tokenizer.json", content)
    return _start_from(place)


ADAPTERS = [
    Case("an adapter that is not there", _start_from),
    Case(
        "adapter_config.json that is no JSON",
        adapter(lambda a: write(a / CONFIG, "{r: 2}")),
    ),
    Case(
        "adapter_config.json that is a list",
        adapter(lambda a: write(a / CONFIG, "[]")),
    ),
    Case(
        "adapter_config.json nested 100,000 deep",
        adapter(lambda a: write(a / CONFIG, "[" * 100_000)),
    ),
    Case("another kind of adapter", adapter(peft_type="IA3")),
    Case("DoRA without its lengths of rows", adapter(use_dora=True)),
    Case("PiSSA that was not converted", adapter(init_lora_weights="pissa")),
    Case("layers that are repeated", adapter(layer_replication=[[0, 2], [1, 2]])),
    Case("a bias of B", adapter(lora_bias=True)),
    Case("an adapter for invocations", adapter(alora_invocation_tokens=[1])),
    Case("an adapter of a classifier", adapter(task_type="SEQ_CLS")),
    Case("a rank in words", adapter(r="two")),
    Case("a rank of 10 to the 12", adapter(r=10**12)),
    Case("another rank than its tensors'", adapter(r=4)),
    Case(
        "alpha that is no number",
        adapter(
            lambda a: write(
                a / CONFIG,
                (a / CONFIG).read_text().replace('"lora_alpha": 16', '"lora_alpha": NaN'),
            )
        ),
    ),
    Case("targets the model has not", adapter(target_modules=["c_attn"])),
    Case("LoRA on the embedding", adapter(target_modules=["q_proj", "embed_tokens"])),
    Case("some layers of a strange name", adapter(layers_to_transform=[0], layers_pattern="h")),
    Case("a rank by module that is no number", adapter(rank_pattern={"q_proj": "4"})),
    Case("another rank by module than its tensors'", adapter(rank_pattern={"q_proj": 4})),
    Case("a tokenizer with other ids than the base's", _other_ids),
    Case("a pattern that is none", adapter(target_modules="*_proj")),
    Case("a pattern that matches nothing", adapter(target_modules=r".*c_attn")),
    Case("targets that are numbers", adapter(target_modules=[1])),
    Case("no weights", adapter(lambda a: (a / ADAPTER_WEIGHTS).unlink())),
    Case("weights as a pickle", _pickled_adapter),
    Case("weights cut off", adapter(lambda a: cut(a / ADAPTER_WEIGHTS))),
    Case(
        "a tensor missing",
        adapter(lambda a: tensors(a / ADAPTER_WEIGHTS, _without_first)),
    ),
    Case(
        "a base of another width",
        adapter(
            lambda a: tensors(
                a / ADAPTER_WEIGHTS,
                _wider,
            )
        ),
    ),
    Case("trained on another base", _other_base),
    Case("calibration.json that is no JSON", adapter(lambda a: write(a / "calibration.json", "{"))),
    Case("its rank typed again", _rank_again),
    Case("weights that link out of their folder", adapter(lambda a: link_out(a / ADAPTER_WEIGHTS))),
    Case(
        "no base named, none given",
        _no_base,
        MERGE,
    ),
]
