"""Quantised weights: the published numbers, and a decoder that is the one with those weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf import files as model_files
from cogcalib_jax.hf.weights import load_decoder, save_decoder
from cogcalib_jax.models.config import ExpertsConfig
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import (
    map_parameters,
    merge_lora,
    placement_notes,
    with_uncertainty,
    without_uncertainty,
)
from cogcalib_jax.models.quantised import (
    DTYPES,
    NF4,
    SCALES,
    dequantise,
    quantisation,
    quantise_rows,
    quantised_product,
)
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import SMALL, forward, one_device, small_decoder, tokens

KINDS = ("int8", "nf4")
# Two blocks of 64 along the width, four along the MLP's, and heads of half a block.
WIDE = replace(SMALL, hidden_size=128, intermediate_size=256, head_dim=32)
LORA = LoraConfig(r=3, target_modules=("all-linear", "lm_head"))


def reference(weight: np.ndarray, kind: str) -> np.ndarray:
    """The weight after quantisation, in float64, block by block and number by number."""
    book = np.arange(-127, 128) / 127 if kind == "int8" else np.array(NF4)
    out = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 64):
            block = weight[row, start : start + 64].astype(np.float64)
            largest = np.abs(block).max()
            if largest > 0:
                nearest = np.abs(block[:, None] / largest - book).argmin(1)
                out[row, start : start + 64] = largest * book[nearest]
    return out


back = jax.jit(dequantise)


def there_and_back(weight: np.ndarray, kind: str) -> np.ndarray:
    return np.asarray(back(*quantise_rows(weight, DTYPES[kind])))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save_decoder(small_decoder(WIDE), folder)
    return folder


def load(folder, kind, mesh=None, **options):
    return load_decoder(folder, mesh=mesh or one_device(), quantise=kind, **options)


def test_the_code_book_is_that_of_the_paper():
    """Quantiles of the normal distribution, 8 above zero and 7 below, the outermost at the mean of
    1/30 and 1/32 of the mass divided by 2, scaled to +-1 (QLoRA, section 3)."""
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    book = np.sort([*below, 0, *above]) / above.max()
    np.testing.assert_allclose(NF4, book, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 63, 64, 160])
def test_a_weight_becomes_the_nearest_numbers_of_its_blocks(kind, columns):
    weight = np.random.RandomState(0).standard_normal((6, columns)).astype(np.float32)
    weight[1, :64] = 0
    weight[2] *= 1e-30
    weight[3] *= 1e30
    wanted, found = reference(weight, kind), there_and_back(weight, kind)
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-37)
    np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-6)
    # Half of the widest gap between two numbers, times the largest of the block.
    widest = 1 / 254 if kind == "int8" else (NF4[1] - NF4[0]) / 2
    for start in range(0, columns, 64):
        block = slice(start, start + 64)
        largest = np.abs(weight[:, block]).max(1, keepdims=True)
        error = np.abs(found - weight)[:, block]
        assert (error <= widest * largest * (1 + 1e-5) + 1e-37).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_not_finite_does_not_become_one(kind):
    weight = np.ones((2, 128), np.float32)
    weight[0, 3], weight[1, 70] = np.nan, np.inf
    found = there_and_back(weight, kind)
    assert not np.isfinite(found[0, 3]) and not np.isfinite(found[1, 70])
    np.testing.assert_array_equal(found[[0, 1], [64, 0]], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_projections_of_the_blocks_are_quantised(stored, kind):
    whole = nnx.to_flat_state(nnx.state(load(stored, "none")))
    held = dict(nnx.to_flat_state(nnx.state(load(stored, kind))))
    assert quantisation(nnx.state(load(stored, kind))) == kind
    for path, leaf in whole:
        if path[-2].endswith("_proj") and path[-1] == "weight":
            scales = held.pop((*path[:-1], SCALES))
            layers = back(held[path].get_value(), scales.get_value())
            for ours, layer in zip(layers, leaf.get_value(), strict=True):
                wanted = reference(np.asarray(layer), kind)
                np.testing.assert_allclose(ours, wanted, atol=1e-6, err_msg=str(path))
        else:
            np.testing.assert_array_equal(leaf.get_value(), held[path].get_value())
    assert len(held) == len(whole)


def dequantised(decoder):
    """The same decoder with float weights."""
    state = nnx.to_flat_state(nnx.state(decoder, nnx.Not(nnx.LoRAParam)))
    values = {path: leaf.get_value() for path, leaf in state}

    def whole(path, leaf):
        scales = values.get((*path[:-1], SCALES))
        is_held = path[-1] == "weight" and scales is not None
        return leaf.replace(back(values[path], scales) if is_held else values[path])

    like = small_decoder(WIDE, lora=decoder.lora)
    base = map_parameters(whole, nnx.state(like, nnx.Not(nnx.LoRAParam)))
    nnx.update(like, nnx.merge_state(base, nnx.state(decoder, nnx.LoRAParam)))
    return like


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_the_dequantised_weights(stored, kind):
    decoder = load(stored, kind, lora=LORA)
    nnx.update(decoder, nnx.state(small_decoder(WIDE, lora=LORA), nnx.LoRAParam))

    def loss_and_gradient(decoder):
        graphdef, lora, rest = nnx.split(decoder, nnx.LoRAParam, ...)

        def loss(lora):
            model = nnx.merge(graphdef, lora, rest)
            return jax.nn.log_softmax(model.logits(model.hidden_states(tokens())))[..., 5].mean()

        return jax.jit(jax.value_and_grad(loss))(lora)

    ours, wanted = loss_and_gradient(decoder), loss_and_gradient(dequantised(decoder))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        largest = np.abs(other).max()
        assert largest > 0
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, largest))


@pytest.mark.parametrize(
    ("dtype", "inner"),
    [(jnp.float32, jnp.float32), (jnp.bfloat16, jnp.bfloat16), (jnp.float32, jnp.bfloat16)],
)
def test_a_product_has_the_dtype_and_the_gradient_of_its_input(dtype, inner):
    weight = np.random.RandomState(1).standard_normal((4, 96)).astype(np.float32)
    held = [jnp.asarray(x) for x in quantise_rows(weight, DTYPES["nf4"])]
    x = jnp.asarray(np.random.RandomState(2).standard_normal((3, 96)), dtype)
    y, pull_back = jax.vjp(lambda x: quantised_product(x, *held, jnp.dtype(inner)), x)
    (gradient,) = pull_back(y)
    assert y.dtype == gradient.dtype == dtype
    w = reference(weight, "nf4")
    tolerance = 1e-5 if inner == jnp.float32 else 0.2
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ w.T, atol=tolerance)
    np.testing.assert_allclose(gradient, np.asarray(y, np.float64) @ w, atol=10 * tolerance)


def test_a_bfloat16_base_multiplies_in_bfloat16_on_a_cpu(stored):
    """Float32 products take twice the time there (`product`)."""
    decoder = load(stored, "int8", dtype="bfloat16")
    text = jax.jit(decoder.hidden_states).lower(tokens()).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    rounded = [line for line in products if line.count("xbf16>") == 2 and line.endswith("xf32>")]
    assert len(rounded) == 7  # the projections of a layer


@pytest.mark.parametrize("remat", ["none", "layer", "dots"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_no_weights(stored, kind, remat):
    graphdef, lora, frozen = nnx.split(
        load(stored, kind, lora=LORA, remat=remat), nnx.LoRAParam, ...
    )

    def kept(lora, frozen):
        def hidden(lora):
            return nnx.merge(graphdef, lora, frozen).hidden_states(tokens(1, 2))

        given = {id(x) for x in jax.tree.leaves((lora, frozen))}
        return [x for x in jax.tree.leaves(jax.vjp(hidden, lora)[1]) if id(x) not in given]

    sizes = [x.size for x in jax.eval_shape(kept, lora, frozen)]
    smallest = WIDE.num_layers * WIDE.kv_heads * WIDE.head_dim * WIDE.hidden_size // 2
    assert sizes and max(sizes) < smallest


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 2, 2), (1, 4, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_decoder_is_the_one_on_one_device(stored, kind, shape):
    one = load(stored, kind)
    many = load(stored, kind, make_mesh(MeshConfig(*shape)))
    for ours, wanted in zip(
        jax.tree.leaves(nnx.state(many)), jax.tree.leaves(nnx.state(one)), strict=True
    ):
        np.testing.assert_array_equal(ours, wanted)
    ours, wanted = (np.asarray(forward(model, tokens(4))[1]) for model in (many, one))
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_holds_and_reads_only_its_own_blocks(stored, kind, monkeypatch):
    read = []
    whole_read = model_files.Tensor.read

    def counted(self, index=slice(None)):
        part = whole_read(self, index)
        read.append((self.name, part.size))
        return part

    monkeypatch.setattr(model_files.Tensor, "read", counted)
    many = load(stored, kind, make_mesh(MeshConfig(2, 2, 2)))
    down = many.layers.mlp.down_proj
    for value in (down.weight[...], down.scales[...]):
        assert len({str(shard.index) for shard in value.addressable_shards}) == 4
    name = "model.layers.1.mlp.down_proj.weight"
    assert sum(size for found, size in read if found == name) == 128 * 256


def test_blocks_that_a_mesh_would_cut_stay_whole_and_are_named(stored):
    mesh = make_mesh(MeshConfig(1, 8, 1))
    (note,) = [n for n in placement_notes(WIDE, mesh, "nf4") if "quantised" in n]
    assert "128 columns cannot be cut over fsdp 8 between blocks of 64" in note
    assert not [n for n in placement_notes(WIDE, mesh) if "quantised" in n]
    codes = load(stored, "nf4", mesh).layers.mlp.up_proj.weight[...]
    assert codes.sharding.shard_shape(codes.shape) == codes.shape


def test_an_uncertain_adapter_leaves_the_base_as_it_is(stored):
    decoder = load(stored, "nf4", lora=LORA)
    uncertain = with_uncertainty(decoder, seed=0)
    assert quantisation(nnx.state(uncertain)) == "nf4"
    certain = without_uncertainty(uncertain)
    np.testing.assert_array_equal(forward(certain, tokens())[1], forward(decoder, tokens())[1])


def test_fresh_adapters_do_not_depend_on_the_base(stored):
    adapters = [nnx.state(load(stored, kind, lora=LORA), nnx.LoRAParam) for kind in ("none", "nf4")]
    for ours, wanted in zip(*map(jax.tree.leaves, adapters), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_an_odd_number_of_rows_is_refused():
    with pytest.raises(UserError, match="quantise is nf4, .* 23 rows; expected an even number"):
        small_decoder(replace(SMALL, intermediate_size=23), quantise="nf4")


def test_a_mixture_of_experts_is_refused():
    experts = ExpertsConfig(number=4, per_token=2, width=32)
    with pytest.raises(UserError, match="quantise is int8; expected none for qwen3, whose experts"):
        small_decoder(replace(SMALL, experts=experts), quantise="int8")


def test_dora_is_refused():
    with pytest.raises(UserError, match="quantise is nf4; expected none beside DoRA"):
        small_decoder(lora=LoraConfig(use_dora=True), quantise="nf4")


def test_quantised_weights_are_not_merged_or_written(stored, tmp_path):
    decoder = load(stored, "int8", lora=LORA)
    for refused in (lambda: merge_lora(decoder), lambda: save_decoder(decoder, tmp_path / "out")):
        with pytest.raises(UserError, match="model.quantise is int8; expected none .*merge"):
            refused()
    assert not (tmp_path / "out").exists()
