"""A mixture of experts against a loop over experts in numpy, its gradients, vmap and meshes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import ExpertsConfig, LoraConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.parameters import abstract_decoder, require_cut
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import SMALL, forward, one_device, small_decoder, tokens

EXPERTS = ExpertsConfig(number=4, per_token=2, width=12, renormalise=False)
SPARSE = replace(SMALL, model_type="mixtral", experts=EXPERTS)
LORA = LoraConfig(r=2, lora_alpha=6.0, target_modules=("q_proj", "v_proj", "lm_head"))


def layer_of(decoder: Decoder, layer: int = 0):
    graphdef, state = nnx.split(decoder.layers.mlp)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[layer], state))


def by_loop(mlp, x: np.ndarray) -> np.ndarray:
    """The mixture in float64, one expert after the other: softmax over all, then the largest."""
    config = mlp.config
    flat = x.astype(np.float64).reshape(-1, x.shape[-1])

    def weight(module):
        return np.asarray(module.weight[...], np.float64)

    logits = flat @ weight(mlp.router).T
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    out = np.zeros_like(flat)
    for token, share in enumerate(probs):
        best = np.argsort(-share, kind="stable")[: config.per_token]
        total = share[best].sum() if config.renormalise else 1.0
        for expert in best:
            gate, up, down = (
                weight(getattr(mlp.experts, name))[expert]
                for name in ("gate_proj", "up_proj", "down_proj")
            )
            inner = flat[token] @ gate.T
            inner = inner / (1 + np.exp(-inner)) * (flat[token] @ up.T)
            out[token] += share[expert] / total * (inner @ down.T)
    return out.reshape(x.shape)


def hidden(seed: int = 0, rows: int = 2, time: int = 9) -> np.ndarray:
    draw = np.random.RandomState(seed).standard_normal((rows, time, SMALL.hidden_size))
    return draw.astype(np.float32)


@pytest.mark.parametrize("per_token", [1, 2, 4])
@pytest.mark.parametrize("renormalise", [True, False])
def test_the_mixture_equals_a_loop_over_experts(per_token, renormalise):
    experts = replace(EXPERTS, per_token=per_token, renormalise=renormalise)
    mlp = layer_of(small_decoder(replace(SPARSE, experts=experts)), 1)
    x = hidden()
    ours = jax.jit(mlp)(x, None)
    np.testing.assert_allclose(ours, by_loop(mlp, x), atol=1e-5)


def test_an_expert_without_tokens_and_ties_of_the_router():
    """All logits are 0, so every token goes to experts 0 and 1: the lower numbers."""
    mlp = layer_of(small_decoder(SPARSE))
    mlp.router.weight[...] = jnp.zeros_like(mlp.router.weight[...])
    chosen, shares = mlp._route(hidden())
    assert np.all(np.sort(chosen, -1) == [0, 1])
    np.testing.assert_allclose(shares, 0.25, atol=1e-7)
    np.testing.assert_allclose(mlp(hidden(), None), by_loop(mlp, hidden()), atol=1e-5)


def test_gradients_are_finite_differences():
    """Of x, through experts and through the router's weights; the choice does not move."""
    mlp = layer_of(small_decoder(SPARSE))
    x, direction = hidden(), hidden(1)

    def total(x):
        return jnp.sum(mlp(x, None) * direction)

    gradient = np.asarray(jax.jit(jax.grad(total))(x))
    step, rows = 1e-5, [(0, 0, 0), (0, 3, 5), (1, 8, 15), (1, 2, 7)]
    for place in rows:
        moved = np.zeros(x.shape)
        moved[place] = step
        up, down = (by_loop(mlp, x + sign * moved) for sign in (1, -1))
        expected = np.sum((up - down) * direction) / (2 * step)
        assert gradient[place] == pytest.approx(expected, abs=1e-4)


