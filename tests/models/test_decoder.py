from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.errors import FieldError
from cogcalib_jax.models.config import RopeConfig
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import abstract_decoder, logical_axes, random_decoder
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import (
    FUSED,
    OTHER,
    SMALL,
    forward,
    one_device,
    small_decoder,
    tokens,
)

EVERYWHERE = LoraConfig(r=2, lora_alpha=3.0, target_modules=("all-linear", "lm_head"))


def loss_and_gradient(decoder, ids, dropout_key=None):
    """A scalar through every layer and the head, and its gradient by LoRA parameters."""
    graphdef, lora, base = nnx.split(decoder, nnx.LoRAParam, ...)

    @jax.jit
    @jax.value_and_grad
    def run(lora):
        model = nnx.merge(graphdef, lora, base)
        hidden = model.hidden_states(ids, dropout_key=dropout_key)
        return jax.nn.logsumexp(model.logits(hidden), axis=-1).mean()

    loss, gradient = run(lora)
    return float(loss), jax.device_get(nnx.to_pure_dict(gradient))


@pytest.fixture(scope="module")
def decoder():
    return small_decoder(lora=EVERYWHERE)


@pytest.fixture(scope="module")
def expected(decoder):
    return loss_and_gradient(decoder, tokens(8))


def test_lora_is_split_from_the_base_and_all_of_it_is_float32(decoder):
    _, lora, base = nnx.split(decoder, nnx.LoRAParam, ...)
    paths = [path for path, _ in nnx.to_flat_state(lora)]
    assert len(paths) == 2 * 8
    assert all(path[-1] in ("lora_A", "lora_B") for path in paths)
    assert not any("lora" in path[-1] for path, _ in nnx.to_flat_state(base))


@pytest.mark.parametrize("mesh", [(2, 4, 1), (1, 2, 4), (8, 1, 1)], ids=str)
def test_loss_and_lora_gradients_do_not_depend_on_the_mesh(mesh, expected):
    spread = small_decoder(lora=EVERYWHERE, mesh=make_mesh(MeshConfig(*mesh)))
    loss, gradient = loss_and_gradient(spread, tokens(8))
    assert loss == pytest.approx(expected[0], abs=1e-5)
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, atol=1e-5), gradient, expected[1]
    )


def test_fused_projections_are_cut_over_fsdp():
    expected = loss_and_gradient(small_decoder(FUSED, lora=EVERYWHERE), tokens(8))
    spread = small_decoder(FUSED, lora=EVERYWHERE, mesh=make_mesh(MeshConfig(2, 4, 1)))
    loss, gradient = loss_and_gradient(spread, tokens(8))
    assert loss == pytest.approx(expected[0], abs=1e-5)
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, atol=1e-5), gradient, expected[1]
    )


def test_longrope_takes_the_factors_of_each_texts_own_length():
    short, long = (1.0, 2.0, 4.0, 8.0), (1.0, 3.0, 9.0, 27.0)

    def model(*factors):
        rope = RopeConfig(
            type="longrope",
            factor=2.0,
            original_max_position_embeddings=7,
            short_factor=factors[0],
            long_factor=factors[1],
        )
        return small_decoder(replace(SMALL, ropes=(rope,)))

    ids = tokens(2, 12)
    ours, _ = forward(model(short, long), ids, lengths=jnp.array([7, 8]))
    for row, (factors, length) in enumerate(((short, 7), (long, 8))):
        alone, _ = forward(model(factors, factors), ids[row : row + 1, :length])
        np.testing.assert_allclose(ours[row, :length], alone[0], atol=1e-5)


@pytest.mark.parametrize("remat", ["layer", "dots"])
def test_recomputing_activations_changes_nothing(remat, expected):
    loss, gradient = loss_and_gradient(small_decoder(lora=EVERYWHERE, remat=remat), tokens(8))
    assert loss == pytest.approx(expected[0], abs=1e-6)
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, atol=1e-6), gradient, expected[1]
    )


