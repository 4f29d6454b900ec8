"""The settings of a network. Needs no JAX, so that help and checks of options are fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cogcalib_jax.errors import check, check_counts, check_named
from cogcalib_jax.models.placement import Placement
from cogcalib_jax.settings import often, rename, setting

if TYPE_CHECKING:
    import jax.numpy as jnp
    from jax.sharding import Mesh

Quantise = Literal["none", "int8", "nf4"]
RopeType = Literal["default", "linear", "llama3", "yarn", "longrope"]
ROPE_TYPES: tuple[str, ...] = ("default", "linear", "llama3", "yarn", "longrope")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP_PROJECTIONS)
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
# The place of a name here decides its stream of dropout.
LAYER_PROJECTIONS = (*SEPARATE, "qkv_proj", "gate_up_proj")
ALL_LINEAR = "all-linear"
LARGEST_RANK = 2**16
# No model comes near this. A larger number comes from a damaged file.
MOST_EXPERTS = 1_000_000
SCALES = (
    *("attention_scale", "attention_softcap", "embed_scale", "residual_scale"),
    *("logits_divisor", "final_softcap"),
)
LORA_TARGETS = (*LAYER_PROJECTIONS, "lm_head", ALL_LINEAR)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021), and its extensions to longer contexts."""

    theta: float = 10000.0
    """base of the geometric series of wavelengths"""
    type: RopeType = "default"
    """default, linear (positions divided), llama3 (long wavelengths divided), yarn, longrope (each
    wavelength multiplied by a factor of its own)"""
    factor: float = 1.0
    """the ratio of the new context to the original one"""
    original_max_position_embeddings: int | None = None
    """context length of pretraining (llama3, yarn, longrope; query_beta)"""
    low_freq_factor: float = 1.0
    """llama3: wavelengths beyond original length / this are divided by `factor`"""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original length / this are kept"""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context are kept"""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this are divided by `factor`"""
    attention_factor: float | None = None
    """scale of cosine and sine; unset: for yarn 0.1 ln(factor) + 1 (Peng et al. 2023), for longrope
    sqrt(1 + ln(factor) / ln(original length)) (Ding et al. 2024)"""
    truncate: bool = True
    """yarn: whether the ends of the ramp are rounded outwards to whole dimensions"""
    short_factor: tuple[float, ...] = ()
    """longrope: for each pair the divisor of its frequency in texts up to the original length"""
    long_factor: tuple[float, ...] = ()
    """longrope: the same in longer texts"""
    fraction: float = 1.0
    """share of each head's dimensions that is rotated, from the first on"""
    query_beta: float = 0.0
    """rotated queries are multiplied by 1 + this * ln(1 + floor(position / original length))"""

    def __post_init__(self) -> None:
        check(self.type in ROPE_TYPES, "type", f"must be one of {', '.join(ROPE_TYPES)}")
        check(0 < self.theta < math.inf, "theta", "must be positive and finite")
        check(1 <= self.factor < math.inf, "factor", "must be at least 1 and finite")
        check(0 <= self.query_beta < math.inf, "query_beta", "must be at least 0 and finite")
        check(
            (self.type in ("default", "linear") and not self.query_beta)
            or self.original_max_position_embeddings,
            "original_max_position_embeddings",
            f"must be given for rope type {self.type}",
        )
        check(0 < self.fraction <= 1, "fraction", "must be above 0 and at most 1")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            fit = bool(factors) == (self.type == "longrope")
            fit = fit and all(0 < factor < math.inf for factor in factors)
            check(fit, name, "must hold positive and finite numbers, for longrope alone")
        check(
            self.type != "llama3" or self.high_freq_factor > self.low_freq_factor,
            "high_freq_factor",
            "must be larger than low_freq_factor",
        )


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of every MLP: each token goes to the experts of its largest
    router logits."""

    number: int
    """experts of a layer"""
    per_token: int
    """experts that a token goes to"""
    width: int
    """inner width of one expert's SwiGLU"""
    renormalise: bool = True
    """whether the weights of a token's experts sum to 1; else they are softmax over all experts"""
    bias: bool = False
    """biases on the router and on the experts' projections"""
    limit: float | None = None
    """gpt-oss: SwiGLU (up + 1) gate sigmoid(alpha gate) with gate and up clamped to this; None:
    silu(gate) up"""
    alpha: float = 1.702
    """gpt-oss: the factor in its SwiGLU"""

    def __post_init__(self) -> None:
        check_counts(self, "number", "per_token", "width")
        check(
            self.per_token <= self.number,
            "per_token",
            f"must be at most the number of experts ({self.number})",
        )
        check(self.limit is None or self.limit > 0, "limit", "must be above 0, or None")


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder-only transformer. Hashable, for static arguments."""

    model_type: str
    """the family, as Hugging Face names it; it decides how files are read, and no computation"""
    vocab_size: int
    """rows of the embedding"""
    hidden_size: int
    """width of the residual stream"""
    intermediate_size: int
    """width of the gated MLP"""
    num_layers: int
    """transformer blocks"""
    num_heads: int
    """query heads"""
    kv_heads: int
    """key-value heads, each shared by num_heads / kv_heads query heads"""
    head_dim: int
    """width of one head; it may differ from hidden_size / num_heads"""
    rms_norm_eps: float = 1e-5
    """added to the mean square in norms"""
    ropes: tuple[RopeConfig, ...] = (RopeConfig(),)
    """rotary position embeddings, among which layers choose"""
    layer_ropes: tuple[int, ...] = ()
    """for each layer the index of its RoPE in `ropes`, or -1: no rotation; (): all 0"""
    tie_word_embeddings: bool = False
    """whether the head is the embedding itself"""
    qkv_bias: bool = False
    """biases on the query, key and value projections"""
    out_bias: bool = False
    """bias on the attention's output projection"""
    mlp_bias: bool = False
    """biases on the MLP's projections"""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """of the MLP's gate: SiLU, or GELU in its tanh approximation"""
    norms: Literal["pre", "post", "sandwich"] = "pre"
    """RMSNorm on the inputs of attention and MLP, on their outputs, or on both"""
    norm_offset: float = 0.0
    """added to the weights of all norms"""
    wide_norms: bool = False
    """whether norms multiply by their weights in float32, before they round to the model's dtype"""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """RMSNorm of queries and keys before the rotation: none, over each head, or over all heads"""
    attention_scale: float | None = None
    """factor of attention scores; unset: head_dim ** -0.5"""
    attention_softcap: float | None = None
    """attention scores s become softcap * tanh(s / softcap); unset: they stay"""
    embed_scale: float = 1.0
    """factor of token vectors, rounded to the model's dtype"""
    residual_scale: float = 1.0
    """factor of what attention and MLP add to the residual stream"""
    logits_divisor: float = 1.0
    """divides the logits"""
    final_softcap: float | None = None
    """like attention_softcap for logits, after the divisor"""
    sliding_windows: tuple[int, ...] = ()
    """for each layer the number of positions that a token sees, with its own; 0: all; (): all 0"""
    sinks: bool = False
    """gpt-oss: each head has a logit beside those of its keys, whose weight is dropped"""
    experts: ExpertsConfig | None = None
    """experts in place of every MLP; None: one MLP of `intermediate_size`"""
    max_position_embeddings: int = 2048
    """context length"""
    initializer_range: float = 0.02
    """standard deviation of random weights"""
    bos_token_id: int | None = None
    """first token of a text, if the model has one"""
    eos_token_id: int | tuple[int, ...] | None = None
    """token or tokens at which generation stops"""

    part_of: str | None = None
    """the `model_type` of the multimodal folder whose text half this is; it decides how files are
    read, and no computation"""
    fused: bool = False
    """whether qkv_proj is stored in place of q_proj, k_proj and v_proj, one above the other, and
    gate_up_proj in place of gate_proj and up_proj"""

    def __post_init__(self) -> None:
        check_counts(self, "vocab_size", "hidden_size", "intermediate_size", "num_layers")
        check_counts(self, "num_heads", "kv_heads", "head_dim", "max_position_embeddings")
        check(
            self.num_heads % self.kv_heads == 0,
            "kv_heads",
            f"must divide the number of query heads ({self.num_heads})",
        )
        check(self.head_dim % 2 == 0, "head_dim", "must be even (pairs are rotated)")
        for name in SCALES:
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, name, "must be positive and finite")
        check(
            self.experts is None or self.activation == "silu",
            "activation",
            f"is {self.activation}; experts are computed with silu alone",
        )
        check(
            self.experts is None or self.num_layers * self.experts.number <= MOST_EXPERTS,
            "experts",
            f"must be at most {MOST_EXPERTS:,} in all layers together",
        )
        windows = self.sliding_windows or (0,) * self.num_layers
        object.__setattr__(self, "sliding_windows", tuple(windows))
        check(
            len(windows) == self.num_layers and all(window >= 0 for window in windows),
            "sliding_windows",
            f"must hold a length of at least 0 for each of the {self.num_layers} layers",
        )
        chosen = self.layer_ropes or (0,) * self.num_layers
        object.__setattr__(self, "layer_ropes", tuple(chosen))
        check(
            len(chosen) == self.num_layers and all(-1 <= i < len(self.ropes) for i in chosen),
            "layer_ropes",
            f"must hold an index from -1 to {len(self.ropes) - 1} for each of the"
            f" {self.num_layers} layers",
        )
        for rope in self.ropes:
            check(rope.fraction == self.ropes[0].fraction, "ropes", "must rotate the same fraction")
            pairs = (int(self.head_dim * rope.fraction) + 1) // 2
            for name in ("short_factor", "long_factor"):
                check(
                    len(getattr(rope, name)) in (0, pairs),
                    name,
                    f"must hold a number for each of the {pairs} rotated pairs",
                )
            check(
                not rope.query_beta or len(self.ropes) == 1,
                "query_beta",
                "must be 0 where layers have several RoPEs",
            )

    @property
    def switches_at(self) -> int | None:
        """The length beyond which a text has other RoPEs (longrope); None: there is none."""
        lengths = [r.original_max_position_embeddings for r in self.ropes if r.type == "longrope"]
        return min(lengths, default=None)

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of a layer's projections."""
        return FUSED if self.fused else SEPARATE

    def adapted(self, lora: LoraConfig) -> list[str]:
        """Return the projections, and lm_head, on which an adapter of this form is."""
        return [name for name in (*self.projections, "lm_head") if name in lora.modules]

    @property
    def mlp_width(self) -> int:
        """The inner width of the MLP, or of one expert."""
        return self.intermediate_size if self.experts is None else self.experts.width

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens at which generation stops."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id


