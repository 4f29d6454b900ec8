"""A config with every kind of field, and how the tests load it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from cogcalib_jax.configlib.loading import from_yaml, load_config
from cogcalib_jax.errors import UserError, check


@dataclass(frozen=True)
class Adapter:
    """A section."""

    rank: int = 8
    """Rank of the update."""
    scale: float = 2.0
    """Its scale; a doc line
    over two lines."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Projections that get an adapter."""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "rank", "must be at least 1")


@dataclass(frozen=True)
class Method:
    term: Literal["none", "ls", "ecp"] | None = None
    """Calibration term."""
    weight: float | None = None
    """Its weight."""
    resolved: str = ""
    """What __post_init__ made of the term."""

    def __post_init__(self) -> None:
        check(self.weight is None or self.weight >= 0, "weight", "must be at least 0, or none")
        expected = self.term or "ls"
        check(self.resolved in ("", expected), "resolved", f"contradicts term {self.term}")
        object.__setattr__(self, "resolved", expected)


@dataclass(frozen=True)
class Model:
    adapter: Adapter = field(default_factory=lambda: Adapter(rank=4, scale=1.0))
    """The adapter, with defaults of its own here."""
    path: str | None = None
    """Folder or Hub name."""


@dataclass(frozen=True)
class Config:
    name: str = "run"
    """Name of the run."""
    seed: int = 0
    """Seed."""
    resume: bool = False
    """Continue."""
    run_dir: Path | None = None
    """Where to write."""
    compare: tuple[str, ...] = ()
    """Methods to compare."""
    buckets: tuple[int, ...] = (32, 64)
    """Lengths."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW."""
    limit: int | Literal["auto"] = "auto"
    """A number or a word."""
    devices: Literal[1, 2, 8] = 1
    """Devices."""
    model: Model = field(default_factory=Model)
    """The model."""
    method: Method = field(default_factory=Method)
    """The method."""

    def __post_init__(self) -> None:
        check(
            self.model.adapter.rank <= 64 or self.devices > 1,
            "model.adapter.rank",
            "must be at most 64 on one device",
        )


def load(*argv: str, preset: Path | None = None, cls: type = Config):
    return load_config(cls, argv, prog="prog.py", description="Does it.", default_preset=preset)


def refusal(text: str | None = None, *argv: str, cls: type = Config) -> str:
    """The one line with which a preset named p.yaml, or else a command line, is refused."""
    with pytest.raises(UserError) as caught:
        load(*argv, cls=cls) if text is None else from_yaml(cls, text, "p.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nested(path: str, written: str) -> str:
    """The preset that gives one field by its dotted path, a section to a line."""
    *sections, name = path.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    return "\n".join([*lines, f"{'  ' * len(sections)}{name}: {written}"])
