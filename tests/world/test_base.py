"""The world's base: learns its corpus, is a checkpoint like any other, and is made once."""

import json
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.world import base as world_base
from cogcalib_jax.world.base import (
    base_folder,
    corpus_batches,
    ensure_base,
    pretrain_base,
)
from cogcalib_jax.world.config import RECIPE, PretrainConfig, WorldConfig
from cogcalib_jax.world.corpus import build_tokenizer, build_world

WORLD = WorldConfig(
    entities=12,
    exposures=(0, 40),
    exposure_probabilities=(0.5, 0.5),
    train=8,
    test=8,
    validation=8,
    calibration=8,
    style=8,
)
TINY = PretrainConfig(hidden_size=32, intermediate_size=64)


@pytest.fixture(scope="module", autouse=True)
def fast():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"num_layers": 1, "learning_rate": 2e-2, "warmup_steps": 5}.items():
            patch.setitem(RECIPE, name, value)
        yield


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(cache):
    return ensure_base(WORLD, replace(TINY, cache_dir=str(cache)), seed=1)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def decoder(base, mesh):
    return load_decoder(base, lora=None, dtype=jnp.float32, mesh=mesh, seed=0)


def test_pretraining_learns_and_its_checkpoint_loads(decoder):
    """Nats per token over some of the corpus, without this project's batches."""
    world = build_world(WORLD, seed=1)
    rows = [row.ids for row in build_tokenizer(WORLD).encode_batch(list(world.corpus[:64]))]
    ids = np.zeros((64, max(map(len, rows))), np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    logits = np.asarray(decoder.logits(decoder.hidden_states(jnp.array(ids))))
    nll = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    mean = np.mean([nll[i, t] for i, row in enumerate(rows) for t in range(len(row) - 1)])
    assert mean < 0.5 * np.log(decoder.config.vocab_size)


def test_a_base_is_the_same_bytes_when_made_again(base, mesh, tmp_path):
    again = pretrain_base(build_world(WORLD, 1), TINY, 1, mesh, tmp_path / "again")
    assert files(again) == files(base)


def test_a_cached_base_is_reused(base, cache, monkeypatch):
    def refuse(*args):
        raise AssertionError("pretrained again")

    monkeypatch.setattr(world_base, "pretrain_base", refuse)
    assert ensure_base(WORLD, replace(TINY, cache_dir=str(cache)), 1) == base
    monkeypatch.setenv("COGCALIB_CACHE", str(cache))
    assert ensure_base(WORLD, TINY, 1) == base


def test_whatever_changes_the_weights_changes_the_folder(mesh):
    world = build_world(WORLD, 1)
    folders = {
        base_folder(world, TINY, 1, mesh),
        base_folder(world, TINY, 2, mesh),
        base_folder(build_world(WORLD, 2), TINY, 1, mesh),
        base_folder(build_world(replace(WORLD, question_rows=2), 1), TINY, 1, mesh),
        base_folder(world, replace(TINY, hidden_size=40), 1, mesh),
    }
    assert len(folders) == 5
    elsewhere = base_folder(world, replace(TINY, cache_dir="/elsewhere"), 1, mesh)
    assert elsewhere.name == base_folder(world, TINY, 1, mesh).name


def test_of_two_processes_the_second_keeps_the_firsts_base(decoder, mesh, tmp_path, monkeypatch):
    made = tmp_path / "raced"

    def finish_after_another(*args):
        made.mkdir()
        (made / "model.safetensors").write_bytes(b"the first one's")
        return decoder, 0.0

    monkeypatch.setattr(world_base, "_train", finish_after_another)
    assert pretrain_base(build_world(WORLD, 1), TINY, 1, mesh, made) == made
    assert files(made) == {"model.safetensors": b"the first one's"}
    assert list(tmp_path.iterdir()) == [made]


def test_an_interrupted_pretraining_leaves_nothing(mesh, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(world_base, "_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain_base(build_world(WORLD, 1), TINY, 1, mesh, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_cache_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    config = replace(TINY, cache_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match="cache_dir"):
        ensure_base(WORLD, config, 1)


def test_batches_hold_every_corpus_row_once_in_few_shapes():
    tokenizer = build_tokenizer(WORLD)
    corpus = [f"{row} </s>" for row in build_world(WORLD, 1).corpus]
    rows = [row.ids for row in tokenizer.encode_batch(corpus)]
    batches = list(corpus_batches(rows, 32))
    seen = Counter()
    for batch in batches:
        for ids, targets, mask in zip(*batch, strict=True):
            length = int(mask.sum())
            assert mask[:length].all()
            if length:
                assert (ids[1:length] == targets[: length - 1]).all()
                seen[(ids[0], *targets[:length])] += 1
    assert seen == Counter(map(tuple, rows))
    shapes = Counter(batch.input_ids.shape for batch in batches)
    assert set(shapes) == {(32, 8), (32, 12)}
    assert len(batches) <= len(rows) / 32 + len(shapes)


def test_padding_does_not_change_the_loss():
    rows = [[1, 5, 6, 7, 2], [1, 5, 2]]
    (batch,) = corpus_batches(rows, 4)
    logits = np.random.default_rng(0).normal(size=(4, 4, 9))
    nll = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), batch.targets)
    expected = [nll[i, t] for i, row in enumerate(rows) for t in range(len(row) - 1)]
    np.testing.assert_allclose(np.sum(nll * batch.mask), np.sum(expected), rtol=1e-5)
    assert batch.mask.sum() == len(expected)


def test_the_folder_says_how_the_base_was_made(base):
    record = json.loads((base / "pretraining.json").read_text())
    assert record["world"]["seed"] == record["seed"] == 1
    assert record["pretrain"]["hidden_size"] == 32
    assert record["corpus_rows"] == len(build_world(WORLD, 1).corpus)
    assert 0 < record["last_loss"] < np.log(129)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 12), ("intermediate_size", 0)])
def test_impossible_bases_are_refused_by_field(field, value):
    with pytest.raises(FieldError, match=field):
        replace(PretrainConfig(), **{field: value})