@dataclass(frozen=True)
class ModelConfig:
    """The base model, which is never changed."""

    path: str | None = often(None, place=True)
    """Hub id or local folder in Hugging Face layout; unset: the base of the knowledge world"""
    dtype: Literal["auto", "float32", "bfloat16"] = often("auto")
    """dtype of the base's weights and products; auto: bfloat16 on accelerators, and on CPUs with
    bfloat16 instructions if the checkpoint is stored in bfloat16; otherwise float32"""
    remat: Literal["none", "layer", "dots"] = "none"
    """what the backward pass recomputes to save memory: nothing, layers, or all but products"""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """attention kernel: xla everywhere, cudnn on NVIDIA GPUs, splash on TPUs; refused elsewhere"""
    quantise: Quantise = often("none", added=True)
    """hold the projections of layers in 8 or 4 bits (QLoRA); they are quantised while loading"""

    def __post_init__(self) -> None:
        check_named(self)
        check(self.path != "", "path", "must be a Hub id or a folder")

    def jax_dtype(self, mesh: Mesh, stored: str | None) -> jnp.dtype:
        """Return the dtype in which devices of `mesh` hold a checkpoint stored as `stored`."""
        import jax.numpy as jnp

        if self.dtype != "auto":
            return jnp.dtype(self.dtype)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        wide = on_cpu and not (stored == "bfloat16" and cpu_multiplies_bfloat16())
        return jnp.dtype(jnp.float32 if wide else jnp.bfloat16)


