"""The parameters of a decoder on a mesh: shardings, random values, and other forms of adapters.

Shardings are known before arrays are made, so that no parameter exists on one device first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import (
    ALL_LINEAR,
    LAYER_PROJECTIONS,
    DecoderConfig,
    LoraConfig,
    Quantise,
    UncertainLora,
)
from cogcalib_jax.models.decoder import Decoder, Remat
from cogcalib_jax.models.lora import Linear, gain, row_index, row_norms
from cogcalib_jax.models.product import from_bits, to_bits
from cogcalib_jax.models.quantised import BLOCK, SCALES, parts, quantisation
from cogcalib_jax.sharding import named_sharding, nearest_mesh

# (out, in) axes of each projection's weight; the adapter's A shares the second, B the first.
PROJECTION_AXES: dict[str, tuple[str | None, str]] = {
    "q_proj": ("heads", "embed"),
    "k_proj": ("kv_heads", "embed"),
    "v_proj": ("kv_heads", "embed"),
    "o_proj": ("embed", "heads"),
    "gate_proj": ("mlp", "embed"),
    "up_proj": ("mlp", "embed"),
    "down_proj": ("embed", "mlp"),
    "router": (None, "embed"),
    # A cut of these would not fall between the matrices that they are made of.
    "qkv_proj": (None, "embed"),
    "gate_up_proj": (None, "embed"),
    "embed_tokens": ("vocab", "embed"),
    "lm_head": ("vocab", "embed"),
}

ROOT = "lora_A_root"

Path = tuple[str, ...]
"""the place of a parameter in the decoder: ("layers", "self_attn", "q_proj", "weight")"""


def logical_axes(path: Path) -> tuple[str | None, ...]:
    """Return the names of a parameter's axes, with its leading axes of layers and experts."""
    stack = ("layers",) if path[0] == "layers" else ()
    stack += ("experts",) if "experts" in path else ()
    module, kind = path[-2:]
    if module not in PROJECTION_AXES:
        return (*stack, None)
    out_axis, in_axis = PROJECTION_AXES[module]
    axes = {
        "weight": (out_axis, in_axis),
        SCALES: (out_axis, in_axis),
        "bias": (out_axis,),
        "lora_A": ("rank", in_axis),
        ROOT: ("rank", in_axis),
        "lora_B": (out_axis, "rank"),
        "lora_magnitude": (out_axis,),
        "lora_rows": (None, in_axis),
    }
    return (*stack, *axes[kind])


def parameter_sharding(
    config: DecoderConfig, mesh: Mesh, path: Path, value: jax.ShapeDtypeStruct
) -> NamedSharding:
    """Return the sharding of one parameter, with cuts between heads and blocks alone."""
    axes = logical_axes(path)
    heads = {"heads": config.num_heads, "kv_heads": config.kv_heads}
    sizes = zip(axes, parts(path[-1], value), strict=True)
    return named_sharding(mesh, axes, [math.gcd(heads.get(axis, n), n) for axis, n in sizes])


