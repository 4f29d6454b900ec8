"""The world's base: a small Llama pretrained on the world's corpus, written as a checkpoint.

It is loaded as a downloaded model is.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tokenizers import Tokenizer

from cogcalib_jax.console import progress_bar
from cogcalib_jax.data.tasks.fields import as_json
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import put_json, user_cache
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.machines import MeshConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.parameters import random_decoder
from cogcalib_jax.sharding import make_mesh, shard_batch
from cogcalib_jax.world.config import RECIPE, PretrainConfig, WorldConfig
from cogcalib_jax.world.corpus import (
    BOS,
    EOS,
    World,
    build_tokenizer,
    build_world,
    save_tokenizer,
    vocabulary,
)

# Rows are padded to a multiple of this: at 4, statements (up to 8 tokens) and questions (up to 12)
# make two shapes, so two compilations, and an eighth of the tokens is padding.
PAD_MULTIPLE = 4

# A row of the world has at most a dozen tokens; the rest is room for few-shot prompts.
CONTEXT = 256

# Changes whenever this file would train another model from the same corpus and config.
RECIPE_VERSION = 1

LOG_EVERY = 50


class CorpusBatch(NamedTuple):
    """Rows of about one length."""

    input_ids: np.ndarray
    """[batch, time] int32, right-padded"""
    targets: np.ndarray
    """[batch, time] int32: the token after each position"""
    mask: np.ndarray
    """[batch, time] float32: 1 for a real token"""


def ensure_base(world: WorldConfig, config: PretrainConfig, seed: int) -> Path:
    """Return the folder of the world's base; pretrain it unless the cache holds it.

    It is trained on one device whatever mesh the run uses, so that runs on different meshes start
    from the same base.

    Args:
        world: the world; its seed, if set, overrides `seed` for the world itself.
        seed: the run's seed, which also draws the base's first weights.

    Raises:
        UserError: the cache cannot be written.
    """
    made, mesh, folder = base_place(world, config, seed)
    if not folder.is_dir():
        pretrain_base(made, config, seed, mesh, folder)
    return folder


def base_place(world: WorldConfig, config: PretrainConfig, seed: int) -> tuple[World, Mesh, Path]:
    """Return the world, the device its base is trained on, and the folder of the base."""
    made = build_world(world, seed)
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
    return made, mesh, base_folder(made, config, seed, mesh)


def base_folder(world: World, config: PretrainConfig, seed: int, mesh: Mesh) -> Path:
    """Return the folder in the cache of the base of this corpus, config and seed.

    Its name is a hash of everything that the weights depend on, such as the corpus itself and the
    version of JAX.
    """
    root = Path(config.cache_dir).expanduser() if config.cache_dir else user_cache()
    depends_on = {
        "corpus": world.corpus,
        "vocabulary": vocabulary(world.config),
        "recipe": config.recipe,
        "seed": seed,
        "version": RECIPE_VERSION,
        "jax": jax.__version__,
        "platform": mesh.devices.flat[0].platform,
    }
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return root / "bases" / f"world-{digest[:16]}"


def pretrain_base(
    world: World, config: PretrainConfig, seed: int, mesh: Mesh, folder: Path
) -> Path:
    """Train a base on the world's corpus and write it to `folder` in Hugging Face layout.

    The folder is written under another name and renamed. If another process was faster, its base,
    which is the same, stays. Return `folder`.

    Raises:
        UserError: `folder` cannot be written; raised before training.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"the world's base cannot be written to {folder.parent} ({error.strerror});"
            " set pretrain.cache_dir or COGCALIB_CACHE to a folder that can"
        ) from error
    try:
        decoder, loss = _train(world, config, seed, mesh)
        save_decoder(decoder, unfinished)
        save_tokenizer(world.config, unfinished, CONTEXT)
        record = {
            "world": asdict(world.config),
            "pretrain": config.recipe | {"cache_dir": None},
            "seed": seed,
            "corpus_rows": len(world.corpus),
            "last_loss": loss,
        }
        put_json(unfinished / "pretraining.json", as_json(record), allow_nan=False)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def base_architecture(config: PretrainConfig, tokenizer: Tokenizer) -> DecoderConfig:
    """Return the architecture of the base of a world with this tokenizer."""
    return DecoderConfig(
        model_type="llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=RECIPE["num_layers"],
        num_heads=RECIPE["num_heads"],
        kv_heads=RECIPE["kv_heads"],
        head_dim=config.hidden_size // RECIPE["num_heads"],
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )


