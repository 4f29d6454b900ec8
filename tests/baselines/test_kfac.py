"""Kronecker-factored posteriors of one matrix against dense ones, from flows drawn at random."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.baselines.kfac import (
    COLUMNS,
    Block,
    Evidence,
    Flow,
    LowRank,
    NoPosterior,
    covariance,
    curvature_block,
    flow_moments,
)

WIDE, SHORT, BATCHES, POSITIONS = 96, 3, 6, 64


@cache
def flows() -> list[Flow]:
    """Of a matrix A `[2 layers, 3, 96]` whose inputs' spectrum falls as that of hidden states."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2, WIDE, WIDE)) / np.arange(1, WIDE + 1)[:, None] ** 1.2
    batches = []
    for _ in range(BATCHES):
        inputs = np.einsum("lbti,lij->lbtj", rng.standard_normal((2, 8, 8, WIDE)), mixing)
        gradients = rng.standard_normal((4, 2, 8, 8, SHORT)) * [0.1, 0.05, 0.01]
        arrays = (jnp.asarray(x, jnp.float32) for x in (inputs, gradients))
        batches.append(Flow(*arrays, jnp.float32(POSITIONS)))
    return batches


def block_of(flows: list[Flow], rank: int) -> Block:
    low_rank = LowRank(rank, above=0)
    moments = [flow_moments(flow, low_rank) for flow in flows]
    return curvature_block(type(moments[0])(*map(sum, zip(*moments, strict=True))), low_rank)


def dense_moments(layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a a^T over positions, and sum of g g^T, float64."""
    inputs = np.concatenate([np.reshape(f.inputs[layer], (-1, WIDE)) for f in flows()])
    gradients = np.concatenate([np.reshape(f.gradients[:, layer], (-1, SHORT)) for f in flows()])
    inputs, gradients = inputs.astype(np.float64), gradients.astype(np.float64)
    return inputs.T @ inputs / (POSITIONS * BATCHES), gradients.T @ gradients


def posterior_covariance(wide: list[np.ndarray], precision: float) -> np.ndarray:
    """Covariance of two outputs under dense Kronecker products of `wide` and the short moments."""
    total = np.zeros((2, 2))
    for layer in range(2):
        inputs, gradients = (np.asarray(x, np.float64) for x in question()[:2])
        jacobian = np.einsum("cto,ti->coi", gradients[:, layer, 0], inputs[layer, 0])
        jacobian = jacobian.reshape(2, -1)
        product = np.kron(dense_moments(layer)[1], wide[layer])
        inverse = np.linalg.inv(product + precision * np.eye(len(product)))
        total += jacobian @ inverse @ jacobian.T
    return total


@cache
def question() -> Flow:
    """One row of two outputs, its inputs like those of the flows."""
    rng = np.random.default_rng(1)
    gradients = jnp.asarray(rng.standard_normal((2, 2, 1, 8, SHORT)), jnp.float32)
    return Flow(flows()[0].inputs[:, :1], gradients, jnp.float32(8))


@pytest.mark.parametrize("precision", [0.02, 1.0, 50.0])
def test_at_full_rank_a_matrix_has_its_dense_posterior(precision):
    got = covariance(question(), block_of(flows(), WIDE), precision)[0]
    wanted = posterior_covariance([dense_moments(layer)[0] for layer in range(2)], precision)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * wanted.max())


def truncated(moment: np.ndarray, rank: int) -> np.ndarray:
    values, vectors = np.linalg.eigh(moment)
    return (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T


def incremental(layer: int, rank: int) -> np.ndarray:
    """The paper's way: after each batch an SVD of what is kept and what is new."""
    kept = np.zeros((0, WIDE))
    for flow in flows():
        new = np.asarray(flow.inputs[layer], np.float64).reshape(-1, WIDE)
        _, singular, right = np.linalg.svd(np.concatenate([kept, new]), full_matrices=False)
        kept = singular[:rank, None] * right[:rank]
    return kept.T @ kept / (POSITIONS * BATCHES)


def error(moment: np.ndarray, layer: int) -> float:
    return np.linalg.norm(moment - dense_moments(layer)[0])


def sketched(block: Block, layer: int) -> np.ndarray:
    """The wide moment that a block stands for."""
    values = block.curvature[layer].sum(0) / np.trace(dense_moments(layer)[1])
    basis = block.input_basis[layer].astype(np.float64)
    return (basis * values) @ basis.T


@pytest.mark.parametrize("rank", [4, 8, 12])
def test_one_sketch_is_as_near_as_an_svd_a_batch(rank):
    block = Block(*map(np.asarray, block_of(flows(), rank)))
    assert COLUMNS * rank < WIDE
    assert block.input_basis.shape == (2, WIDE, rank)
    assert block.gradient_basis.shape == (2, SHORT, SHORT)
    for layer in range(2):
        basis = block.input_basis[layer]
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-5)
        best = error(truncated(dense_moments(layer)[0], rank), layer)
        got = error(sketched(block, layer), layer)
        assert got <= 1.05 * best
        assert got <= 1.05 * error(incremental(layer, rank), layer)


