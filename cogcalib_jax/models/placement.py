"""Adapters that differ between layers: which modules have one, of which rank and alpha.

The rules are those of PEFT 0.21 (`check_target_module_exists` in tuners/tuners_utils.py and
`get_pattern_key` in utils/other.py), by which an adapter_config.json is read everywhere. Needs no
JAX.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# What stands before "layers." in the names of modules, and the head's name beside it. The second
# and third are text halves of multimodal models, in transformers 5 and 4.
PREFIXES = {
    "model.": "lm_head",
    "model.language_model.": "lm_head",
    "language_model.model.": "language_model.lm_head",
}
Names = str | tuple[str, ...]
"""a regular expression for whole names, or names and ends of names"""


@dataclass(frozen=True)
class Placement:
    """The settings of an adapter_config.json that decide which modules have an adapter, and its
    rank and alpha where they are not `r` and `lora_alpha`. Fields have PEFT's names."""

    target_modules: Names
    exclude_modules: Names = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    prefix: str = "model."
    """what stands before "layers." in the names that the settings match"""

    def module(self, parent: str, projection: str, layer: int) -> str:
        """Return the name of a module in the model that the adapter was made for."""
        if projection == "lm_head":
            return PREFIXES[self.prefix]
        return f"{self.prefix}layers.{layer}.{parent}.{projection}"

    def covers(self, module: str) -> bool:
        """Return whether a module has an adapter."""
        saved = (re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save)
        if matches(module, self.exclude_modules) or any(saved):
            return False
        names = self.target_modules
        if isinstance(names, str) and names.lower() == "all-linear":
            return not module.endswith(("lm_head", "embed_tokens"))
        if not matches(module, names):
            return False
        if isinstance(names, str) or module in names or not self.layers_to_transform:
            return True
        parents = [rf"(?:^|.*?\.){pattern}" for pattern in self.layers_pattern]
        found = (re.match(rf"{parent}\.(\d+)\.", module) for parent in parents or [r".*?\.[^.]*"])
        layer = next(filter(None, found), None)
        return layer is not None and int(layer[1]) in self.layers_to_transform

    def trained_rows(self, name: str) -> tuple[int, ...] | None:
        """Return the rows of embed_tokens or lm_head that were trained as well, () for all of them;
        None: none."""
        if any(module.rpartition(".")[2] == name for module in self.modules_to_save):
            return ()
        by_module = {m.rpartition(".")[2]: ids for m, ids in self.trainable_token_indices}
        return by_module.get(name)

    def rank_and_alpha(self, module: str, r: int, lora_alpha: float) -> tuple[int, float]:
        """Return the rank and alpha of a module; `r` and `lora_alpha` hold where no pattern
        matches."""
        return (
            _first_match(self.rank_pattern, module, r),
            _first_match(self.alpha_pattern, module, lora_alpha),
        )


def text_placement(targets: Iterable[str]) -> Placement | None:
    """Return the placement of an adapter on these projections, and lm_head, of every layer of a
    text half, whose vision tower may have projections of these names; None without any layer."""
    prefix = "model.language_model."
    inner = sorted(set(targets) - {"lm_head"})
    if not inner:
        return None
    names = rf"{re.escape(prefix)}layers\.\d+\.\w+\.({'|'.join(inner)})"
    return Placement(names + ("|lm_head" if "lm_head" in targets else ""), prefix=prefix)


def matches(module: str, names: Names) -> bool:
    """Return whether a regular expression matches the whole name, or names hold it or an end of
    it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def _first_match(patterns: Iterable[tuple[str, float]], module: str, otherwise: float) -> float:
    found = (value for key, value in patterns if re.match(rf"(.*\.)?({key})$", module))
    return next(found, otherwise)
