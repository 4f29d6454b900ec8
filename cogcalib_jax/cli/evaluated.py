"""The models of an evaluation: what each is called, and which of them share a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cogcalib_jax.cli.eval_config import BARE, EvalConfig, read_trained_run
from cogcalib_jax.cli.prepare import base_path
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import adapter_hash, base_hash, require_trained_on
from cogcalib_jax.hf.adapter_config import WEIGHTS_FILE, read_lora_config
from cogcalib_jax.hf.download import model_folder
from cogcalib_jax.hf.tokenizer import tokenizer_key
from cogcalib_jax.models.config import LoraConfig
from cogcalib_jax.world.base import base_place


@dataclass(frozen=True)
class Evaluated:
    """One model: a base, with or without an adapter."""

    name: str
    """its line in tables, and its folder where there are several"""
    base: str | Path
    adapter: str | None
    run: RunConfig | None = None
    """the run it comes from, where it does"""
    lora: LoraConfig | None = None
    """rank, alpha and targets of the adapter"""
    members: tuple[Evaluated, ...] = ()
    """of an ensemble, whose own adapter is None"""

    @property
    def tokenizer_from(self) -> str | None:
        """The adapter whose folder may hold a tokenizer of its own; one for all of an ensemble."""
        return self.members[0].tokenizer_from if self.members else self.adapter

    @cached_property
    def reads_with(self) -> tuple[str, str]:
        """Equal for models that turn a text into the same token ids."""
        return str(self.base), tokenizer_key(self.base, self.tokenizer_from)

    @property
    def words(self) -> str:
        """Of what it is made."""
        members = ", ".join(member.name for member in self.members)
        return f"{members or self.adapter or 'no adapter'} on {self.base}"

    def weights(self) -> dict[str, str | None]:
        """Hashes of its files: equal ones mean the very same model."""
        adapter = None
        if self.members:
            adapter = " ".join(str(member.weights()["adapter"]) for member in self.members)
        if self.adapter is not None:
            adapter = adapter_hash(self.adapter)
        return {"base": base_hash(model_folder(self.base)), "adapter": adapter}


def evaluated_models(config: EvalConfig, *, look_only: bool = False) -> list[Evaluated]:
    """What `config` asks for, in that order; bases of worlds are built where they are missing.

    look_only: nothing is built, and no weight is read to see whether an adapter belongs to its
    base. Raises UserError for adapters that cannot be read, or were trained on another base, and
    for those that cannot be averaged as asked.
    """
    models = _single_models(config, look_only)
    if config.mc_passes is not None:
        for model in models:
            if model.lora is None or model.lora.lora_dropout == 0:
                raise UserError(
                    f"{model.adapter or model.base}: was trained without dropout, so mc_passes has"
                    " nothing to sample; leave it out, or train with --compare mc_dropout,sft"
                )
    return [_ensemble(models)] if config.ensemble else models


def _ensemble(members: Sequence[Evaluated]) -> Evaluated:
    first = members[0]
    if len(members) < 2 or first.lora is None:
        raise UserError(
            "ensemble: needs at least two runs or adapters; give more --run or --adapter"
        )
    if len(by_base(members)) > 1:
        raise UserError(
            f"ensemble: {', '.join(m.name for m in members)} differ in base, tokenizer, rank,"
            " alpha, targets or dropout, so one base cannot serve them together; average what"
            " was trained alike"
        )
    return Evaluated("ensemble", first.base, None, first.run, first.lora, tuple(members))


def _single_models(config: EvalConfig, look_only: bool) -> list[Evaluated]:
    models = []
    if config.run:
        bases: dict[tuple[object, ...], str | Path] = {}
        runs = [read_trained_run(name) for name in config.run]
        for name, place, run in zip(_names(config.run), config.run, runs, strict=True):
            made_from = (run.model.path, run.data, run.world, run.pretrain, run.seed)
            if config.model.path is None and made_from not in bases:
                bases[made_from] = _base_of(run, look_only)
            base = config.model.path or bases[made_from]
            adapter = str(Path(place) / "adapter")
            models.append(_with_adapter(name, base, adapter, run, look_only=look_only))
        return models
    base = config.model.path
    assert base is not None  # EvalConfig holds that there is a run or a base
    adapters = config.adapter or (BARE,)
    names = _names(["base" if adapter == BARE else adapter for adapter in adapters])
    for name, adapter in zip(names, adapters, strict=True):
        bare = adapter == BARE
        models.append(
            Evaluated(name, base, None)
            if bare
            else _with_adapter(name, base, adapter, look_only=look_only)
        )
    return models


def _base_of(run: RunConfig, look_only: bool) -> str | Path:
    if look_only and run.model.path is None:
        return base_place(run.world, run.pretrain, run.seed)[-1]
    return base_path(run.model, run.world, run.pretrain, run.seed)


def _with_adapter(
    name: str,
    base: str | Path,
    adapter: str,
    run: RunConfig | None = None,
    *,
    look_only: bool,
) -> Evaluated:
    lora = read_lora_config(adapter)
    if not (Path(adapter) / WEIGHTS_FILE).is_file():
        raise UserError(f"{adapter}: no {WEIGHTS_FILE}; give a folder that holds a whole adapter")
    if not look_only:
        require_trained_on(Path(adapter), model_folder(base))
    return Evaluated(name, base, adapter, run, lora)


def _names(paths: Sequence[str]) -> list[str]:
    """The ends of paths, as long as it takes for each to be another: cols, or world-0-cols."""
    parts = [Path(path).resolve().parts for path in paths]
    parts = [p[:-1] if p[-1] == "adapter" else p for p in parts]

    def ends(depth: int) -> list[str]:
        return ["-".join(part.strip("/") for part in p[-depth:]) for p in parts]

    depth = 1
    while len(set(ends(depth))) < len(paths) and depth < max(map(len, parts)):
        depth += 1
    if len(set(ends(depth))) < len(paths):
        raise UserError(f"{', '.join(paths)}: one of them is named twice; name each once")
    return ends(depth)


def by_base(models: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Models that one loaded base serves, their LoRA parameters being swapped."""
    groups: dict[tuple[object, ...], list[Evaluated]] = {}
    for model in models:
        lora = model.lora
        shape = lora and (lora.r, lora.lora_alpha, lora.modules, lora.lora_dropout)
        groups.setdefault((*model.reads_with, shape), []).append(model)
    return list(groups.values())
