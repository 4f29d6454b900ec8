"""What the start knows by its answers in another form, asked again by transformers and PEFT."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM  # noqa: E402

from cogcalib_jax.cli.method_run import KNOWN_FILE  # noqa: E402
from tests.cli.test_known_by import asked, base, lines_of, run  # noqa: E402, F401


def test_what_is_stored_is_what_transformers_and_peft_answer(base, run):  # noqa: F811
    """From the start's adapter, for other texts than the run's, in its prompt."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, run / "start_adapter").eval()
    own, other, tokenizer = asked(run)
    stored = lines_of(run / KNOWN_FILE)
    assert {line["data"] for line in stored} == {"train", "calibration", "validation", "test"}
    wanted = []
    for data, rows in other.items():
        for row, asked_before in zip(rows, own[data], strict=True):
            example = row.example
            assert example.question != asked_before.example.question
            assert (row.id, example.choices) == (asked_before.id, asked_before.example.choices)
            prompt = tokenizer(example.question, add_special_tokens=False)["input_ids"]
            first = [
                tokenizer(f"{example.question} {choice}", add_special_tokens=False)["input_ids"]
                for choice in example.choices
            ]
            assert all(ids[:-1] == prompt for ids in first)  # every answer is one word
            with torch.no_grad():
                ids = torch.tensor([[tokenizer.bos_token_id, *prompt]])
                logits = model(ids).logits[0, -1, [ids[-1] for ids in first]].double()
            p = torch.softmax(logits, -1).numpy()
            wanted.append((data, row.id, p.argmax() == example.answer, p.max(), p[example.answer]))
    assert [(x["data"], x["id"], x["correct"]) for x in stored] == [w[:3] for w in wanted]
    np.testing.assert_allclose([x["confidence"] for x in stored], [w[3] for w in wanted], atol=1e-5)
    np.testing.assert_allclose(
        [x["nll"] for x in stored], [-math.log(w[4]) for w in wanted], rtol=1e-4
    )
