"""The TPU kernel, run step by step on the CPU, against plain attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.models import decoder as decoder_module
from cogcalib_jax.models.attention import require_attention, visible, xla_attention
from cogcalib_jax.models.splash import splash_attention
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.inference.tiny import quick_jit
from tests.models.small import forward, small_decoder, tokens


def tensors(time, kv_heads=2, batch=4):
    draw = np.random.RandomState(time).standard_normal
    shapes = ((batch, time, 4, 16), (batch, time, kv_heads, 16), (batch, time, kv_heads, 16))
    return tuple(jnp.asarray(draw(shape), jnp.float32) for shape in shapes)


def plain(query, key, value, window=0):
    time = query.shape[1]
    mask = visible(jnp.arange(time)[None], time, window)
    return xla_attention(query, key, value, mask, None)


def with_gradient(attend):
    """Outputs and gradients of a sum that weighs them differently."""

    def total(*qkv):
        out = attend(*qkv)
        return jnp.sum(
            out * jnp.sin(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape))
        ), out

    return quick_jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))


def assert_same(ours, theirs, qkv):
    for a, b in zip(
        jax.tree.leaves(with_gradient(ours)(*qkv)),
        jax.tree.leaves(with_gradient(theirs)(*qkv)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("time", "window"), [(150, 0), (128, 5), (300, 140)])
def test_equals_plain_attention_with_its_gradient(time, window):
    def ours(*qkv):
        windows = (window,) if window else ()
        return splash_attention(*qkv, None, windows, None, interpret=True)

    assert_same(ours, lambda *qkv: plain(*qkv, window), tensors(time))


def test_layers_with_different_windows_share_one_program():
    def ours(*qkv):
        layers = jnp.asarray([0, 9, 3], jnp.int32)

        def layer(x, window):
            return x + splash_attention(x, *qkv[1:], window, (0, 9, 3, 9, 500), None, True), None

        return jax.lax.scan(layer, qkv[0], layers)[0]

    def theirs(query, *kv):
        for window in (0, 9, 3):
            query = query + plain(query, *kv, window)
        return query

    assert_same(ours, theirs, tensors(20, batch=1))


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_every_device_computes_its_own_rows_and_heads(kv_heads):
    """A single key-value head cannot be cut for the two devices that share the query heads."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert_same(
        lambda *qkv: splash_attention(*qkv, None, (7,), mesh, interpret=True),
        lambda *qkv: plain(*qkv, 7),
        tensors(24, kv_heads),
    )


def test_a_decoder_computes_the_same_with_it(monkeypatch):
    """Its second layer has a sliding window."""
    ids = tokens()
    wanted = forward(small_decoder(), ids)
    monkeypatch.setattr(decoder_module, "require_attention", lambda *_: None)
    here = partial(splash_attention, interpret=True)
    monkeypatch.setattr(decoder_module, "splash_attention", here)
    for ours, theirs in zip(forward(small_decoder(attention="splash"), ids), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_is_refused_where_the_mesh_has_no_tpu():
    with pytest.raises(UserError, match="splash.*TPU.*cpu.*use 'xla'"):
        require_attention("splash", jnp.float32, make_mesh(MeshConfig()))