def cpu_multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Return whether this CPU has instructions for bfloat16 products; False where no file says."""
    try:
        words = Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(words)


# The names of before, which are read for one release.
for old, new in {
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "dropout": "lora_dropout",
}.items():
    rename(f"lora.{old}", f"lora.{new}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021): W + lora_alpha / r * B A, with W frozen.

    The fields have the names of PEFT's LoraConfig.
    """

    r: int = often(8, of_adapter=True)
    """rank: rows of A, columns of B"""
    lora_alpha: float = setting(16.0, of_adapter=True)
    """the update is scaled by lora_alpha / r"""
    target_modules: tuple[str, ...] = often(("q_proj", "v_proj", "lm_head"), of_adapter=True)
    """projections with an adapter; all-linear: all projections of every layer, but not lm_head"""
    lora_dropout: float = 0.0
    """share of A's inputs that is dropped while training"""
    use_rslora: bool = setting(False, of_adapter=True, added=True)
    """rank-stabilised LoRA (Kalajdzievski 2023): scaled by lora_alpha / sqrt(r)"""
    use_dora: bool = setting(False, of_adapter=True, added=True)
    """DoRA (Liu et al. 2024): the lengths of the weights' rows are trained as well"""
    placement: Placement | None = setting(None, option=False)
    """where an adapter that was read differs between layers; None: it does not"""

    def __post_init__(self) -> None:
        check(1 <= self.r <= LARGEST_RANK, "r", f"must be an integer from 1 to {LARGEST_RANK}")
        alpha = self.lora_alpha
        check(math.isfinite(alpha) and alpha > 0, "lora_alpha", "must be a positive number")
        check(0 <= self.lora_dropout < 1, "lora_dropout", "must be at least 0 and below 1")
        allowed = ", ".join(LORA_TARGETS)
        check(len(self.target_modules) > 0, "target_modules", f"must name a layer ({allowed})")
        unknown = [name for name in self.target_modules if name not in LORA_TARGETS]
        check(
            not unknown,
            "target_modules",
            f"must name layers of the model; {', '.join(unknown)} matches none"
            f" (allowed: {allowed})",
        )

    def placed(self, name: str, layer: int) -> tuple[int, float]:
        """Return (rank, factor of B A) of a projection in a layer, or of lm_head in layer 0; (0,
        0.0) where it has no adapter."""
        r, alpha = self.r, self.lora_alpha
        if name not in self.modules:
            return 0, 0.0
        if self.placement is not None:
            parent = "self_attn" if name in ATTENTION_PROJECTIONS else "mlp"
            module = self.placement.module(parent, name, layer)
            if not self.placement.covers(module):
                return 0, 0.0
            r, alpha = self.placement.rank_and_alpha(module, r, alpha)
        return r, alpha / (math.sqrt(r) if self.use_rslora else r)

    def trained_rows(self, name: str) -> tuple[int, ...] | None:
        """Return the rows of embed_tokens or lm_head that are trained as well, () for all of them;
        None: none."""
        return None if self.placement is None else self.placement.trained_rows(name)

    @property
    def scale(self) -> float:
        """The factor of B A where no `placement` gives another."""
        return replace(self, placement=None).placed(min(self.modules), 0)[1]

    @property
    def kind(self) -> str:
        """Return the name of the kind of adapter, for text."""
        return ("rs" if self.use_rslora else "") + ("DoRA" if self.use_dora else "LoRA")

    @property
    def distributions(self) -> tuple[str, ...]:
        """The distributions of parameters that fit: "any", those of "matrices" A and B that may be
        zero in some layers, and "plain" ones, which give noise to all of A and B."""
        rows = map(self.trained_rows, ("embed_tokens", "lm_head"))
        if self.use_dora or any(ids is not None for ids in rows):
            return ("any",)
        return ("any", "matrices") if self.placement else ("any", "matrices", "plain")

    @property
    def form(self) -> dict[str, Any]:
        """Return the settings that two adapters must share to be exchanged in a model."""
        names = ("r", "lora_alpha", "use_rslora", "use_dora", "placement")
        return {name: getattr(self, name) for name in names} | {
            "target_modules": tuple(sorted(self.modules))
        }

    @property
    def modules(self) -> frozenset[str]:
        """The projections in `target_modules`, with all-linear expanded."""
        expanded = set(self.target_modules) - {ALL_LINEAR}
        if ALL_LINEAR in self.target_modules:
            expanded |= set(LAYER_PROJECTIONS)
        return frozenset(expanded)


@dataclass(frozen=True)
class UncertainLora(LoraConfig):
    """LoRA with a distribution of A: independent normals around lora_A with the standard deviations
    lora_A_root squared, the posterior of BLoB (Wang et al. 2024, section 3.1)."""
