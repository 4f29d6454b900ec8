"""What a merge writes is what transformers reads and PEFT computes."""

import warnings

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import json  # noqa: E402

import numpy as np  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from cogcalib_jax.errors import run_main  # noqa: E402
from cogcalib_jax.models.lora import LORA_TARGETS  # noqa: E402
from cogcalib_jax.weights.hf_weights import load_decoder  # noqa: E402
from cogcalib_jax.weights.merge import main  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model, torch_peft_model  # noqa: E402
from tests.models.small import forward, one_device  # noqa: E402

TOKENS = np.random.RandomState(5).randint(0, 64, (2, 20))
EVERYWHERE = tuple(name for name in LORA_TARGETS if name != "all-linear")


def torch_logits(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_pefts_logits_for_the_merged_folder(family, tmp_path):
    raw = FAMILIES[family]
    torch_model(raw).save_pretrained(tmp_path / "base")
    adapted = torch_peft_model(raw, EVERYWHERE)
    adapted.save_pretrained(tmp_path / "adapter")
    command = ["--model.path", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")]
    out = tmp_path / "out"
    assert run_main(main, [*command, "--out", str(out), "--max-shard-gb", "3e-5"]) == 0

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as those of weights missing or newly initialised
        merged, report = AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, output_loading_info=True
        )
    assert not any(report.values()), report
    expected = torch_logits(adapted)
    assert np.abs(torch_logits(merged) - expected).max() < 1e-4
    ours = forward(load_decoder(out, mesh=one_device()), TOKENS.astype(np.int32))[1]
    assert np.abs(ours - expected).max() < 1e-4
    with adapted.disable_adapter():
        assert np.abs(torch_logits(adapted) - expected).max() > 1e-2
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
