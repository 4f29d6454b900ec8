"""The compiler computes what it is told: a bug of one release stays switched off."""

import jax
import jax.numpy as jnp
import numpy as np

import cogcalib_jax  # noqa: F401 - what is tested is that importing it is enough


def test_every_direction_of_a_vmapped_gradient_is_right():
    """As large as a batch of attention heads: small arrays were compiled rightly."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4224, 8)), jnp.float32)
    directions = jnp.asarray(rng.normal(size=(3, *x.shape)), jnp.float32)

    def back(direction):
        def norm(x):
            return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)

        return jax.vjp(norm, x)[1](direction)[0]

    together = jax.jit(jax.vmap(back))(directions)
    alone = jnp.stack([back(direction) for direction in directions])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
