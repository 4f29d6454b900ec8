"""Floating-point operations of a LoRA update, by formula.

The formula counts the work the update asks for, not what a compiler makes of it: XLA's own count
includes what is computed again to save memory, and misses hand-written kernels. A product with N
frozen weights costs 2 N operations a token forward and 2 N backward (to its input; the weights get
no gradient), one with N trained weights 2 N more. Causal attention costs 2 S H hd a token and layer
forward (a token sees S / 2 others on average, in two products) and twice that backward. The head
works at scored positions only.

    LoRA FLOPs per token = 4 (N_linear + V D) + 6 N_lora + 3 (2 S H hd L)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cogcalib_jax.models.config import LAYER_PROJECTIONS, DecoderConfig, LoraConfig


def update_flops(
    config: DecoderConfig,
    lora: LoraConfig,
    lengths: Sequence[int] | np.ndarray,
    scored: int,
    classes: int,
) -> float:
    """Operations of one update over examples of `lengths` real tokens each.

    scored: positions whose logits enter the loss, over all examples. classes: logits formed at
    each of them, the vocabulary's size or the number of options.
    """
    return _flops(config, lora, lengths, scored, classes, passes=2, trained=1)


def forward_flops(
    config: DecoderConfig,
    lora: LoraConfig | None,
    lengths: Sequence[int] | np.ndarray,
    scored: int,
    classes: int,
) -> float:
    """Operations of a forward pass over the same; `lora` None for a base alone."""
    return _flops(config, lora, lengths, scored, classes, passes=1, trained=0)


def pretraining_flops(config: DecoderConfig, lengths: Sequence[int] | np.ndarray) -> float:
    """Operations of training every weight on texts of `lengths` tokens, scored at each of them."""
    lengths = np.asarray(lengths, np.float64)
    scored = int(lengths.sum())
    forward = forward_flops(config, None, lengths, scored, config.vocab_size)
    return 3 * forward


def _flops(
    config: DecoderConfig,
    lora: LoraConfig | None,
    lengths: Sequence[int] | np.ndarray,
    scored: int,
    classes: int,
    *,
    passes: int,
    trained: int,
) -> float:
    """passes: forward 1, with the gradient of inputs 2; trained: 1 for the adapter's gradient."""
    lengths = np.asarray(lengths, np.float64)
    shapes = layer_shapes(config)
    rank, modules = (0, frozenset()) if lora is None else (lora.r, lora.modules)
    linear = config.num_layers * sum(out * into for out, into in shapes.values())
    adapters = config.num_layers * sum(
        rank * (out + into) for name, (out, into) in shapes.items() if name in modules
    )
    # The two products of attention have two inputs each, so their backward pass costs twice.
    attention = 2 * (2 * passes - 1) * config.num_heads * config.head_dim * config.num_layers
    adapted = 2 * (passes + trained)
    trunk = np.sum(lengths * (2 * passes * linear + adapted * adapters + attention * lengths))
    head_adapter = rank * (config.hidden_size + classes) if "lm_head" in modules else 0
    head = 2 * passes * classes * config.hidden_size + adapted * head_adapter
    return float(trunk + scored * head)


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(out, in) features of each projection of one layer."""
    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = (n * config.head_dim for n in (config.num_heads, config.kv_heads))
    shapes = [
        *((heads, width), (kv_heads, width), (kv_heads, width), (width, heads)),
        *((inner, width), (inner, width), (width, inner)),
    ]
    return dict(zip(LAYER_PROJECTIONS, shapes, strict=True))
