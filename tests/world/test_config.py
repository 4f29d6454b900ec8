"""The world's options under `data.world`, as in earlier releases, and under `world`."""

import pytest
import yaml

from cogcalib_jax.cli.eval_config import EvalConfig
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import from_yaml, load_config
from cogcalib_jax.errors import UserError
from cogcalib_jax.settings import to_dict, with_new_names
from cogcalib_jax.training.storage import StoredRun
from cogcalib_jax.world.config import WorldConfig

# Runs of then had no anchors of their own.
OLD_WORLD = {k: v for k, v in to_dict(WorldConfig(entities=1300)).items() if k != "anchor"}
STORED = {"seed": 3, "data": {"task": "world", "world": OLD_WORLD}}


def load(*argv, cls=RunConfig):
    return load_config(cls, argv, prog="train.py", description="").config


@pytest.mark.parametrize("cls", [RunConfig, EvalConfig])
def test_the_command_line_takes_the_old_names(cls, capsys):
    base = ("--model.path", "base")
    assert load("--data.world.entities", "1300", *base, cls=cls).world.entities == 1300
    note = "note: command line: data.world.entities is now world.entities (read as 1300)"
    error = capsys.readouterr().err
    assert error.startswith(note) and error.count("\n") == 1


def test_a_preset_may_hold_the_old_section(tmp_path, capsys):
    file = tmp_path / "p.yaml"
    file.write_text("data:\n  task: world\n  world:\n    entities: 1300\n")
    assert load("--config", str(file)).world.entities == 1300
    assert "p.yaml:4: data.world.entities is now world.entities" in capsys.readouterr().err
    file.write_text("data:\n  world:\n    people: 3\n")
    with pytest.raises(UserError, match="p.yaml:3: unknown key data.world.people"):
        load("--config", str(file))


def test_stored_configs_keep_their_world():
    renamed = with_new_names(STORED)
    assert renamed == {"seed": 3, "data": {"task": "world"}, "world": STORED["data"]["world"]}
    for cls in (RunConfig, StoredRun):
        config = from_yaml(cls, yaml.safe_dump(STORED), "config.yaml")
        assert config.world == WorldConfig(entities=1300)
