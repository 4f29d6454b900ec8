"""Training, the dry run and the benchmark of a step begin in one place."""

import jax
import pytest
from flax import nnx

from cogcalib_jax.bench import train_step as bench_train
from cogcalib_jax.cli.dry_run import prepare_abstract
from cogcalib_jax.cli.prepare import prepare
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError
from cogcalib_jax.training.finetune import SFT
from cogcalib_jax.training.loop import train_stream
from tests.cli.small_base import arguments, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def config(base, run_dir, *more, cls=RunConfig):
    return load_config(cls, arguments(base, run_dir, *more), prog="", description="").config


def test_with_shapes_it_is_the_run_that_weights_make(base, tmp_path):
    asked = config(base, tmp_path / "run", "--compare", "sft,cols")
    notes = ([], [])
    real = prepare(asked, note=notes[0].append)
    outline = prepare(asked, abstract=True, note=notes[1].append)
    assert notes[0] == notes[1]
    assert list(real.splits) == ["style", "train", "calibration", "validation", "test"]
    for name in ("splits", "sets", "hashes", "config"):
        assert getattr(real, name) == getattr(outline, name)
    assert real.base.config == outline.base.config and real.base.place == outline.base.place
    assert real.trainer.trainable.identity == outline.trainer.trainable.identity
    assert (real.trainer.style_steps, real.trainer.total_steps) == (2, 6)
    assert (outline.trainer.style_steps, outline.trainer.total_steps) == (2, 6)
    leaves = [jax.tree.leaves(nnx.to_pure_dict(one.assembled.lora)) for one in (real, outline)]
    for array, shape in zip(*leaves, strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (array.shape, array.dtype, array.sharding) == (
            shape.shape,
            shape.dtype,
            shape.sharding,
        )
    train = real.splits["train"]
    streams = [train_stream(one.trainer.trainable, train, 6, SFT) for one in (real, outline)]
    for step in range(6):
        assert streams[0].padded_length(step) == streams[1].padded_length(step)
    assert not (tmp_path / "run").exists()


def test_whoever_begins_there_refuses_the_same(base, tmp_path):
    term = "mdca"
    asked = config(base, tmp_path / "run", "--compare", f"sft,{term}")
    bench = config(
        base, tmp_path / "run", "--methods", f"sft,{term}", cls=bench_train.TrainBenchConfig
    )
    for begin in (
        lambda: prepare(asked),
        lambda: prepare_abstract(asked, lambda note: None),
        lambda: bench_train.measure(bench),
    ):
        with pytest.raises(UserError, match="method.space is vocab; expected options for term"):
            begin()


def test_a_share_of_known_rows_leaves_style_adaptation_as_long_as_it_is(base, tmp_path):
    """It runs before rows are left out, in training and so in a dry run."""
    five = ("--training.style-steps", "none", "--training.epochs", "40", "--method.name", "sft")
    all_rows = prepare_abstract(config(base, tmp_path / "run", *five), lambda note: None)
    share = ("--composition.known-share", "0.5", "--composition.by", "world")
    fewer = prepare_abstract(config(base, tmp_path / "run", *five, *share), lambda note: None)
    assert len(fewer.splits["train"]) < len(all_rows.splits["train"])
    assert fewer.trainer.total_steps < all_rows.trainer.total_steps
    assert fewer.trainer.style_steps == all_rows.trainer.style_steps == 6
