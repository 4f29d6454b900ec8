"""`calibration.json`: what it says is true of the run, and nothing else of it changes."""

import json
from hashlib import sha256

import numpy as np
import pytest

from cogcalib_jax.hf.adapter import base_hash
from cogcalib_jax.inference.posthoc import fit_temperature
from tests.examples.scored import CHAT, QUESTIONS, scored


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("calibration") / "run", "letters", "sum")


def written(run):
    return json.loads((run.folder / "adapter" / "calibration.json").read_text())


def test_its_pieces_make_up_the_exact_prompts(run):
    template = written(run)["prompt"]
    row, encoded = QUESTIONS[2], run.encoded[2]
    pieces = [
        template["start"],
        template["passage"].format(passage=row["passage"]),
        template["question"].format(question="Where?"),
        template["option"].format(letter="A", choice="here"),
        template["option"].format(letter="B", choice="over there"),
        template["end"],
    ]
    assert "".join(pieces) == encoded.prompt
    assert template["completion"].format(letter="B") == encoded.completions[1]
    prefix = written(run)["prefix_ids"]
    assert tuple(prefix) == encoded.prompt_ids[: len(prefix)] == (0,)


def test_it_says_how_confidences_come_about(run):
    content = written(run)
    assert content["completions"] == "one token"
    assert (content["option_score"], content["max_length"]) == ("sum", 300)
    # BOS and "Answer:", of which this tokenizer knows the bytes.
    assert content["pmi_prefix_ids"][0] == 0 and len(content["pmi_prefix_ids"]) == 1 + len(
        "Answer:"
    )
    assert content["space"] == {"loss": "vocab", "method": "options"}
    assert content["temperature"] == {
        "value": fit_temperature(run.predictions),
        "why_none": None,
        "rows": len(QUESTIONS),
    }


def test_it_says_whether_the_adapter_touches_the_head_and_is_merged(run):
    content = written(run)
    assert (content["adapter_touches_head"], content["merged"]) == (True, False)


def test_its_probe_is_a_calibration_question_with_the_adapters_scores(run):
    probe, ids = written(run)["probe"], [row.prompt_ids for row in run.encoded]
    row = ids.index(tuple(probe["prompt_ids"]))
    encoded = run.encoded[row]
    assert (probe["prompt"], tuple(probe["completions"])) == (encoded.prompt, encoded.completions)
    assert [tuple(one) for one in probe["completion_ids"]] == list(encoded.completion_ids)
    expected = run.predictions.logprobs[row, : len(encoded.completions)]
    np.testing.assert_array_equal(probe["option_logprobs"], expected)
    assert 0.05 <= probe["tolerance"] <= 0.25


def test_it_names_the_base_without_the_way_to_it(run):
    base = written(run)["base"]
    assert (base["name"], base["hash"]) == ("base", base_hash(run.folder / "base"))
    assert str(run.folder) not in json.dumps(written(run))
    assert {"jax", "transformers", "cogcalib-jax"} <= written(run)["versions"].keys()


def test_without_a_mistake_there_is_no_temperature_but_a_reason(run, tmp_path):
    right = run.predictions.probs.argmax(-1).tolist()
    temperature = written(scored(tmp_path / "run", "letters", "sum", right))["temperature"]
    assert temperature["value"] is None
    assert "answered correctly" in temperature["why_none"]


def test_solved_questions_and_the_chat_around_them_are_in_its_pieces(tmp_path):
    made = scored(tmp_path / "run", "chat", "sum", few_shot=1)
    content, row = written(made), made.encoded[0]
    template = content["prompt"]
    solved = "<user>\nIs it {hot}?\nA. yes\nB. no\nAnswer:</>\n<assistant>\nB</>\n"
    assert template["start"] == f"<s>{solved}<user>\n"
    assert row.prompt.startswith(template["start"]) and row.prompt.endswith(template["end"])
    assert (template["completion"], template["stop"]) == ("{letter}", "</>")
    assert content["prefix_ids"] == []
    assert (content["few_shot"], content["protocol"]) == (1, "clean")
    assert content["chat_template_sha256"] == sha256(CHAT.encode()).hexdigest()


def test_without_a_chat_there_is_no_chat_template(run):
    assert written(run)["chat_template_sha256"] is None
