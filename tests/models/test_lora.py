import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.errors import FieldError
from cogcalib_jax.models.config import LAYER_PROJECTIONS
from cogcalib_jax.models.lora import Linear, LoraConfig, UncertainLora, dropped
from cogcalib_jax.models.placement import Placement
from tests.models.small import SMALL, small_decoder


def layer(lora=None, dtype=jnp.float32, stack=(), **options):
    return Linear(
        stack,
        6,
        400,
        name="q_proj",
        lora=lora,
        initializer_range=0.02,
        dtype=dtype,
        rngs=nnx.Rngs(0),
        **options,
    )


def test_fresh_adapters_begin_as_in_peft():
    made = layer(LoraConfig(r=64), stack=(2,))
    a = np.asarray(made.lora_A[...])
    assert a.shape == (2, 64, 400)
    assert made.lora_B.shape == (2, 6, 64)
    # Kaiming uniform with a = sqrt 5 is U(-1/sqrt(in), 1/sqrt(in)), of variance 1 / (3 in).
    assert np.abs(a).max() <= 1 / 20
    assert a.std() == pytest.approx(1 / np.sqrt(3 * 400), rel=0.02)
    assert not np.any(made.lora_B[...])


def test_the_update_is_alpha_over_rank_times_b_a():
    made = layer(LoraConfig(r=4, lora_alpha=6.0), bias=True)
    made.lora_B[...] = jax.random.normal(jax.random.key(1), (6, 4))
    x = np.random.RandomState(0).standard_normal((3, 400)).astype(np.float32)
    merged = made.weight[...] + 1.5 * made.lora_B[...] @ made.lora_A[...]
    np.testing.assert_allclose(made(jnp.asarray(x)), x @ merged.T, atol=1e-5)


def test_rank_stabilised_updates_are_divided_by_the_root_of_the_rank():
    made = LoraConfig(r=4, lora_alpha=6.0, use_rslora=True)
    assert made.scale == layer(made).scale == 3.0


def dora(p=0.0):
    made = layer(LoraConfig(r=4, lora_alpha=6.0, lora_dropout=p, use_dora=True), bias=True)
    made.lora_B[...] = jax.random.normal(jax.random.key(1), (6, 4))
    made.bias[...] = jax.random.normal(jax.random.key(2), (6,))
    made.lora_magnitude[...] = jax.random.normal(jax.random.key(3), (6,))
    return made


def dora_in_numpy(made):
    """(W, s B A, factors of rows), float64."""
    a, b, w = (np.asarray(x[...], np.float64) for x in (made.lora_A, made.lora_B, made.weight))
    length = np.linalg.norm(w, axis=1) + np.asarray(made.lora_magnitude[...])
    return w, 1.5 * b @ a, length / np.linalg.norm(w + 1.5 * b @ a, axis=1)


def test_dora_gives_the_rows_of_the_sum_lengths_of_their_own():
    made, x = dora(), np.random.RandomState(0).standard_normal((3, 400)).astype(np.float32)
    w, update, factors = dora_in_numpy(made)
    wanted = x @ (factors[:, None] * (w + update)).T + made.bias[...]
    np.testing.assert_allclose(made(jnp.asarray(x)), wanted, atol=1e-5)


def test_dropout_of_dora_is_before_the_weight_too_as_in_peft():
    """peft/tuners/lora/dora.py: W x + (g - 1) W x' + g s B A x', where x' is x after dropout."""
    made, x = dora(p=0.5), np.random.RandomState(0).standard_normal((3, 400)).astype(np.float32)
    kept = np.asarray(dropped(jnp.asarray(x), 0.5, jax.random.key(7)), np.float64)
    w, update, factors = dora_in_numpy(made)
    wanted = x @ w.T + kept @ ((factors - 1)[:, None] * w + factors[:, None] * update).T
    got = made(jnp.asarray(x), jax.random.key(7))
    np.testing.assert_allclose(got, wanted + made.bias[...], atol=1e-5)


def test_an_adapter_of_zeros_is_the_base_with_dora_too():
    made, x = dora(), jax.random.normal(jax.random.key(0), (3, 400))
    for leaf in (made.lora_A, made.lora_B, made.lora_magnitude):
        leaf[...] = jnp.zeros_like(leaf[...])
    np.testing.assert_allclose(made(x), x @ made.weight[...].T + made.bias[...], atol=1e-5)


