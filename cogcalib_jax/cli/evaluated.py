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
    """A model under evaluation: a base with or without an adapter, or an ensemble."""

    name: str
    """its line in tables, and its folder if there are several models"""
    base: str | Path
    adapter: str | None
    run: RunConfig | None = None
    """the run that trained it, if any"""
    lora: LoraConfig | None = None
    """rank, alpha and targets of the adapter"""
    members: tuple[Evaluated, ...] = ()
    """the models of an ensemble, whose own adapter is None"""

    @property
    def tokenizer_from(self) -> str | None:
        """The adapter whose folder may hold a tokenizer; an ensemble has one for all members."""
        return self.members[0].tokenizer_from if self.members else self.adapter

    @cached_property
    def reads_with(self) -> tuple[str, str]:
        """A key that is equal for models with the same token ids for every text."""
        return str(self.base), tokenizer_key(self.base, self.tokenizer_from)

    @property
    def words(self) -> str:
        """A description of the model by its adapter and its base."""
        members = ", ".join(member.name for member in self.members)
        return f"{members or self.adapter or 'no adapter'} on {self.base}"

    def weights(self) -> dict[str, str | None]:
        """Return hashes of base and adapter, which are equal for the same model."""
        adapter = None
        if self.members:
            adapter = " ".join(str(member.weights()["adapter"]) for member in self.members)
        if self.adapter is not None:
            adapter = adapter_hash(self.adapter)
        return {"base": base_hash(model_folder(self.base)), "adapter": adapter}


def evaluated_models(config: EvalConfig, *, look_only: bool = False) -> list[Evaluated]:
    """Return the models that `config` names, in that order; a missing base of a world is built.

    Args:
        look_only: whether to build nothing and to read no weight, so that an adapter of another
            base passes.

    Raises:
        UserError: an adapter that cannot be read, was trained on another base, or cannot be
            averaged.
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
                if look_only and run.model.path is None:
                    bases[made_from] = base_place(run.world, run.pretrain, run.seed)[-1]
                else:
                    bases[made_from] = base_path(run.model, run.world, run.pretrain, run.seed)
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
        require_trained_on(Path(adapter), model_folder(base), str(base))
    return Evaluated(name, base, adapter, run, lora)


def _names(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that differ from one another: cols, or world-0-cols."""
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
    """Group models that share a loaded base and swap only LoRA parameters."""
    groups: dict[tuple[object, ...], list[Evaluated]] = {}
    for model in models:
        lora = model.lora
        shape = lora and (*lora.form.values(), lora.lora_dropout)
        groups.setdefault((*model.reads_with, shape), []).append(model)
    return list(groups.values())
