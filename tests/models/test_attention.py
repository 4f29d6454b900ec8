"""Attention: kernels against a plain loop, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.models import block as block_module
from cogcalib_jax.models import decoder as decoder_module
from cogcalib_jax.models.attention import (
    require_attention,
    splash_attention,
    visible,
    xla_attention,
)
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import forward, small_decoder, tokens


def reference(query, key, value, window, scale=8**-0.5, softcap=None):
    """Head by head and query by query, in float64."""
    batch, time, heads, _ = query.shape
    out = np.zeros(query.shape)
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // key.shape[2])
            for t in range(time):
                first = max(0, t - window + 1) if window else 0
                scores = key[b, first : t + 1, shared] @ query[b, t, h] * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights / weights.sum() @ value[b, first : t + 1, shared]
    return out


@pytest.mark.parametrize("window", [0, 1, 3, 7])
def test_equals_a_loop_over_queries(window):
    draw = np.random.RandomState(window).standard_normal
    query, key, value = draw((2, 7, 4, 8)), draw((2, 7, 2, 8)), draw((2, 7, 2, 8))
    mask = visible(jnp.arange(7)[None], 7, window) if window else None
    ours = xla_attention(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)), mask, None)
    np.testing.assert_allclose(ours, reference(query, key, value, window), atol=1e-5)


@pytest.mark.parametrize("kind", [{"scale": 0.6}, {"scale": 0.6, "softcap": 1.5}], ids=str)
def test_scores_have_the_scale_and_the_soft_cap_that_are_asked_for(kind):
    draw = np.random.RandomState(1).standard_normal
    qkv = draw((2, 7, 4, 8)), draw((2, 7, 2, 8)), draw((2, 7, 2, 8))
    single = [jnp.asarray(x, jnp.float32) for x in qkv]
    np.testing.assert_allclose(
        xla_attention(*single, None, None, **kind), reference(*qkv, 0, **kind), atol=1e-5
    )
    assert_same(
        lambda *qkv: splash_attention(*qkv, None, (), None, interpret=True, **kind),
        lambda *qkv: xla_attention(*qkv, None, None, **kind),
        single,
    )


def test_softmax_is_taken_in_float32_for_a_bfloat16_model():
    # In bfloat16 a sum of 512 equal weights would already be off by per cents.
    ones = jnp.ones((1, 512, 1, 8), jnp.bfloat16)
    value = jnp.linspace(0, 1, 512, dtype=jnp.float32)[None, :, None, None]
    value = jnp.broadcast_to(value, ones.shape).astype(jnp.bfloat16)
    last = xla_attention(ones, ones, value, None, None)[0, -1, 0, 0]
    assert float(last) == pytest.approx(0.5, abs=2e-3)


def test_cudnn_is_refused_where_the_mesh_has_no_gpu():
    with pytest.raises(UserError, match="cudnn.*cpu.*use 'xla'"):
        require_attention("cudnn", jnp.bfloat16, make_mesh(MeshConfig()))


def test_cudnn_is_refused_for_a_model_with_a_soft_cap():
    class Gpu:
        platform = "gpu"

    class Mesh:
        devices = np.array([Gpu()])

    require_attention("cudnn", jnp.bfloat16, Mesh())
    with pytest.raises(UserError, match="cudnn.*caps its scores at 50; use 'xla'"):
        require_attention("cudnn", jnp.bfloat16, Mesh(), 50.0)


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="'flash' is not one of xla, cudnn, splash"):
        require_attention("flash", jnp.float32, None)


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

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))


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
    monkeypatch.setattr(block_module, "splash_attention", here)
    for ours, theirs in zip(forward(small_decoder(attention="splash"), ids), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_is_refused_where_the_mesh_has_no_tpu():
    with pytest.raises(UserError, match="splash.*TPU.*cpu.*use 'xla'"):
        require_attention("splash", jnp.float32, make_mesh(MeshConfig()))