def corpus_ids(world: World, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the token ids of the corpus, a row each, with EOS at its end."""
    eos = tokenizer.token_to_id(EOS)
    return [[*row.ids, eos] for row in tokenizer.encode_batch(list(world.corpus))]


def corpus_batches(rows: list[list[int]], batch_size: int) -> Iterator[CorpusBatch]:
    """Yield every token row once, batched with rows of the same padded length.

    Only the last batch of each length is filled up, with empty rows.
    """
    waiting: dict[int, list[list[int]]] = {}
    for row in rows:
        length = -(-(len(row) - 1) // PAD_MULTIPLE) * PAD_MULTIPLE
        bucket = waiting.setdefault(length, [])
        bucket.append(row)
        if len(bucket) == batch_size:
            yield _corpus_batch(waiting.pop(length), length, batch_size)
    for length in sorted(waiting):
        yield _corpus_batch(waiting[length], length, batch_size)


def _corpus_batch(rows: list[list[int]], length: int, batch_size: int) -> CorpusBatch:
    ids = np.zeros((batch_size, length + 1), np.int32)
    real = np.zeros((batch_size, length + 1), np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        real[index, : len(row)] = 1
    return CorpusBatch(ids[:, :-1], ids[:, 1:], real[:, 1:])


def _train(world: World, config: PretrainConfig, seed: int, mesh: Mesh) -> tuple[nnx.Module, float]:
    """Return the trained decoder and its loss on the last batches, nats per token."""
    tokenizer = build_tokenizer(world.config)
    batches = list(corpus_batches(corpus_ids(world, tokenizer), RECIPE["batch_size"]))
    decoder = random_decoder(base_architecture(config, tokenizer), mesh=mesh, seed=seed)
    graphdef, params = nnx.split(decoder)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, RECIPE["learning_rate"], min(RECIPE["warmup_steps"], len(batches) - 1), len(batches)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(RECIPE["clip_norm"]),
        optax.adamw(schedule, b2=RECIPE["b2"], weight_decay=RECIPE["weight_decay"]),
    )

    def mean_nll(params: nnx.State, batch: CorpusBatch) -> jax.Array:
        decoder = nnx.merge(graphdef, params)
        logits = decoder.logits(decoder.hidden_states(batch.input_ids))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.sum(nll * batch.mask) / jnp.sum(batch.mask)

    def step(
        params: nnx.State, opt_state: optax.OptState, batch: CorpusBatch
    ) -> tuple[nnx.State, optax.OptState, jax.Array]:
        loss, gradient = jax.value_and_grad(mean_nll)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    jit_step = jax.jit(step, donate_argnums=(0, 1))
    opt_state = jax.jit(optimizer.init)(params)
    losses = []
    with progress_bar(len(batches), "pretraining the base", "step") as bar:
        for batch in batches:
            params, opt_state, loss = jit_step(params, opt_state, shard_batch(mesh, batch))
            losses.append(loss)
            bar.update()
            if len(losses) % LOG_EVERY == 0:
                # The loss of an earlier step: waiting for the newest would stop the device.
                bar.set_postfix_str(f"loss {float(losses[-LOG_EVERY]):.3f}")
    last = np.mean([float(loss) for loss in losses[-LOG_EVERY:]])
    return nnx.merge(graphdef, params), float(last)
