"""A decoder small enough to compile in a second, with every flag that changes the computation."""

import zlib
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.models.config import DecoderConfig, RopeConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import abstract_decoder, map_parameters
from cogcalib_jax.sharding import MeshConfig, make_mesh

SMALL = DecoderConfig(
    model_type="qwen3",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    kv_heads=2,
    head_dim=8,
    qkv_bias=True,
    out_bias=True,
    qk_norm="head",
    sliding_windows=(0, 3),
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)
# The other values of flags. No family has all of them.
OTHER = replace(
    SMALL,
    activation="gelu_tanh",
    norms="sandwich",
    norm_offset=0.5,
    wide_norms=True,
    qk_norm="projection",
    attention_scale=0.5,
    attention_softcap=1.5,
    embed_scale=3.0,
    residual_scale=0.7,
    logits_divisor=1.3,
    final_softcap=2.0,
)


# Fused projections, RoPE on half of each head, and queries that grow with their position.
FUSED = replace(
    SMALL,
    qkv_bias=False,
    qk_norm="none",
    fused=True,
    ropes=(RopeConfig(fraction=0.5, query_beta=0.5, original_max_position_embeddings=4),),
)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def small_decoder(
    config: DecoderConfig = SMALL,
    *,
    lora: LoraConfig | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    **options: Any,
) -> Decoder:
    """Weights drawn by numpy, which costs no compilation. LoRA's B is drawn too: zero, it would
    leave A without effect and without gradient."""
    graphdef, state = abstract_decoder(config, lora, dtype, mesh or one_device(), **options)

    def draw(path: tuple[str, ...], leaf: nnx.Variable) -> nnx.Variable:
        wanted = leaf.get_value()
        seed = zlib.crc32("/".join(path).encode())
        values = 0.3 * np.random.RandomState(seed).standard_normal(wanted.shape)
        if "norm" in path[-2]:
            values += 1
        if wanted.dtype == np.uint16:  # the bits of bfloat16
            values = values.astype(jnp.bfloat16).view(np.uint16)
        return leaf.replace(jax.device_put(values.astype(wanted.dtype), wanted.sharding))

    return nnx.merge(graphdef, map_parameters(draw, state))


def tokens(rows: int = 2, time: int = 9) -> np.ndarray:
    return np.random.RandomState(7).randint(3, 40, (rows, time)).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _forward(graphdef, state, ids, lengths, dropout_key):
    model = nnx.merge(graphdef, state)
    hidden = model.hidden_states(ids, lengths=lengths, dropout_key=dropout_key)
    return hidden, model.logits(hidden)


def forward(decoder: Decoder, ids, *, lengths=None, dropout_key=None):
    """(hidden states, logits), compiled once per structure and shape."""
    return _forward(*nnx.split(decoder), ids, lengths, dropout_key)
