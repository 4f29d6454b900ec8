"""Which folders of a comparison an evaluation reads."""

import pytest

from cogcalib_jax.cli.eval_config import method_folders
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import write_config
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError


@pytest.fixture
def comparison(tmp_path):
    """The folder of a comparison of sft and cols, whose best epoch of sft was kept."""
    config = load_config(RunConfig, ["--compare", "sft,cols"], prog="", description="").config
    write_config(tmp_path, config)
    for key, method in config.resolved_methods().items():
        write_config(tmp_path / key, config.for_method(method))
        (tmp_path / key / "adapter").mkdir()
    plain = config.as_plain_finetuning()
    write_config(tmp_path / "sft_best_epoch", plain)
    (tmp_path / "sft_best_epoch" / "adapter").mkdir()
    return tmp_path


def names(folders):
    return [folder.rpartition("/")[2] for folder in folders]


def test_a_comparison_stands_for_its_methods_and_kept_best_epochs(comparison):
    assert names(method_folders(str(comparison))) == ["sft", "sft_best_epoch", "cols"]
    assert method_folders(str(comparison / "cols")) == (str(comparison / "cols"),)


def test_a_best_epoch_is_no_member_of_an_ensemble(comparison):
    """It is the same training as its method, so it would count that one twice."""
    assert names(method_folders(str(comparison), best_epochs=False)) == ["sft", "cols"]


def test_an_unfinished_method_is_named_with_the_command_that_goes_on(comparison):
    (comparison / "cols" / "adapter").rmdir()
    with pytest.raises(UserError, match="cols not finished; continue with python train.py"):
        method_folders(str(comparison))