def test_the_error_falls_with_the_rank_and_never_makes_too_sure():
    full = posterior_covariance([dense_moments(layer)[0] for layer in range(2)], 5.0)
    errors = []
    for rank in (1, 2, 4, 8, 16, 32, WIDE):
        low = np.asarray(covariance(question(), block_of(flows(), rank), 5.0)[0])
        assert np.linalg.eigvalsh(low - full).min() > -1e-4 * full.max()
        errors.append(np.abs(low - full).max() / full.max())
    assert all(later < before for before, later in zip(errors, errors[1:], strict=False))
    assert errors[0] > 0.3 and errors[-1] < 1e-4


def test_neither_order_nor_size_of_batches_matters():
    merged = Flow(
        jnp.concatenate([f.inputs for f in flows()], 1),
        jnp.concatenate([f.gradients for f in flows()], 2),
        sum(f.positions for f in flows()),
    )
    wanted = block_of([merged], 4)
    got = block_of(flows()[::-1], 4)
    np.testing.assert_allclose(
        got.curvature, wanted.curvature, rtol=1e-4, atol=1e-5 * wanted.curvature.max()
    )
    for layer in range(2):
        one, other = sketched(got, layer), sketched(wanted, layer)
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_a_wide_output_side_is_treated_as_a_wide_input_side():
    """The flow turned round, one position a row so that both are one Kronecker product."""

    def turned(flow: Flow) -> Flow:
        inputs = flow.gradients[0, :, :, :1]
        gradients = jnp.broadcast_to(flow.inputs[None, :, :, :1], (1, *flow.inputs[:, :, :1].shape))
        return Flow(inputs, gradients, jnp.float32(1))

    def straight(flow: Flow) -> Flow:
        return Flow(flow.inputs[:, :, :1], flow.gradients[:1, :, :, :1], jnp.float32(1))

    got, wanted = (
        covariance(turn(question()), block_of([turn(f) for f in flows()], 4), 0.5)
        for turn in (turned, straight)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_sides_are_kept_whole_that_are_short_or_not_too_wide():
    low_rank = LowRank(rank=10, above=512)
    assert [low_rank.kept(width, 8) for width in (8, 344, 512, 513)] == [8, 344, 512, 10]
    assert [low_rank.columns(width, 8) for width in (8, 344, 512, 513)] == [8, 344, 512, 40]
    assert low_rank.kept(600, 600) == low_rank.columns(600, 600) == 600
    assert LowRank(rank=30, above=0).columns(100, 8) == 100


def test_nothing_large_cancels():
    """A posterior a million times narrower than the prior keeps three digits."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    curvature = np.full((1, 6, 1), 1e6, np.float32)
    block = Block(np.ones((1, 1, 1), np.float32), basis[None], curvature)
    gradients = rng.standard_normal((3, 1, 1, 1, 6)).astype(np.float32)
    flow = Flow(jnp.ones((1, 1, 1, 1)), jnp.asarray(gradients), jnp.float32(1))
    flat = gradients.reshape(3, 6).astype(np.float64)
    got = covariance(flow, block, 1.0)[0]
    np.testing.assert_allclose(got, flat @ flat.T / (1e6 + 1), rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
def test_the_prior_is_found_whatever_the_scale_of_the_curvature(scale):
    evidence = Evidence(-3.0, 2.5, scale * np.array([0.0, 1e-8, 0.3, 1.0, 40.0]))
    best = evidence.best_prior_precision()
    assert evidence.effective_parameters(best) == pytest.approx(best * 2.5, rel=1e-6)
    around = best * np.array([0.9, 1.1])
    assert all(evidence.log_marginal(best) > evidence.log_marginal(x) for x in around)


def test_data_without_curvature_are_refused_in_words():
    with pytest.raises(NoPosterior, match="every training answer has probability 1"):
        Evidence(0.0, 1.0, np.zeros(4)).best_prior_precision()
