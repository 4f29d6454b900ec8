"""An adapter between two others: in PEFT its weights are the weighted sum of theirs."""

import json
import warnings

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import numpy as np  # noqa: E402

from cogcalib_jax.errors import UserError  # noqa: E402
from cogcalib_jax.hf.adapter_config import read_lora_config  # noqa: E402
from cogcalib_jax.hf.stacking import main, stack_adapters  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402

FORMS = {
    "one form": ({}, {}),
    "another rank and scale": ({"r": 2, "lora_alpha": 9}, {}),
    "other modules": ({"target_modules": ["q_proj", "lm_head"]}, {}),
    "rank-stabilised": ({"use_rslora": True}, {"r": 4}),
    "a rank of its own": ({"rank_pattern": {"q_proj": 5}}, {"alpha_pattern": {"down_proj": 3}}),
    "some layers": ({"layers_to_transform": [0]}, {"target_modules": ["up_proj"]}),
}


def made(folder, seed, **settings):
    """An adapter that PEFT wrote, with B away from zero."""
    form = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | settings
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **form)
        peft.get_peft_model(torch_model(FAMILIES["llama3"]), config).save_pretrained(folder)
    return folder


def deltas(folder):
    """Module -> what PEFT adds to its weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(torch_model(FAMILIES["llama3"]), folder)
    return {
        name: module.get_delta_weight("default").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A
    }


@pytest.mark.parametrize(("first", "last"), FORMS.values(), ids=FORMS)
def test_a_stacked_adapter_is_the_weighted_sum_in_peft(first, last, tmp_path):
    start, end = made(tmp_path / "s", 1, **first), made(tmp_path / "e", 2, **last)
    stack_adapters(start, end, 0.7, tmp_path / "between")
    a, b, found = (deltas(folder) for folder in (start, end, tmp_path / "between"))
    ranks = [read_lora_config(folder).r for folder in (start, end, tmp_path / "between")]
    widest = 5 if "rank_pattern" in first else ranks[0]
    assert widest + ranks[1] == ranks[2]
    assert set(found) == set(a) | set(b)
    for name, delta in found.items():
        wanted = 0.3 * a.get(name, 0) + 0.7 * b.get(name, 0)
        np.testing.assert_allclose(delta, wanted, atol=1e-5)
        assert np.abs(delta).max() > 1e-2


def test_the_command_takes_the_bare_base_for_a_start(tmp_path):
    end = made(tmp_path / "e", 2)
    main(["--adapter", str(end), "--share", "0.25", "--out", str(tmp_path / "quarter")])
    found, whole = deltas(tmp_path / "quarter"), deltas(end)
    for name, delta in found.items():
        np.testing.assert_allclose(delta, 0.25 * whole[name], atol=1e-5)
    assert read_lora_config(tmp_path / "quarter").r == read_lora_config(end).r


def test_mistakes_leave_nothing_behind(tmp_path):
    start, end = made(tmp_path / "s", 1), made(tmp_path / "e", 2)
    dora = made(tmp_path / "d", 3, use_dora=True)
    with pytest.raises(UserError, match="is DoRA or trains embeddings"):
        stack_adapters(start, dora, 0.5, tmp_path / "out")
    with pytest.raises(UserError, match="share is 1.5; expected a number from 0 to 1"):
        stack_adapters(start, end, 1.5, tmp_path / "out")
    for number, folder in enumerate((start, end)):
        stored = {"base": {"name": "b", "hash": str(number)}}
        (folder / "calibration.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="were trained on different bases; expected one"):
        stack_adapters(start, end, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
