"""A run that is resumed reads the very same base, adapter and rows, wherever they lie by now."""

import pytest

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import (
    may_have_moved,
    require_same_inputs,
    write_config,
)
from cogcalib_jax.cli.stored import require_same_config
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.evaluate import write_json

INPUTS = {"base": "b", "adapter": "a", "data": {"train": "t", "test": "s"}}


def config(*argv):
    own = ["--data.task", "custom", "--data.path", "rows", "--model.path", "base"]
    return load_config(RunConfig, [*own, *argv], prog="", description="").config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base": "x"}, "model.path = base: the weights of the base differ .* --model.path"),
        ({"adapter": "x"}, "adapter = first: the weights of the adapter differ .* --adapter"),
        ({"data": {"train": "x", "test": "s"}}, "data.path = rows: the rows differ .split train."),
        ({"data": {"train": "t", "test": "x"}}, "data.path = rows: .* .split test. .* --data.path"),
    ],
)
def test_whichever_of_them_differs_is_named_with_its_option(change, told, tmp_path):
    write_json(tmp_path / "inputs.json", INPUTS)
    asked = config("--adapter", "first")
    require_same_inputs(tmp_path, asked, INPUTS)
    with pytest.raises(UserError, match=f"cannot resume: {told}"):
        require_same_inputs(tmp_path, asked, INPUTS | change)


def test_places_count_for_a_caller_without_hashes(tmp_path):
    with pytest.raises(UserError, match="inputs.json: no such file; put it back from a copy"):
        require_same_inputs(tmp_path, config(), INPUTS)
    write_config(tmp_path, config())
    require_same_config(tmp_path, config("--data.path", "moved"), places_too=False)
    with pytest.raises(UserError, match="data.path is 'moved' but it was started with 'rows'"):
        require_same_config(tmp_path, config("--data.path", "moved"))


def test_only_a_resumed_run_is_told_how_a_new_place_is_given(tmp_path):
    for resume, place, told in [
        (True, tmp_path / "gone", "^no; if it was moved, give its new place with --data.path$"),
        (True, tmp_path, "^no$"),
        (False, tmp_path / "gone", "^no$"),
        (True, None, "^no$"),
    ]:
        with pytest.raises(UserError, match=told), may_have_moved(place, "--data.path", resume):
            raise UserError("no")
