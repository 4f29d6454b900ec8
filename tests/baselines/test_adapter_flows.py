"""Flows through LoRA matrices against derivatives that JAX takes of the parameters themselves."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.baselines.kfac import adapter_flows
from cogcalib_jax.data.batching import make_trees
from cogcalib_jax.inference.forward import row_stats, scored_hidden, tree_scores
from cogcalib_jax.models.parameters import split_model
from tests.inference.tiny import (
    LORA,
    TINY,
    full_logits,
    one_batch,
    questions,
    tiny_decoder,
)

ROWS = questions(5)
SEVERAL = questions(5, tokens=3)
CAPPED = replace(TINY, logits_divisor=1.3, final_softcap=2.0)
ALL = replace(LORA, target_modules=("all-linear", "lm_head"))


def unit_directions(logits):
    """[options, batch, options]: one direction an option."""
    eye = jnp.eye(logits.shape[1])
    return jnp.broadcast_to(eye[:, None], (logits.shape[1], *logits.shape))


def flows_of(decoder, batch):
    model, lora = split_model(decoder)
    run = jax.jit(
        lambda lora, frozen: adapter_flows(
            nnx.merge(model.graphdef, lora, frozen), batch, unit_directions
        )
    )
    return run(lora, model.frozen)


def jacobians(decoder, batch):
    """LoRA parameter name -> [batch, options, *parameter]."""
    model, lora = split_model(decoder)

    def logits(lora):
        decoder = model.merge(lora)
        hidden, _ = scored_hidden(decoder, batch, None)
        if batch.tree is not None:
            nll = row_stats(decoder.head(), hidden, batch.targets).nll
            return tree_scores(nll, batch.tree)
        return decoder.head().option_logits(hidden[:, 0], batch.option_ids)

    state = jax.jit(jax.jacrev(logits))(lora)
    named = {}
    for path, leaf in nnx.to_flat_state(state):
        value = np.asarray(leaf.get_value() if hasattr(leaf, "get_value") else leaf)
        named[".".join(path[-2:])] = value[:, :, None] if path[0] == "lm_head" else value
    return named


@pytest.mark.parametrize(
    ("lora", "batch", "config"),
    [
        pytest.param(LORA, one_batch(ROWS), TINY, marks=pytest.mark.slow),
        (ALL, one_batch(ROWS), TINY),
        (ALL, make_trees(SEVERAL, range(5), 6, (40,), "mean"), TINY),
        (ALL, one_batch(ROWS), CAPPED),
        (ALL, make_trees(SEVERAL, range(5), 6, (40,), "mean"), CAPPED),
        pytest.param(ALL, one_batch(ROWS), replace(TINY, fused=True), marks=pytest.mark.slow),
    ],
    ids=["q, v, head", "everywhere", "several tokens", "capped", "capped, several tokens", "fused"],
)
def test_their_product_is_the_jacobian_of_the_option_scores(lora, batch, config):
    decoder = tiny_decoder(lora=lora, config=config)
    _, _, flows = flows_of(decoder, batch)
    wanted = jacobians(decoder, batch)
    real = (batch.weight > 0)[:, None]
    assert set(flows) == set(wanted)
    exists = batch.option_mask > 0
    for name, flow in flows.items():
        got = np.einsum("clbto,lbti->bcloi", flow.gradients, flow.inputs)
        scale = np.abs(wanted[name][exists & real]).max()
        assert scale > 1e-4
        np.testing.assert_allclose(
            got[exists & real], wanted[name][exists & real], atol=2e-6 * scale
        )
        assert not got[~(exists & real)].any()


def test_padding_and_filler_rows_carry_nothing():
    batch = one_batch(ROWS, size=8, bucket=24)
    _, _, flows = flows_of(tiny_decoder(lora=LORA), batch)
    tokens = batch.lengths[:5].sum()
    for name, flow in flows.items():
        assert float(flow.positions) == (5 if "lm_head" in name else tokens)
        for values in (flow.inputs, flow.gradients):
            assert np.isfinite(values).all()
            assert not np.asarray(values)[..., 5:, :, :].any()
        if "lm_head" not in name:
            padding = np.arange(24) >= batch.lengths[:, None]
            assert not np.asarray(flow.inputs)[:, padding].any()
            assert not np.asarray(flow.gradients)[:, :, padding].any()


def test_values_come_with_the_flows():
    decoder, batch = tiny_decoder(lora=LORA), one_batch(ROWS)
    hidden, logits, flows = flows_of(decoder, batch)
    for i, row in enumerate(batch.row):
        whole = full_logits(decoder, ROWS[row].prompt_ids)[-1]
        k = int(batch.option_mask[i].sum())
        np.testing.assert_allclose(logits[i, :k], whole[batch.option_ids[i, :k]], atol=1e-4)
    np.testing.assert_allclose(flows["lm_head.lora_A"].inputs[0, :, 0], hidden[:, 0], atol=1e-6)