def test_other_flags_depend_on_neither_mesh_nor_remat():
    """The norm over all heads of a query crosses the devices that share its heads."""
    alone = small_decoder(OTHER, lora=EVERYWHERE)
    mesh = make_mesh(MeshConfig(1, 2, 4))
    spread = small_decoder(OTHER, lora=EVERYWHERE, mesh=mesh, remat="layer")
    (loss, gradient), wanted = (loss_and_gradient(x, tokens(8)) for x in (spread, alone))
    assert loss == pytest.approx(wanted[0], abs=1e-5)
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, atol=1e-5), gradient, wanted[1]
    )


def test_padding_behind_a_text_changes_nothing(decoder):
    ids = tokens(2, 6)
    padded = np.pad(ids, ((0, 0), (0, 4)), constant_values=17)
    short, _ = forward(decoder, ids)
    long, _ = forward(decoder, padded, lengths=jnp.array([6, 6]))
    np.testing.assert_allclose(long[:, :6], short, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["plain", "divided and capped"])
def test_option_logits_are_columns_of_the_logits(config):
    decoder = small_decoder(config, lora=EVERYWHERE)
    hidden, logits = (x[:, -1] for x in forward(decoder, tokens()))
    options = np.array([[3, 39, 0], [7, 7, 12]])
    picked = decoder.head().option_logits(hidden, options)
    assert picked.dtype == jnp.float32
    np.testing.assert_allclose(picked, np.take_along_axis(logits, options, 1), atol=1e-5)


def test_a_tied_head_is_the_embedding_and_its_adapter_leaves_the_embedding_alone():
    config = replace(SMALL, tie_word_embeddings=True)
    tied = small_decoder(config, lora=LoraConfig(target_modules=("lm_head",)))
    plain = small_decoder(config)
    assert tied.lm_head.weight is None
    hidden, logits = forward(tied, tokens())
    np.testing.assert_allclose(hidden, forward(plain, tokens())[0], atol=1e-6)
    update = np.asarray(tied.lm_head.lora_B[...]) @ np.asarray(tied.lm_head.lora_A[...])
    head = np.asarray(plain.embed_tokens.weight[...]) + 2.0 * update
    np.testing.assert_allclose(logits, np.asarray(hidden) @ head.T, atol=1e-5)


def test_a_window_hides_what_lies_before_it():
    config = replace(SMALL, sliding_windows=(3, 3))
    ids = tokens(1, 9)
    changed = ids.copy()
    changed[0, 0] = 5 + ids[0, 0] % 30
    model = small_decoder(config)
    difference = np.abs(forward(model, ids)[0] - forward(model, changed)[0]).max(-1)[0]
    # Two layers of windows of 3 reach 4 positions back.
    assert np.all(difference[:5] > 0)
    assert np.all(difference[5:] == 0)


def test_each_layer_has_the_rope_that_it_names():
    """Positions divided by 1e9 are no rotation; other choices are other models."""
    plain, other = RopeConfig(), RopeConfig(theta=20.0)
    still = RopeConfig(type="linear", factor=1e9)

    def hidden(ropes, layers):
        config = replace(SMALL, sliding_windows=(), ropes=ropes, layer_ropes=layers)
        return np.asarray(forward(small_decoder(config), tokens(1, 12))[0])

    for layers in ((1, 0), (0, 1)):
        without = tuple(-index for index in layers)
        ours = hidden((other, still), layers)
        np.testing.assert_allclose(ours, hidden((other,), without), atol=1e-5)
    chosen = [hidden((plain, other), layers) for layers in ((0, 0), (0, 1), (1, 0), (0, -1))]
    for i, one in enumerate(chosen):
        assert all(np.abs(one - another).max() > 1e-2 for another in chosen[:i])


@pytest.mark.parametrize(("rope", "same"), [(-1, True), (0, False)])
def test_a_layer_without_rope_reads_earlier_tokens_in_any_order(rope, same):
    config = replace(SMALL, num_layers=1, sliding_windows=(), layer_ropes=(rope,))
    model, ids = small_decoder(config), tokens(1, 9)
    shuffled = ids[:, [3, 6, 0, 2, 7, 1, 5, 4, 8]]
    last = [np.asarray(forward(model, x)[0])[0, -1] for x in (ids, shuffled)]
    assert (np.abs(last[0] - last[1]).max() < 1e-5) == same


