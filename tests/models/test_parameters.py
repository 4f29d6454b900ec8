"""Meshes a model cannot be cut for, and what is said of the others."""

from dataclasses import replace

import jax
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import placement_notes, require_cut, require_projections
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import SMALL

MODEL = replace(SMALL, num_heads=12, kv_heads=2, intermediate_size=24, vocab_size=40)


def mesh(data=1, fsdp=1, tensor=1):
    return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])


@pytest.mark.parametrize(
    ("shape", "reason", "nearest"),
    [
        # 12 heads can be cut in 4, and 6 devices only in 1, 2, 3 or 6.
        ((1, 1, 8), "tensor = 8: .* 12 attention heads", "data 2 --mesh.fsdp 1 --mesh.tensor 4"),
        ((1, 3, 2), "fsdp = 3: .* 16 columns", "data 1 --mesh.fsdp 2 --mesh.tensor 3"),
        ((1, 5, 1), "fsdp = 5: .* 16 columns", "data 5 --mesh.fsdp 1 --mesh.tensor 1"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_nearest_mesh_that_works(shape, reason, nearest):
    with pytest.raises(UserError, match=f"{reason} .*--mesh.{nearest}$"):
        require_cut(MODEL, mesh(*shape))


def test_fused_projections_are_cut_over_fsdp_alone():
    fused = replace(MODEL, fused=True)
    require_cut(fused, mesh(fsdp=8))
    with pytest.raises(UserError, match=r"^mesh.tensor is 2; expected 1 .*\(qkv_proj"):
        require_cut(fused, mesh(tensor=2))


@pytest.mark.parametrize(("fused", "target"), [(True, "q_proj"), (False, "qkv_proj")])
def test_targets_of_an_adapter_are_projections_of_the_model(fused, target):
    config = replace(MODEL, fused=fused)
    require_projections(config, LoraConfig(target_modules=("all-linear", "lm_head")))
    require_projections(config, LoraConfig(target_modules=config.projections))
    with pytest.raises(UserError, match=f"^lora.target_modules is {target}; .* has no {target}"):
        require_projections(config, LoraConfig(target_modules=(target,)))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_what_can_be_cut_is_not_refused(shape):
    require_cut(MODEL, mesh(*shape))


def test_one_device_needs_no_words():
    assert placement_notes(MODEL, mesh()) == []


def test_the_head_is_gathered_or_cut():
    assert placement_notes(MODEL, mesh(fsdp=8)) == ["head: gathered once a pass over fsdp 8"]
    (note,) = placement_notes(MODEL, mesh(fsdp=2, tensor=2))
    assert "vocabulary cut over tensor 2" in note


def test_axes_that_stay_whole_are_named():
    odd = replace(MODEL, vocab_size=41)
    notes = placement_notes(odd, mesh(fsdp=2, tensor=4))
    assert [note.split(";")[0] for note in notes] == [
        "head: gathered once a pass over fsdp 2",
        "head: a vocabulary of 41 cannot be cut over tensor 4",
        "attention: 2 key-value heads cannot be cut over tensor 4",
    ]
