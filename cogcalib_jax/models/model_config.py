"""Which base model, and how it is held and computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cogcalib_jax.configlib import check, often

if TYPE_CHECKING:
    import jax.numpy as jnp
    from jax.sharding import Mesh


@dataclass(frozen=True)
class ModelConfig:
    """The base model, which is never changed."""

    path: str | None = often(None, place=True)
    """Hub id or local folder in Hugging Face layout; unset: the base of the knowledge world"""
    dtype: Literal["auto", "float32", "bfloat16"] = often("auto")
    """of the base's weights and products; auto is bfloat16 on accelerators, float32 on CPU"""
    remat: Literal["none", "layer", "dots"] = "none"
    """what the backward pass computes again to save memory: nothing, layers, all but products"""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """attention kernel: xla everywhere, cudnn on NVIDIA GPUs, splash on TPUs; refused elsewhere"""

    def __post_init__(self) -> None:
        check(self.path != "", "path", "must be a Hub id or a folder")

    def jax_dtype(self, mesh: Mesh) -> jnp.dtype:
        """The dtype on `mesh`'s hardware."""
        # Imported here: a config is read without it.
        import jax.numpy as jnp

        if self.dtype != "auto":
            return jnp.dtype(self.dtype)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
