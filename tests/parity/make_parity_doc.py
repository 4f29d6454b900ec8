"""Write docs/results/parity.md: every family against transformers and PEFT (needs torch).

python -m tests.parity.make_parity_doc              # all, or those named behind it
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import contextlib  # noqa: E402
import io  # noqa: E402
import tempfile  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

from cogcalib_jax.models.config import SCALES  # noqa: E402
from cogcalib_jax.models.families import from_hf  # noqa: E402
from tests.golden.families import FAMILIES  # noqa: E402
from tests.golden.make_golden import torch_model  # noqa: E402
from tests.parity import measures  # noqa: E402

DOC = Path(__file__).parents[2] / "docs" / "results" / "parity.md"
TEXT = """\
# Results: agreement with transformers and PEFT

Written by `python -m tests.parity.make_parity_doc`. `pytest tests/parity` checks every number
against its bound. {versions}; float32 on CPU.

Models have random weights, 3 layers, width 32 and 64 tokens, one for each family and flag. The
table shows that the same function is computed. How well a checkpoint of billions of weights is
served must be seen on it.

- **logits**: the largest absolute difference over {positions} positions, from a checkpoint that
  transformers saved in shards. Bound 1e-4.
- **LoRA gradients**: the largest difference in any A or B, relative to the largest gradient of
  that matrix. The adapter is on every linear layer and the head, and PEFT saved it. Bound 1e-4.
- **merged**: the largest absolute difference of logits between PEFT's base with its adapter and
  the merged folder, read by transformers and by us. Bound 1e-4.
- **tokens equal**: greedy generation of {new} tokens for each of {prompts} prompts of unequal
  length in one padded batch with a cache, against transformers one prompt at a time without
  padding or cache. Prompts at which the two most probable tokens come closer than 1e-3 are not
  used.

| family | flags | logits | LoRA gradients | merged | tokens equal |
|---|---|---|---|---|---|
{rows}
"""


def flags(raw: dict) -> str:
    """What sets this model apart, in words."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    layout = "rope_parameters" if "rope_parameters" in raw else "rope_scaling" if rope else ""
    fraction = raw.get("partial_rotary_factor", 1)
    heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
    config = from_hf(raw, "config.json")
    scales = {name: getattr(config, name) for name in SCALES}
    said = [
        raw["model_type"],
        "tied" if raw["tie_word_embeddings"] else "untied",
        f"RoPE {kind}" + (f" in {layout}" if layout else ""),
        f"{heads} heads, {kv_heads} for keys and values" if heads != kv_heads else "",
        f"head_dim {raw['head_dim']}" if "head_dim" in raw else "",
        f"window {raw['sliding_window']}" if raw.get("sliding_window") else "",
        f"from layer {raw['max_window_layers']} on" if "max_window_layers" in raw else "",
        f"RoPE on {fraction:g} of a head" if fraction != 1 else "",
        "fused projections" if raw["model_type"] == "phi3" else "",
        "RoPE in some layers" if raw["model_type"] == "smollm3" else "",
        "scaled queries" if raw["model_type"] == "ministral3" else "",
        "QKV bias" if raw["model_type"] == "qwen2" else "",
        "" if config.qk_norm == "none" else f"QK-norm of each {config.qk_norm}",
        "" if config.norms == "pre" else f"norms {config.norms}",
        "" if config.activation == "silu" else config.activation,
        *(f"{name} {value:.3g}" for name, value in scales.items() if value not in (None, 1)),
        "" if len(config.ropes) == 1 else "a RoPE for each layer type",
        "attention bias" if raw.get("attention_bias") else "",
        "MLP bias" if raw.get("mlp_bias") else "",
        f"{config.experts.number} experts, {config.experts.per_token} a token"
        if config.experts
        else "",
        "attention sinks" if config.sinks else "",
    ]
    return ", ".join(word for word in said if word)


def row(name: str, raw: dict, scratch: Path) -> str:
    model = torch_model(raw)
    folder = scratch / "base"
    model.save_pretrained(folder, max_shard_size="20KB")
    gradients = measures.gradient_differences(raw, folder, scratch / "peft")
    expected, ours, _ = measures.greedy_continuations(model, folder)
    pairs = [pair for a, b in zip(expected, ours, strict=True) for pair in zip(a, b, strict=True)]
    cells = [
        name,
        flags(raw),
        f"{measures.logits_difference(model, folder):.1e}",
        f"{max(gradients.values()):.1e}",
        f"{measures.merged_difference(raw, folder, scratch):.1e}",
        f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
    ]
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    lines = DOC.read_text(encoding="utf-8").splitlines() if names else []
    rows, before = [], {line.split(" ")[1]: line for line in lines if line.startswith("| ")}
    for name, raw in FAMILIES.items():
        if name in before and name not in names:
            rows.append(before[name])
            continue
        # What libraries and the merge print is no news here.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            rows.append(row(name, raw, Path(scratch)))
        print(rows[-1], flush=True)
    versions = ", ".join(f"{n} {version(n)}" for n in ("jax", "torch", "transformers", "peft"))
    text = TEXT.format(
        versions=versions,
        positions=measures.TOKENS.size,
        new=measures.NEW_TOKENS,
        prompts=len(measures.PROMPT_LENGTHS),
        rows="\n".join(rows),
    )
    DOC.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
