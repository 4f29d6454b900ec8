"""A base, an adapter and a run that nothing is wrong with."""

import json
from contextlib import chdir
from pathlib import Path

from cogcalib_jax.cli.prepare import prepare
from cogcalib_jax.cli.run_config import RunConfig, settle_comparison
from cogcalib_jax.cli.run_folder import hash_inputs, write_config
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.sources import find_preset
from cogcalib_jax.hf.adapter import save_adapter
from cogcalib_jax.hf.weights import read_config
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.models.lora import LoraConfig
from tests.cli.small_base import arguments, write_base
from tests.models.small import small_decoder


def write_good(folder: Path) -> Path:
    """Folders `base`, `adapter` and `run` (finished but for its results) in `folder`."""
    with chdir(folder):  # so that paths in files are relative
        base = write_base(folder / "base").relative_to(folder)
        lora = LoraConfig(r=2, target_modules=("q_proj", "v_proj"))
        save_adapter(folder / "adapter", small_decoder(read_config(base), lora=lora), base)
        argv = arguments(base, Path("run"), "--method.name", "sft")
        loaded = load_config(
            RunConfig, argv, prog="", description="", default_preset=find_preset("world")
        )
        config = settle_comparison(loaded)
        write_config(folder / "run", config.for_method(config.method.resolve()))
        inputs = hash_inputs(config, base, prepare(config, abstract=True).hashes)
        write_json(folder / "run" / "inputs.json", inputs)
        (folder / "run" / "command.txt").write_text("python train.py\n")
        # The base was asked before: a resumed run only reads what it answered.
        asked = {"model": "the base", "task": "custom", "n": 4, "kind": "texts"}
        shares = ("accuracy", "low", "high", "chance", "commonest_answer", "nll")
        base_record = asked | dict.fromkeys(shares, 0.5) | {"option_mass": None}
        (folder / "run" / "base.json").write_text(json.dumps(base_record))
        (folder / "run" / "style" / "checkpoints").mkdir(parents=True)
        decoder = small_decoder(read_config(base), lora=config.lora)
        save_adapter(folder / "run" / "adapter", decoder, base)
    return folder