@pytest.mark.parametrize("key", [None, jax.random.key(5)], ids=["", "dropout"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_logits_of_options_are_those_of_the_vocabulary(use_dora, key):
    lora = LoraConfig(r=2, target_modules=("lm_head",), lora_dropout=0.5, use_dora=use_dora)
    head = small_decoder(lora=lora).head()
    hidden = jax.random.normal(jax.random.key(0), (2, SMALL.hidden_size))
    options = jnp.asarray([[3, 1, 7], [0, 2, 39]])
    of_all = jnp.take_along_axis(head.logits(hidden, key), options, -1)
    np.testing.assert_allclose(head.option_logits(hidden, options, key), of_all, atol=1e-5)


def test_fresh_adapters_are_zero_beyond_the_rank_of_their_layer():
    ranks = ((r"layers\.1\..*", 2),)
    where = Placement(("q_proj",), rank_pattern=ranks, exclude_modules=r".*\.2\..*")
    made = layer(LoraConfig(r=4, lora_alpha=8, placement=where), stack=(3,))
    assert made.scale == (2.0, 4.0, 0.0)
    rows = np.any(np.asarray(made.lora_A[...]), -1)
    np.testing.assert_array_equal(rows.sum(1), [4, 2, 0])


def test_adapters_stay_in_float32_on_a_bfloat16_base():
    made = layer(LoraConfig(), jnp.bfloat16)
    assert made.weight.dtype == jnp.bfloat16
    assert made.lora_A.dtype == made.lora_B.dtype == jnp.float32
    assert made(jnp.ones((2, 400), jnp.bfloat16)).dtype == jnp.bfloat16


def test_dropout_keeps_the_mean_and_needs_a_key():
    made = layer(LoraConfig(r=1, lora_dropout=0.25))
    made.lora_A[...] = jnp.ones((1, 400))
    x = jnp.ones((500, 400))
    assert np.all(made.lora_input(x, None) == 400)
    dropped = np.asarray(made.lora_input(x, jax.random.key(0)))
    assert dropped.mean() == pytest.approx(400, rel=0.01)
    # Binomial: sqrt(n p / (1 - p)) around the mean.
    assert dropped.std() == pytest.approx(np.sqrt(400 * 0.25 / 0.75), rel=0.1)


def test_an_uncertain_a_is_drawn_with_its_variance_and_anew_for_every_input():
    made = layer(UncertainLora(r=3))
    root = np.asarray(made.lora_A_root[...])
    assert root.shape == (3, 400)
    assert 0.05 / np.sqrt(2) <= root.min() < root.max() <= 0.05
    made.lora_A_root[...] = jax.random.uniform(jax.random.key(2), (3, 400)) * 2
    x = np.random.RandomState(0).standard_normal(400).astype(np.float32)
    mean = np.asarray(made.lora_A[...]) @ x
    many = jnp.broadcast_to(x, (4000, 400))
    np.testing.assert_allclose(made.lora_input(many, None)[0], mean, atol=1e-5)
    # Signs decorrelate the inputs of one draw; their mean is then within its error of A's.
    drawn = np.asarray(made.lora_input(many, jax.random.key(3)))
    variance = np.asarray(made.lora_A_root[...]) ** 4 @ x**2
    np.testing.assert_array_less(abs(drawn.mean(0) - mean), 4 * np.sqrt(variance / 4000))
    assert len(np.unique(drawn[:, 0].round(4))) > 3000
    keys = jax.random.split(jax.random.key(4), 4000)
    one = np.asarray(jax.vmap(lambda key: made.lora_input(many[0], key))(keys))
    np.testing.assert_allclose(one.var(0), variance, rtol=0.15)
    np.testing.assert_allclose(np.corrcoef(one.T), np.eye(3), atol=0.07)


def test_all_linear_is_the_seven_projections_without_the_head():
    assert LoraConfig(target_modules=("all-linear",)).modules == set(LAYER_PROJECTIONS)
    both = LoraConfig(target_modules=("all-linear", "lm_head")).modules
    assert both == {*LAYER_PROJECTIONS, "lm_head"}


def test_a_target_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(FieldError, match="query_key matches none.*q_proj.*lm_head, all-linear"):
        LoraConfig(target_modules=("q_proj", "query_key"))


@pytest.mark.parametrize(
    "values", [{"r": 0}, {"lora_alpha": 0.0}, {"lora_dropout": 1.0}, {"target_modules": ()}]
)
def test_values_out_of_range_are_refused_by_field(values):
    with pytest.raises(FieldError, match=next(iter(values))):
        LoraConfig(**values)
