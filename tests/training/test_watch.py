"""What a study writes down while a method trains: with every validation, and whole after a kill."""

import json

import numpy as np
import pytest

from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.training.checkpoint import Checkpoints
from cogcalib_jax.training.finetune import Watch, finetune, style_phase
from cogcalib_jax.training.storage import Journal
from tests.training.small_trainer import Killed, lora, splits, trainer

SFT = MethodConfig(name="sft").resolve()


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    return folder, style_phase(trainer(), lora(), folder)


def watched(style, folder):
    """Five updates, validations after 3 and 5; steps count on from the three of style."""
    rows = splits()["train"][:4]

    def records(state, beliefs):
        yield {"nll": trainer().belief(state, rows).nll.tolist()}
        yield {"second": True}

    journal = Journal(folder / "watched.jsonl")
    finetune(trainer(), SFT, style[1], style[0], folder, Watch(journal, records))
    return [json.loads(line) for line in journal.path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(style, tmp_path_factory):
    return watched(style, tmp_path_factory.mktemp("whole"))


def test_it_is_asked_before_the_first_update_and_at_every_validation(style, whole):
    assert [line["step"] for line in whole] == [3, 3, 6, 6, 8, 8]
    start = trainer().belief(style[1], splits()["train"][:4]).nll
    np.testing.assert_allclose(whole[0]["nll"], start, rtol=1e-6)
    assert np.mean(whole[4]["nll"]) < np.mean(start)  # these rows are trained on


@pytest.mark.parametrize("at", [2, 4])
def test_a_killed_run_leaves_the_same_lines(style, whole, tmp_path, monkeypatch, at):
    save = Checkpoints.save

    def killed(self, step, *args, **saved_as):
        save(self, step, *args, **saved_as)
        if step == at:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", killed)
        watched(style, tmp_path)
    # As if killed between a validation and its checkpoint: the line is to be written again.
    with (tmp_path / "watched.jsonl").open("a") as file:
        file.write('{"step": 8, "nll": []}\n')
    assert watched(style, tmp_path) == whole
