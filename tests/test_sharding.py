import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.sharding import (
    MeshConfig,
    batch_parts,
    local_part,
    make_mesh,
    named_sharding,
    replicate,
    shard_batch,
)


def test_data_takes_the_devices_that_are_left():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "expert": 1}
    assert batch_parts(mesh) == 4


@pytest.mark.parametrize(
    ("config", "nearest"),
    [
        (MeshConfig(3, 2), "--mesh.data 4 --mesh.fsdp 2 --mesh.tensor 1"),
        (MeshConfig(fsdp=3), "--mesh.data 2 --mesh.fsdp 4 --mesh.tensor 1"),
        (MeshConfig(tensor=16), "--mesh.data 1 --mesh.fsdp 1 --mesh.tensor 8"),
        (MeshConfig(1, 1, 1), "--mesh.data 8 --mesh.fsdp 1 --mesh.tensor 1"),
        (MeshConfig(1, 1, 1, 3), "--mesh.data 2 --mesh.fsdp 1 --mesh.tensor 1 --mesh.expert 4"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does(config, nearest):
    with pytest.raises(UserError, match=f"8 device.*{nearest}$"):
        make_mesh(config)


@pytest.mark.parametrize("field", [{"data": 0}, {"fsdp": 0}, {"tensor": -1}, {"expert": 0}])
def test_sizes_out_of_range_are_refused_by_field(field):
    with pytest.raises(FieldError, match=next(iter(field))):
        MeshConfig(**field)


def test_axes_go_where_the_rules_say():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    sharding = named_sharding(mesh, ("layers", "heads", "embed"), (3, 4, 16))
    assert sharding.spec == PartitionSpec(None, ("tensor",), ("fsdp",))
    batch = PartitionSpec(("data", "fsdp", "expert"), None)
    assert named_sharding(mesh, ("batch", None)).spec == batch


def test_an_axis_that_cannot_be_cut_evenly_is_kept_whole():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert named_sharding(mesh, ("vocab", "embed"), (1153, 128)).spec[0] is None
    assert named_sharding(mesh, ("batch", None), (2, 5)).spec[0] is None


def test_one_mesh_axis_cannot_serve_two_axes_of_an_array():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with pytest.raises(ValueError, match="two uses"):
        named_sharding(mesh, ("heads", "mlp"))


@pytest.mark.parametrize("batch_axis", [0, 1])
def test_a_batch_keeps_its_values_and_is_spread_over_data_and_fsdp(batch_axis):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    batch = {"ids": np.arange(64).reshape(8, 8), "options": np.zeros((8, 8, 0), np.int32)}
    placed = shard_batch(mesh, batch, batch_axis)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
    shapes = {shard.data.shape for shard in placed["ids"].addressable_shards}
    assert shapes == {(2, 8) if batch_axis == 0 else (8, 2)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))


@pytest.mark.parametrize(
    ("size", "nearest"), [(12, "8 and 16"), (6, "8"), (1, "8"), (17, "16 and 24")]
)
def test_a_batch_that_cannot_be_spread_says_which_sizes_would_do(size, nearest):
    with pytest.raises(UserError, match=f"batch = {size}: .* 8 devices .*can: {nearest}$"):
        shard_batch(make_mesh(MeshConfig()), {"ids": np.zeros((size, 3))})


def test_one_process_holds_a_whole_batch():
    part = local_part(make_mesh(MeshConfig(2, 2, 2)), 12)
    assert part.size == 12
    np.testing.assert_array_equal(part.rows, np.arange(12))


def test_a_replicated_value_is_whole_on_every_device():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    for value in (np.float32(np.nan), np.arange(6.0)):
        placed = replicate(mesh, value)
        assert placed.is_fully_replicated and len(placed.addressable_shards) == 8
        np.testing.assert_array_equal(placed, value)
