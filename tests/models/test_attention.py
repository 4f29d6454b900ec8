import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.attention import require_attention, visible, xla_attention
from cogcalib_jax.sharding import MeshConfig, make_mesh


def reference(query, key, value, window):
    """Head by head and query by query, in float64."""
    batch, time, heads, dim = query.shape
    out = np.zeros(query.shape)
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // key.shape[2])
            for t in range(time):
                first = max(0, t - window + 1) if window else 0
                scores = key[b, first : t + 1, shared] @ query[b, t, h] / np.sqrt(dim)
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


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="'flash' is not one of xla, cudnn, splash"):
        require_attention("flash", jnp.float32, None)
