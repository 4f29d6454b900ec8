"""Adapters as people publish them: read, trained, written and merged as PEFT does it."""

import warnings
from typing import Any

import pytest

pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import numpy as np  # noqa: E402

from cogcalib_jax.errors import UserError  # noqa: E402
from cogcalib_jax.hf.adapter_config import read_lora_config  # noqa: E402
from cogcalib_jax.models.config import LAYER_PROJECTIONS  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402
from tests.parity.adapter_kinds import compare, peft_adapter  # noqa: E402

BASES = ("llama_biases_linear", "qwen3_tied")
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    "rank and alpha by module": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 3},
        "alpha_pattern": {r"model.layers.2.self_attn.v_proj": 9.0},
    },
    "a regular expression": {
        "target_modules": r".*\.layers\.(0|2)\.(self_attn\.q_proj|mlp\.up_proj)",
        "fan_in_fan_out": True,  # of no effect on linear layers, for PEFT neither
    },
    "all linear, but": {
        "target_modules": "all-linear",
        "exclude_modules": r".*down_proj",
        "rank_pattern": {r"layers\.[01]\..*k_proj": 5},
        "use_rslora": True,
    },
    "layers by number": {
        "target_modules": ["q_proj", "lm_head"],
        "layers_to_transform": [1, 2],
        "layers_pattern": "layers",
    },
    "dora": {"use_dora": True, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    "dora by layer": {
        "use_dora": True,
        "target_modules": ["v_proj", "up_proj"],
        "exclude_modules": ["layers.1.self_attn.v_proj"],
        "rank_pattern": {"up_proj": 3},
    },
    "embedding and head": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "embedding alone": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 41, 7]},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two models and their folders: with biases, and with tied embeddings."""
    made = []
    for name in BASES:
        folder = tmp_path_factory.mktemp(name)
        torch_model(FAMILIES[name]).save_pretrained(folder)
        made.append((FAMILIES[name], folder))
    return made


# The kinds that touch the most code, on one base each; all others are slow.
QUICK = {("rank and alpha by module", 0), ("dora by layer", 0), ("tokens", 1)}


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        pytest.param(kind, base, marks=[] if (kind, base) in QUICK else pytest.mark.slow)
        for kind in KINDS
        for base in (0, 1)
    ],
)
def test_an_adapter_of_this_kind_is_that_of_peft(bases, kind, base, tmp_path):
    compare(*bases[base], tmp_path, {"r": 2, "lora_alpha": 6} | KINDS[kind])


def random_settings(seed: int) -> dict[str, Any]:
    """Settings that may stand together in PEFT, at random."""
    rng = np.random.default_rng(seed)

    def maybe(share: float = 0.4) -> bool:
        return bool(rng.random() < share)

    def some(names: tuple[str, ...]) -> list[str]:
        return sorted(rng.choice(names, rng.integers(1, len(names)), replace=False).tolist())

    picked = some(LAYER_PROJECTIONS)
    in_layers = rf".*\.({'|'.join(map(str, some(('0', '1', '2'))))})\..*({'|'.join(picked)})"
    settings: dict[str, Any] = {
        "r": int(rng.integers(1, 5)),
        "lora_alpha": int(rng.integers(1, 8)),
        "use_rslora": maybe(),
        "use_dora": maybe(),
        "target_modules": [picked, in_layers, "all-linear"][rng.integers(3)],
    }
    if settings["target_modules"] is picked:
        if maybe():
            settings["layers_to_transform"] = sorted(map(int, some(("0", "1", "2"))))
        if maybe():
            settings["target_modules"] = [*picked, "lm_head"]
    if maybe():
        settings["exclude_modules"] = [r".*\.1\.self_attn\..*", ["layers.0.self_attn.q_proj"]][
            rng.integers(2)
        ]
    if maybe():
        # The first pattern that matches counts, and PEFT sorts them when it saves: it cannot load
        # what it wrote if patterns that overlap were given in another order.
        settings["rank_pattern"] = dict(
            sorted({rng.choice(picked): 5, r"layers\.2\..*": 3}.items())
        )
    if maybe():
        settings["alpha_pattern"] = {r"(layers\.0\..*|lm_head)": 3.5}
    head = "lm_head" in settings["target_modules"]
    if maybe(0.3):
        settings["modules_to_save"] = (
            ["embed_tokens"] if head else some(("embed_tokens", "lm_head"))
        )
    elif maybe(0.3) and not head:
        settings["trainable_token_indices"] = [5, 9, 60]
    return settings


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 40))]
)
def test_settings_at_random_give_what_peft_gives(bases, seed, tmp_path):
    compare(*bases[seed % 2], tmp_path, random_settings(seed), seed)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_refused_by_name(bases, start, tmp_path):
    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": start}
    peft_adapter(bases[0][0], tmp_path, settings)
    with pytest.raises(UserError, match=f"'{start}' changes the base's own weights"):
        read_lora_config(tmp_path)


@pytest.mark.slow
def test_a_pissa_adapter_that_peft_converted_is_read(bases, tmp_path):
    """peft/docs: path_initial_model_for_weight_conversion makes it an ordinary adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(
            r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(torch_model(bases[0][0]), config)
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = "pissa"
        model.save_pretrained(
            tmp_path / "end", path_initial_model_for_weight_conversion=tmp_path / "start"
        )
    assert read_lora_config(tmp_path / "end").r == 4
