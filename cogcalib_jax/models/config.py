"""What a decoder is made of: the flags that tell the families apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cogcalib_jax.configlib import check
from cogcalib_jax.models.rope import RopeConfig


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder-only transformer; hashable, so that it can be static."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    """the family, as Hugging Face names it: only names and defaults follow from it, no code"""
    vocab_size: int
    """rows of the embedding"""
    hidden_size: int
    """width of the residual stream"""
    intermediate_size: int
    """width of the SwiGLU MLP"""
    num_layers: int
    """transformer blocks"""
    num_heads: int
    """query heads"""
    kv_heads: int
    """key-value heads, each shared by num_heads / kv_heads query heads"""
    head_dim: int
    """width of one head; need not be hidden_size / num_heads"""
    rms_norm_eps: float = 1e-5
    """added to the mean square inside the norms"""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """rotary position embedding"""
    tie_word_embeddings: bool = False
    """whether the head is the embedding itself"""
    qkv_bias: bool = False
    """biases on the query, key and value projections"""
    out_bias: bool = False
    """bias on the attention's output projection"""
    mlp_bias: bool = False
    """biases on the MLP's projections"""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation"""
    sliding_windows: tuple[int, ...] = ()
    """per layer: how many positions (its own included) a token sees, 0 = all; () = all 0"""
    max_position_embeddings: int = 2048
    """context length"""
    initializer_range: float = 0.02
    """standard deviation of random weights"""
    bos_token_id: int | None = None
    """token a text begins with, where the model has one"""
    eos_token_id: int | tuple[int, ...] | None = None
    """token or tokens at which generation stops"""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "kv_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            check(getattr(self, name) >= 1, name, "must be an integer of at least 1")
        check(
            self.num_heads % self.kv_heads == 0,
            "kv_heads",
            f"must divide the number of query heads ({self.num_heads})",
        )
        check(self.head_dim % 2 == 0, "head_dim", "must be even (pairs are rotated)")
        windows = self.sliding_windows or (0,) * self.num_layers
        object.__setattr__(self, "sliding_windows", tuple(windows))
        check(
            len(windows) == self.num_layers and all(window >= 0 for window in windows),
            "sliding_windows",
            f"must hold a length of at least 0 for each of the {self.num_layers} layers",
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens at which generation stops."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id