def test_lora_has_the_gradients_of_finite_differences_through_the_experts():
    """Along one direction, with a step so short that no token changes its experts."""
    decoder = small_decoder(SPARSE, lora=LORA)
    graphdef, lora, base = nnx.split(decoder, nnx.LoRAParam, ...)
    ids = tokens()

    @jax.jit
    @jax.value_and_grad
    def loss(lora):
        model = nnx.merge(graphdef, lora, base)
        return jnp.mean(model.logits(model.hidden_states(ids)) ** 2)

    draw, step = np.random.RandomState(0), 3e-4
    direction = jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(x.dtype), lora)
    moved = (jax.tree.map(lambda x, d, s=s: x + s * d, lora, direction) for s in (step, -step))
    up, down = (float(loss(one)[0]) for one in moved)
    gradient = jax.tree.leaves(loss(lora)[1])
    ours = sum(
        float(jnp.vdot(g, d)) for g, d in zip(gradient, jax.tree.leaves(direction), strict=True)
    )
    assert ours == pytest.approx((up - down) / (2 * step), rel=5e-3)


def test_vmap_over_rows_and_over_cotangents_equals_a_loop():
    """As dropout by row and K-FAC do; ragged_dot itself has no such rule."""
    mlp = layer_of(small_decoder(SPARSE))
    x = np.stack([hidden(seed, rows=1) for seed in range(3)])
    run = jax.jit(jax.vmap(lambda x: mlp(x, None)))
    np.testing.assert_allclose(run(x), np.stack([mlp(one, None) for one in x]), atol=1e-5)
    _, pull = jax.vjp(lambda x: mlp(x, None), x[0])
    many = jax.jit(jax.vmap(pull))(x)[0]
    np.testing.assert_allclose(many, np.stack([pull(one)[0] for one in x]), atol=1e-5)


def test_vmap_over_rows_that_lie_on_different_devices():
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    one, many = (layer_of(small_decoder(SPARSE, mesh=m)) for m in (one_device(), mesh))
    x = np.stack([hidden(seed, rows=1) for seed in range(8)])
    run = jax.vmap(lambda x: many(x, None), spmd_axis_name=("data", "fsdp", "expert"))
    ours = jax.jit(run)(x)
    np.testing.assert_allclose(ours[:, 0], one(x[:, 0], None), atol=1e-5)


def test_padding_does_not_change_real_tokens():
    decoder = small_decoder(SPARSE)
    ids = tokens(3, 9)
    alone = forward(decoder, ids[:, :6])[1]
    padded = forward(decoder, np.pad(ids[:, :6], ((0, 0), (0, 5))))[1]
    np.testing.assert_allclose(padded[:, :6], alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 1, 4), (2, 1, 2, 2), (1, 1, 4, 2), (8, 1, 1, 1)], ids=str)
def test_every_mesh_has_the_outputs_and_gradients_of_one_device(shape):
    def outputs(mesh):
        decoder = small_decoder(SPARSE, lora=LORA, mesh=mesh)
        graphdef, lora, base = nnx.split(decoder, nnx.LoRAParam, ...)

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def run(lora, base):
            model = nnx.merge(graphdef, lora, base)
            logits = model.logits(model.hidden_states(tokens(8)))
            return jnp.mean(logits**2), logits

        (_, logits), gradient = run(lora, base)
        return [np.asarray(x) for x in (logits, *jax.tree.leaves(gradient))]

    ours = outputs(make_mesh(MeshConfig(*shape)))
    for one, other in zip(ours, outputs(one_device()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_experts_are_cut_over_the_axis_and_by_fsdp():
    _, state = abstract_decoder(SPARSE, None, jnp.float32, make_mesh(MeshConfig(1, 2, 2, 2)))
    down = dict(nnx.to_flat_state(state))["layers", "mlp", "experts", "down_proj", "weight"]
    assert down.get_value().shape == (2, 4, 16, 12)
    assert down.get_value().sharding.shard_shape(down.get_value().shape) == (2, 2, 8, 6)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (SPARSE, "mesh.expert = 8: cannot cut the model's 4 experts evenly; .* --mesh.expert 4$"),
        (SMALL, "mesh.expert = 8: cannot cut the model's 1 MLP, without experts, evenly"),
    ],
)
def test_a_mesh_that_cannot_cut_the_experts_is_refused(config, reason):
    with pytest.raises(UserError, match=reason):
        require_cut(config, make_mesh(MeshConfig(expert=8)))


@pytest.mark.parametrize("targets", [("q_proj", "up_proj"), ("all-linear",)])
def test_lora_on_experts_is_refused_by_name(targets):
    with pytest.raises(UserError, match=f"{targets[-1]} would train the experts"):
        small_decoder(SPARSE, lora=LoraConfig(target_modules=targets))
