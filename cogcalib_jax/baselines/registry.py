"""The baselines of a comparison by name, with settings as in "tfb(criterion=flips)".

`rows` defines them. It brings JAX, which this module does not import before a name is looked up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from cogcalib_jax.registry import Entry, Registry, split_spec


@dataclass(frozen=True)
class Baseline:
    """The settings of a row that is no loss; it is made from plain fine-tuning."""

    own_training: ClassVar[bool] = False
    """whether it trains in another way than the run's optimizer does"""
    of_last_update: ClassVar[bool] = False
    """whether its distribution is known after the last update alone"""
    single_token: ClassVar[bool] = False
    """whether every option must be one token"""
    adapters: ClassVar[str] = "plain"
    """on which adapters it works: one of `LoraConfig.distributions`"""
    one_pass: ClassVar[bool] = False
    """whether an answer costs one forward pass"""


BASELINES: Registry[Baseline] = Registry("baseline", module="cogcalib_jax.baselines.rows")


def is_baseline(entry: str) -> bool:
    """Return whether an entry of a comparison is a baseline, with settings or without."""
    return entry.partition("(")[0].strip() in BASELINES.listed()


def baseline_label(spec: str) -> str:
    """Return the folder name of a baseline with its settings: tfb-criterion=flips."""
    name, settings = split_spec(BASELINES.spec(BASELINES.make(spec)))
    return "-".join([name, *(f"{key}={value}" for key, value in settings.items())])


def baseline_folders(entries: Iterable[str]) -> dict[str, Baseline]:
    """Return folder name -> baseline of the entries that are one.

    Settings stand in a name only where it would be that of two.
    """
    made = [BASELINES.make(entry) for entry in entries if is_baseline(entry)]
    names = Counter(BASELINES.entry_of(one).name for one in made)
    folders = {}
    for one in made:
        name = BASELINES.entry_of(one).name
        folders[name if names[name] == 1 else baseline_label(BASELINES.spec(one))] = one
    return folders


def split_folder(key: str) -> tuple[Entry[Baseline], str] | None:
    """Return the entry and the settings ("criterion=flips") of a folder that `baseline_folders`
    names; None for another folder."""
    name, *settings = re.split(r"-(?=[a-z_]+=)", key)
    return (BASELINES[name], ", ".join(settings)) if name in BASELINES else None
