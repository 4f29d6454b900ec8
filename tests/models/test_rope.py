import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogcalib_jax.errors import FieldError
from cogcalib_jax.models.config import RopeConfig
from cogcalib_jax.models.rope import inverse_frequencies, rotate, rotation


def test_rotation_turns_each_pair_by_position_times_frequency():
    x = np.random.RandomState(0).standard_normal((1, 3, 2, 8)).astype(np.float32)
    positions = jnp.array([[0, 5, 11]])
    cos, sin = rotation(RopeConfig(theta=100.0), 8, positions)
    ours = np.asarray(rotate(jnp.asarray(x), cos, sin))
    for t, position in enumerate((0, 5, 11)):
        for pair in range(4):
            # A complex number turned by e^(i angle): the definition in Su et al. 2021.
            angle = position * 100.0 ** (-2 * pair / 8)
            number = x[0, t, :, pair] + 1j * x[0, t, :, pair + 4]
            turned = number * complex(math.cos(angle), math.sin(angle))
            np.testing.assert_allclose(ours[0, t, :, pair], turned.real, atol=1e-5)
            np.testing.assert_allclose(ours[0, t, :, pair + 4], turned.imag, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(0, 500), distance=st.integers(0, 100), seed=st.integers(0, 2**16))
def test_scores_depend_on_the_distance_alone(shift, distance, seed):
    q, k = np.random.RandomState(seed).standard_normal((2, 1, 1, 1, 16)).astype(np.float32)

    def score(query_at: int, key_at: int) -> float:
        turned = [
            rotate(jnp.asarray(x), *rotation(RopeConfig(), 16, jnp.array([[at]])))
            for x, at in ((q, query_at), (k, key_at))
        ]
        return float(jnp.vdot(*turned))

    assert score(distance, 0) == pytest.approx(score(shift + distance, shift), abs=1e-3)


def test_linear_divides_positions():
    plain, _ = inverse_frequencies(RopeConfig(), 16)
    linear, scale = inverse_frequencies(RopeConfig(type="linear", factor=4.0), 16)
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)
    assert scale == 1.0


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_stretching_keeps_fast_pairs_and_divides_slow_ones(kind):
    rope = RopeConfig(theta=500000.0, type=kind, factor=8.0, original_max_position_embeddings=8192)
    plain, _ = inverse_frequencies(RopeConfig(theta=500000.0), 128)
    stretched, scale = inverse_frequencies(rope, 128)
    assert stretched[0] == pytest.approx(plain[0], rel=1e-6)
    assert stretched[-1] == pytest.approx(plain[-1] / 8, rel=1e-5)
    ratio = plain / stretched
    assert np.all(np.diff(ratio) >= -1e-4), "the divisor grows with the wavelength"
    assert scale == pytest.approx(1.0 if kind == "llama3" else 0.1 * math.log(8) + 1)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"type": "dynamic"}, "type"),
        ({"theta": 0.0}, "theta"),
        ({"fraction": 0.0}, "fraction"),
        ({"query_beta": -1.0}, "query_beta"),
        ({"query_beta": 1.0}, "original_max_position_embeddings"),
        ({"type": "longrope", "original_max_position_embeddings": 8}, "short_factor"),
        ({"type": "linear", "factor": 0.5}, "factor"),
        ({"type": "llama3", "factor": 8.0}, "original_max_position_embeddings"),
        (
            {"type": "llama3", "original_max_position_embeddings": 8, "high_freq_factor": 1.0},
            "high_freq_factor",
        ),
    ],
)
def test_values_that_make_no_rope_are_refused_by_field(values, field):
    with pytest.raises(FieldError, match=f"^{field}"):
        RopeConfig(**values)