def test_dropout_is_a_function_of_the_key_and_off_without_one():
    lora = replace(EVERYWHERE, lora_dropout=0.5)
    model = small_decoder(lora=lora)
    ids = tokens()

    def hidden(key):
        return np.asarray(forward(model, ids, dropout_key=key)[0])

    np.testing.assert_array_equal(hidden(jax.random.key(1)), hidden(jax.random.key(1)))
    assert np.abs(hidden(jax.random.key(1)) - hidden(jax.random.key(2))).max() > 1e-3
    plain = small_decoder(lora=EVERYWHERE)
    np.testing.assert_allclose(hidden(None), forward(plain, ids)[0], atol=1e-6)


def test_every_layer_and_projection_drops_inputs_of_its_own(monkeypatch):
    masks = []
    draw = jax.random.bernoulli

    def recorded(*arguments):
        mask = draw(*arguments)
        jax.debug.callback(lambda mask: masks.append(np.asarray(mask).tobytes()), mask)
        return mask

    monkeypatch.setattr(jax.random, "bernoulli", recorded)
    lora = LoraConfig(r=2, target_modules=("q_proj", "v_proj", "up_proj"), lora_dropout=0.5)
    model = small_decoder(lora=lora)
    forward(model, tokens(), dropout_key=jax.random.key(0))
    jax.effects_barrier()
    assert len(masks) == len(set(masks)) == SMALL.num_layers * 3


def test_a_bfloat16_model_keeps_its_dtype_and_gives_float32_logits():
    model = small_decoder(lora=EVERYWHERE, dtype=jnp.bfloat16)
    _, logits = forward(model, tokens())
    assert model.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32


def test_a_step_compiles_from_shapes_alone_with_weights_spread():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    graphdef, state = abstract_decoder(SMALL, EVERYWHERE, jnp.bfloat16, mesh, remat="layer")
    ids = jax.ShapeDtypeStruct((8, 9), jnp.int32)

    def score(state, ids):
        model = nnx.merge(graphdef, state)
        return model.logits(model.hidden_states(ids)[:, -1]).sum()

    compiled = jax.jit(score).lower(state, ids).compile()
    per_device = compiled.memory_analysis().argument_size_in_bytes
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert per_device < 0.4 * whole


def test_key_value_heads_are_only_cut_between_heads():
    mesh = make_mesh(MeshConfig(1, 2, 4))
    _, state = abstract_decoder(SMALL, None, jnp.float32, mesh)
    spec = {path: leaf.get_value().sharding.spec for path, leaf in nnx.to_flat_state(state)}
    attention = ("layers", "self_attn")
    assert spec[(*attention, "q_proj", "weight")][1] == "tensor"
    # Two heads for four devices.
    assert spec[(*attention, "k_proj", "weight")][1] is None


def test_every_parameter_has_named_axes(decoder):
    for path, leaf in nnx.to_flat_state(nnx.state(decoder)):
        assert len(logical_axes(path)) == leaf.get_value().ndim, path


def test_random_weights_are_the_same_on_every_mesh():
    one = nnx.to_pure_dict(nnx.state(random_decoder(SMALL, mesh=one_device(), seed=3)))
    mesh = make_mesh(MeshConfig(1, 4, 2))
    many = nnx.to_pure_dict(nnx.state(random_decoder(SMALL, mesh=mesh, seed=3)))
    # The same draws; scaling them may round differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, many)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"sliding_windows": (1,)}, "sliding_windows"),
        ({"layer_ropes": (0,)}, "layer_ropes"),
        ({"layer_ropes": (0, 1)}, "layer_ropes"),
        ({"final_softcap": 0.0}, "final_softcap"),
        ({"attention_scale": float("inf")}, "attention_scale"),
    ],
)
def test_values_that_make_no_model_are_refused_by_field(change, field):
    with pytest.raises(FieldError, match=f"^{field}"):
        replace(SMALL, **change)
