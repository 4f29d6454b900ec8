"""The part of a run's config that its model is loaded and asked with."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.settings import with_new_names
from cogcalib_jax.world.base import ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class StoredRun:
    """Where the base and the rows of a run are, and how its questions are asked."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def base(self) -> str | Path:
        """Return the folder or Hub id of the base; the world's is built if it is missing."""
        if self.model.path is not None:
            return self.model.path
        return ensure_base(self.world, self.pretrain, self.seed)


def read_stored_run(folder: Path) -> StoredRun:
    """Read the config of a finished run of one method.

    Raises:
        UserError: a folder that is no run, or not finished.
    """
    file = folder / CONFIG_FILE
    if not (folder / "adapter").is_dir() or not file.is_file():
        raise UserError(
            f"{folder}: holds no adapter/ and {CONFIG_FILE}; expected the folder of a method that"
            " was trained, such as runs/NAME-N/cols"
        )
    try:
        tree = with_new_names(yaml.safe_load(file.read_text(encoding="utf-8")))
        kept = {f.name: tree[f.name] for f in fields(StoredRun) if f.name in tree}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: damaged ({reason_of(error)}); train again") from error
    return from_yaml(StoredRun, yaml.safe_dump(kept), file)
