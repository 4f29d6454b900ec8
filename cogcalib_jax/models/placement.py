"""What a mesh means for a model: the meshes that cannot cut it, and in words how others do."""

from __future__ import annotations

from jax.sharding import Mesh

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.sharding import nearest_mesh


def require_cut(config: DecoderConfig, mesh: Mesh) -> None:
    """Refuse a mesh whose `fsdp` or `tensor` cuts nothing, with the nearest that works.

    Attention heads and the MLP must divide by `tensor` and the width by `fsdp`: what does not is
    kept whole, and every device would compute or store all of it without a word. Key-value heads
    and the vocabulary may be left whole (`placement_notes` says so).
    """
    cuts = (
        ("tensor", "attention heads", config.num_heads),
        ("tensor", "columns of the MLP", config.intermediate_size),
        ("fsdp", "columns of the weights", config.hidden_size),
    )

    def works(fsdp: int, tensor: int) -> bool:
        sizes = {"fsdp": fsdp, "tensor": tensor}
        return all(units % sizes[axis] == 0 for axis, _, units in cuts)

    for axis, what, units in cuts:
        if units % mesh.shape[axis]:
            wanted = tuple(mesh.shape.values())
            raise UserError(
                f"mesh.{axis} = {mesh.shape[axis]}: cannot cut the model's {units:,} {what} evenly;"
                f" the nearest mesh that works: {nearest_mesh(mesh.size, wanted, works)}"
            )


def placement_notes(config: DecoderConfig, mesh: Mesh) -> list[str]:
    """How the output head works on `mesh`, and which axes it leaves whole on every device."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    notes = []
    if tensor > 1 and config.vocab_size % tensor == 0:
        notes.append(
            f"head: vocabulary cut over tensor {tensor}; of its logits only statistics of rows"
            " travel"
        )
    elif fsdp > 1:
        notes.append(f"head: gathered once a pass over fsdp {fsdp}")
    if config.vocab_size % tensor:
        notes.append(
            f"head: a vocabulary of {config.vocab_size:,} cannot be cut over tensor {tensor}; every"
            " device holds all of it and computes all logits of its rows"
        )
    if config.kv_heads % tensor:
        notes.append(
            f"attention: {config.kv_heads} key-value heads cannot be cut over tensor {tensor};"
            " every device holds and computes all of them"
        )
    return notes
