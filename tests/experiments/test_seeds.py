"""Which runs a comparison over seeds asks for; the runs themselves are tested elsewhere."""

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.experiments import seeds
from cogcalib_jax.experiments.seeds import SeedsConfig, run_seeds
from cogcalib_jax.runs.folder import write_config


@pytest.fixture
def asked(monkeypatch):
    """Configs of the runs that are trained; each leaves the folder of a finished comparison."""
    configs = []

    def train_run(config, name, argv):
        configs.append(config)
        folder = seeds.Path(config.run_dir)
        write_config(folder, config)
        (folder / "comparison.json").write_text("{}")
        return folder

    monkeypatch.setattr(seeds, "train_run", train_run)
    monkeypatch.setattr(seeds, "write_report", lambda folder: "")
    return configs


def test_a_comparison_may_name_other_methods_than_the_presets(asked, tmp_path):
    compare = ("sft", "mc_dropout", "ensemble")
    run_seeds(SeedsConfig(seeds=(3, 4), folder=str(tmp_path), compare=compare))
    assert [(config.seed, config.compare) for config in asked] == [(3, compare), (4, compare)]
    run_seeds(SeedsConfig(seeds=(3, 4), folder=str(tmp_path / "preset")))
    assert asked[-1].compare == ("sft", "ls", "cols")


def test_finished_seeds_are_not_run_again_and_belong_to_this_comparison(asked, tmp_path):
    config = SeedsConfig(seeds=(3, 4), folder=str(tmp_path), compare=("sft", "ensemble"))
    run_seeds(config)
    run_seeds(config)
    assert len(asked) == 2
    with pytest.raises(UserError, match="compare is .* but it was started with"):
        run_seeds(SeedsConfig(seeds=(3, 4), folder=str(tmp_path)))
