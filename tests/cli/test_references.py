"""The commands that ask a base in another form."""

import pytest

from cogcalib_jax.cli.references import other_forms
from cogcalib_jax.data.config import DataConfig

STARTED = "python train.py --config my.yaml --run-dir runs/x --data.prompt=letters --seed 3"


def custom(**settings):
    return DataConfig(task="custom", path="rows.jsonl", **settings)


@pytest.mark.parametrize(
    ("kind", "prompt", "has_chat", "wanted"),
    [
        ("letters", "letters", False, ["cloze"]),
        ("letters", "letters", True, ["cloze", "chat"]),
        ("letters", "chat", True, ["cloze"]),
        ("texts", "cloze", False, ["letters"]),
        ("open", "qa", False, []),
        ("open", "qa", True, ["chat"]),
    ],
)
def test_the_command_is_the_runs_own_with_another_prompt(kind, prompt, has_chat, wanted):
    """In a folder of its own, which the run's would be refused for."""
    commands = other_forms(STARTED, custom(prompt=prompt), kind, has_chat)
    shared = "python train.py --config my.yaml --seed 3 --data.prompt"
    assert commands == [f"{shared} {name}" for name in wanted]


def test_a_protocol_that_fixes_the_prompt_is_left_with_it():
    data = DataConfig(task="openbookqa", protocol="bayesian_peft")
    command = f"{STARTED} --data.protocol bayesian_peft --resume"
    assert other_forms(command, data, "letters", False) == [
        "python train.py --config my.yaml --seed 3 --data.protocol clean --data.prompt cloze"
    ]


def test_the_world_has_one_form():
    assert other_forms("python train.py", DataConfig(), "texts", True) == []