def abstract_decoder(
    config: DecoderConfig,
    lora: LoraConfig | None,
    dtype: jnp.dtype,
    mesh: Mesh,
    *,
    remat: Remat = "none",
    attention: str = "xla",
    quantise: Quantise = "none",
    activations: jnp.dtype | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Return a decoder's structure, and a ShapeDtypeStruct with sharding for each parameter.

    Nothing is allocated, and the devices of `mesh` need not exist. `quantise` is for the
    projections of the blocks; embedding, head, norms and biases stay in `dtype`. Raises UserError
    for a quantised mixture of experts, or DoRA on a quantised base.
    """
    if quantise != "none" and config.experts is not None:
        raise UserError(
            f"model.quantise is {quantise}; expected none for {config.model_type}, whose experts"
            " cannot be held so yet. Leave it out, or spread the model (mesh.expert, mesh.fsdp)"
        )
    if quantise != "none" and lora is not None and lora.use_dora:
        raise UserError(
            f"model.quantise is {quantise}; expected none beside DoRA, which needs the lengths of"
            " whole weights. Use lora.use_dora false, or an adapter without it"
        )

    def build() -> Decoder:
        decoder = Decoder(
            config,
            lora=lora,
            dtype=dtype,
            rngs=nnx.Rngs(0),
            remat=remat,
            attention=attention,
            mesh=mesh,
            activations=activations,
        )
        for path, module in nnx.iter_modules(decoder.layers):
            if quantise != "none" and path[-1:] and path[-1] in LAYER_PROJECTIONS:
                module.quantise(quantise)
        return decoder

    graphdef, state = nnx.split(nnx.eval_shape(build))

    def place(path: Path, leaf: nnx.Variable) -> nnx.Variable:
        shape = leaf.get_value()
        sharding = parameter_sharding(config, mesh, path, shape)
        return leaf.replace(jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding))

    return graphdef, map_parameters(place, state)


def map_parameters(
    function: Callable[[Path, nnx.Variable], nnx.Variable], state: nnx.State
) -> nnx.State:
    """Return the state with `function(path, variable)` in place of each variable."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, function(path, leaf)) for path, leaf in flat])


def random_decoder(
    config: DecoderConfig,
    *,
    lora: LoraConfig | None = None,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh,
    seed: int,
) -> Decoder:
    """Return a decoder with random weights, the same on every mesh up to rounding.

    Weights are normal(0, initializer_range), norms 1, biases 0, LoRA as in PEFT.
    """
    graphdef, abstract = abstract_decoder(config, lora, dtype, mesh)
    state = _initialise(config, lora, dtype, abstract, seed, ...)
    return nnx.merge(graphdef, state)


def random_lora(
    config: DecoderConfig, lora: LoraConfig, abstract: nnx.State, seed: int
) -> nnx.State:
    """Return fresh LoRA parameters for an abstract decoder, without the base's."""
    return _initialise(config, lora, jnp.float32, abstract, seed, nnx.LoRAParam)


def with_uncertainty(decoder: Decoder, seed: int) -> Decoder:
    """Return the model with a normal distribution around each LoRA matrix A, whose first standard
    deviations are drawn from `seed`, sharing its arrays."""
    lora = UncertainLora(**vars(decoder.lora))
    graphdef, abstract = _like(decoder, decoder.config, lora)
    fresh = nnx.to_flat_state(random_lora(decoder.config, lora, abstract, seed))
    roots = [(path, leaf) for path, leaf in fresh if path[-1] == ROOT]
    same = nnx.to_flat_state(nnx.state(decoder))
    return nnx.merge(graphdef, nnx.from_flat_state([*same, *roots]))


def without_uncertainty(decoder: Decoder) -> Decoder:
    """Return the model with A's mean in place of its distribution, sharing its arrays."""
    if not isinstance(decoder.lora, UncertainLora):
        return decoder
    graphdef, _ = _like(decoder, decoder.config, LoraConfig(**vars(decoder.lora)))
    flat = nnx.to_flat_state(nnx.state(decoder))
    return nnx.merge(
        graphdef, nnx.from_flat_state([(path, leaf) for path, leaf in flat if path[-1] != ROOT])
    )


def with_dropout(decoder: Decoder, dropout: float) -> Decoder:
    """Return the model with another dropout in its adapters, sharing its arrays."""
    graphdef, state = nnx.split(decoder)
    changed = nnx.merge(graphdef, state)
    changed.lora = replace(decoder.lora, lora_dropout=dropout)
    for _, module in nnx.iter_modules(changed):
        if isinstance(module, Linear) and module.lora_A is not None:
            module.dropout = dropout
    return changed


def merge_lora(decoder: Decoder) -> Decoder:
    """Return a decoder without LoRA layers whose weights are W + scale B A, in W's dtype, with
    DoRA's lengths of rows.

    The product is taken in float32. A head that shares the embedding gets its own weights. Raises
    UserError for a quantised base.
    """
    if decoder.lora is None:
        return decoder
    require_whole(decoder)
    config = decoder.config
    embedding, head = decoder.embed_tokens, decoder.lm_head
    own_table = embedding.row_ids == () or head.row_ids is not None
    tied_rows = bool(config.tie_word_embeddings and embedding.row_ids)
    if head.lora_A is not None or own_table:
        config = replace(config, tie_word_embeddings=False)
    graphdef, abstract = _like(decoder, config, None)
    values = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
    modules = dict(nnx.iter_modules(decoder))

    def merged(path: Path, leaf: nnx.Variable) -> nnx.Variable:
        value = values.get(path)
        if value is None:  # a head that shared the embedding
            value = values["embed_tokens", "weight"]
        names = ("lora_A", "lora_B", "lora_magnitude")
        lora_a, lora_b, magnitude = (values.get((*path[:-1], name)) for name in names)
        module = modules.get(path[:-1])
        table = embedding if path[0] == "lm_head" and tied_rows else module
        rows = getattr(table, "lora_rows", None)
        if path[-1] != "weight" or (lora_a is None and rows is None):
            return leaf.replace(value)

        def add(weight: jax.Array, lora_a: jax.Array | None, lora_b: jax.Array) -> jax.Array:
            value = from_bits(weight)
            whole = value.astype(jnp.float32)
            if rows is not None:
                whole = whole.at[row_index(table.row_ids)].add(rows[...])
            if lora_a is not None:
                update = jnp.einsum("...or,...ri->...oi", lora_b, lora_a, precision="highest")
                whole += module.stacked_scale(weight.ndim) * update
            if magnitude is not None:
                scale = module.stacked_scale(weight.ndim - 1)
                whole *= gain(value, lora_a, lora_b, scale, magnitude)[..., None]
            changed = whole.astype(value.dtype)
            return to_bits(changed) if weight.dtype == jnp.uint16 else changed

        target = leaf.get_value().sharding
        return leaf.replace(jax.jit(add, out_shardings=target)(value, lora_a, lora_b))

    return nnx.merge(graphdef, map_parameters(merged, abstract))


def against_base(decoder: Decoder, lora: nnx.State, *, stored: bool) -> nnx.State:
    """Convert LoRA parameters from PEFT's form to the form of `decoder`, or back.

    PEFT stores whole values of DoRA's row lengths and of trained rows; the decoder has their
    differences from the base.

    stored: whether `lora` has PEFT's. Layers without an adapter have no length: 0.
    """
    modules = dict(nnx.iter_modules(decoder))
    sign = -1.0 if stored else 1.0

    def one(path: Path, leaf: nnx.Variable) -> nnx.Variable:
        value, module = leaf.get_value(), modules[path[:-1]]
        if path[-1] not in ("lora_magnitude", "lora_rows"):
            return leaf
        base = from_bits((decoder.embed_tokens if module.weight is None else module).weight[...])

        def rows(value: jax.Array, base: jax.Array) -> jax.Array:
            return value + sign * base[row_index(module.row_ids)].astype(jnp.float32)

        def lengths(value: jax.Array, base: jax.Array) -> jax.Array:
            adapted = jnp.asarray(module.stacked_scale(value.ndim)) > 0
            return jnp.where(adapted, value + sign * row_norms(base), 0.0)

        change = rows if path[-1] == "lora_rows" else lengths
        return leaf.replace(jax.jit(change, out_shardings=value.sharding)(value, base))

    return map_parameters(one, lora)


def require_whole(decoder: Decoder) -> None:
    """Refuse a decoder with a quantised base, whose weights cannot be written or changed."""
    kind = quantisation(nnx.state(decoder))
    if kind != "none":
        raise UserError(
            f"model.quantise is {kind}; expected none to merge or to write weights. Save the"
            " adapter, and merge it into the unquantised base with cogcalib merge"
        )


def _like(
    decoder: Decoder, config: DecoderConfig, lora: LoraConfig | None
) -> tuple[nnx.GraphDef, nnx.State]:
    return abstract_decoder(
        config,
        lora,
        decoder.dtype,
        decoder.mesh,
        remat=decoder.remat,
        attention=decoder.layers.self_attn.attention,
        quantise=quantisation(nnx.state(decoder)),
    )


def _initialise(
    config: DecoderConfig,
    lora: LoraConfig | None,
    dtype: jnp.dtype,
    abstract: nnx.State,
    seed: int,
    wanted: type[nnx.Variable] | type(...),
) -> nnx.State:
    """The `wanted` kind of parameters, made on their devices."""
    shardings = jax.tree.map(lambda x: x.sharding, nnx.filter_state(abstract, wanted))

    def build(key: jax.Array) -> nnx.State:
        # Two streams, so that an adapter's first values do not depend on the base.
        params, lora_stream = jax.random.split(key)
        rngs = nnx.Rngs(params=params, lora=lora_stream)
        return nnx.state(Decoder(config, lora=lora, dtype=dtype, rngs=rngs), wanted)

    return jax.jit(build, out_shardings=shardings)(jax.random.key(seed))


@dataclass(frozen=True)
class FrozenModel:
    """A decoder without its LoRA parameters: its structure, and the arrays that never change."""

    graphdef: nnx.GraphDef
    frozen: nnx.State

    @property
    def quantise(self) -> Quantise:
        """The form in which the base is held."""
        return quantisation(self.frozen)

    def merge(self, lora: nnx.State) -> Decoder:
        """Return the decoder with these LoRA parameters."""
        return nnx.merge(self.graphdef, lora, self.frozen)


def split_model(decoder: Decoder) -> tuple[FrozenModel, nnx.State]:
    """Return a decoder's frozen part, and its LoRA parameters; raises UserError if it has none."""
    # LoRAParam is a kind of Param, so that it must be filtered first.
    graphdef, lora, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
    if not jax.tree.leaves(lora):
        raise UserError("model: it has no LoRA parameters, so there is nothing to train")
    return FrozenModel(graphdef, frozen), lora


def require_cut(config: DecoderConfig, mesh: Mesh) -> None:
    """Refuse a mesh that cannot cut the model, and name the nearest that can.

    Attention heads and the MLP must divide by `tensor`, the width by `fsdp`, and experts by
    `expert`; otherwise every device would compute or store all of them. Key-value heads and the
    vocabulary may stay whole (see `placement_notes`). Fused projections cannot be cut over
    `tensor`.
    """
    if config.fused and mesh.shape["tensor"] > 1:
        raise UserError(
            f"mesh.tensor is {mesh.shape['tensor']}; expected 1 for {config.model_type}, whose"
            " fused projections (qkv_proj, gate_up_proj) cannot be cut. Use mesh.fsdp"
        )
    experts = (config.experts.number, "experts") if config.experts else (1, "MLP, without experts,")
    cuts = (
        ("tensor", "attention heads", config.num_heads),
        ("tensor", "columns of the MLP", config.mlp_width),
        ("fsdp", "columns of the weights", config.hidden_size),
        ("expert", experts[1], experts[0]),
    )

    def works(fsdp: int, tensor: int, expert: int) -> bool:
        sizes = {"fsdp": fsdp, "tensor": tensor, "expert": expert}
        return all(units % sizes[axis] == 0 for axis, _, units in cuts)

    for axis, what, units in cuts:
        if units % mesh.shape[axis]:
            wanted = tuple(mesh.shape.values())
            raise UserError(
                f"mesh.{axis} = {mesh.shape[axis]}: cannot cut the model's {units:,} {what} evenly;"
                f" the nearest mesh that works: {nearest_mesh(mesh.size, wanted, works)}"
            )


def require_projections(config: DecoderConfig, lora: LoraConfig) -> None:
    """Refuse targets of a fresh adapter that the model does not have; raises UserError."""
    known = {*config.projections, "lm_head", ALL_LINEAR}
    absent = [name for name in lora.target_modules if name not in known]
    if absent:
        raise UserError(
            f"lora.target_modules is {','.join(lora.target_modules)}; expected some of"
            f" {', '.join((*config.projections, 'lm_head'))}, or {ALL_LINEAR}: {config.model_type}"
            f" has no {', '.join(absent)}. Choose among them"
        )


def placement_notes(config: DecoderConfig, mesh: Mesh, quantise: Quantise = "none") -> list[str]:
    """Return notes on the output head on `mesh`, and on axes that every device holds whole."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    notes = []
    for axis, size in (("fsdp", config.hidden_size), ("tensor", config.intermediate_size)):
        if quantise != "none" and size % (BLOCK * mesh.shape[axis]) and mesh.shape[axis] > 1:
            notes.append(
                f"quantised weights: {size:,} columns cannot be cut over {axis}"
                f" {mesh.shape[axis]} between blocks of {BLOCK}; every device holds all of them"
            )
    if tensor > 1 and config.vocab_size % tensor == 0:
        notes.append(
            f"head: vocabulary cut over tensor {tensor}; of its logits only statistics of rows"
            " travel"
        )
    elif fsdp > 1:
        notes.append(f"head: gathered once a pass over fsdp {fsdp}")
    if config.vocab_size % tensor:
        notes.append(
            f"head: a vocabulary of {config.vocab_size:,} cannot be cut over tensor {tensor}; every"
            " device holds all of it and computes all logits of its rows"
        )
    if config.kv_heads % tensor:
        notes.append(
            f"attention: {config.kv_heads} key-value heads cannot be cut over tensor {tensor};"
            " every device holds and computes all of them"
        )
    return notes
