import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf import files as model_files
from cogcalib_jax.hf.weights import load_decoder, read_config, save_decoder
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.product import from_bits
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.golden.checkpoints import golden, write_model
from tests.golden.families import FAMILIES
from tests.models.small import SMALL, forward, one_device, small_decoder, tokens


def parameters(decoder):
    flat = nnx.to_flat_state(nnx.state(decoder))
    return {path: np.asarray(leaf.get_value()) for path, leaf in flat}


def checkpoint(folder: Path, family: str = "qwen2.5_windows") -> Path:
    shapes = json.loads(str(golden(family)["shapes"]))
    return write_model(folder, FAMILIES[family], shapes)


@pytest.fixture
def folder(tmp_path):
    return checkpoint(tmp_path / "model")


def change(folder: Path, update: dict[str, np.ndarray | None]) -> None:
    """Rewrite model.safetensors with tensors changed, added, or (None) left out."""
    tensors = load_file(folder / "model.safetensors") | update
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


def test_real_logits_equal_transformers(realdata):
    folder = realdata / "models" / "stories260K"
    reference = np.load(folder / "reference_logits_torch_fp32.npz")
    decoder = load_decoder(folder, mesh=one_device())
    _, logits = forward(decoder, reference["input_ids"].astype(np.int32))
    assert np.abs(logits - reference["logits"]).max() < 1e-4


@pytest.mark.parametrize("mesh", [(1, 4, 2), (1, 2, 4), (8, 1, 1)], ids=str)
def test_weights_are_the_same_on_every_mesh(folder, mesh):
    one = parameters(load_decoder(folder, mesh=one_device()))
    many = load_decoder(folder, mesh=make_mesh(MeshConfig(*mesh)))
    for path, array in parameters(many).items():
        np.testing.assert_array_equal(array, one[path], err_msg=str(path))


def test_each_device_reads_only_its_own_slices(folder, monkeypatch):
    """Loading what one device holds of a sharded model must not read the whole of it."""
    sizes = []
    whole_read = model_files.Tensor.read

    def counted(self, index=slice(None)):
        part = whole_read(self, index)
        sizes.append((part.size, int(np.prod(self.shape))))
        return part

    monkeypatch.setattr(model_files.Tensor, "read", counted)
    load_decoder(folder, mesh=make_mesh(MeshConfig(1, 4, 2)))
    matrices = [(part, size) for part, size in sizes if size >= 1024]
    assert matrices and all(part * 4 <= size for part, size in matrices)
    # Devices that hold the same slice share one reading of it.
    assert sum(part for part, _ in sizes) == sum(
        int(np.prod(t.shape)) for t in model_files.open_folder(folder).values()
    )


@pytest.mark.parametrize(
    ("tensor", "method"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight.absmax", "bitsandbytes in 4 bits"),
        ("SCB", "bitsandbytes in 8 bits"),
        ("weight_scale_inv", "FP8"),
        ("weight_packed", "compressed-tensors"),
    ],
)
def test_quantised_weights_are_refused_by_name_without_a_word_in_config_json(
    folder, tensor, method
):
    name = f"model.layers.0.mlp.up_proj.{tensor}"
    change(folder, {name: np.ones(4, np.int32)})
    with pytest.raises(UserError, match=rf"holds {name}, .* quantised \({method}\); expected"):
        load_decoder(folder, mesh=one_device())


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("wanted", ["bfloat16", "float32"])
def test_any_stored_dtype_becomes_the_dtype_asked_for(folder, stored, wanted):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.astype(stored) for n, t in tensors.items()}, folder / "model.safetensors")
    decoder = load_decoder(folder, dtype=wanted, mesh=one_device())
    assert decoder.dtype == jnp.dtype(wanted)
    ours = np.asarray(from_bits(decoder.layers.mlp.up_proj.weight[...])[1])
    np.testing.assert_array_equal(ours, tensors[name].astype(stored).astype(jnp.dtype(wanted)))


def test_lora_begins_as_the_seed_says_and_in_float32(folder):
    def lora(seed):
        options = {"lora": LoraConfig(r=2), "dtype": "bfloat16", "mesh": one_device()}
        decoder = load_decoder(folder, seed=seed, **options)
        return parameters(decoder)["layers", "self_attn", "q_proj", "lora_A"]

    assert lora(0).dtype == np.float32
    np.testing.assert_array_equal(lora(0), lora(0))
    assert np.all(lora(0) != lora(1))


@pytest.mark.parametrize("shard_bytes", [10_000_000, 4_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_decoder_is_read_back_bit_for_bit(tmp_path, shard_bytes, dtype):
    decoder = small_decoder(lora=LoraConfig(), dtype=jnp.dtype(dtype))
    save_decoder(decoder, tmp_path / "out", max_shard_bytes=shard_bytes)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    sharded = shard_bytes < 10_000
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == sharded
    assert files == ["model.safetensors"] if not sharded else len(files) > 2
    assert read_config(tmp_path / "out") == SMALL
    back = parameters(load_decoder(tmp_path / "out", dtype=dtype, mesh=one_device()))
    ours = {path: a for path, a in parameters(decoder).items() if "lora" not in path[-1]}
    assert back.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(back[path], array, err_msg=str(path))


def test_saving_never_touches_a_folder_with_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files already"):
        save_decoder(small_decoder(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(model_files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_decoder(small_decoder(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_old_buffers_and_a_copy_of_a_tied_head_are_ignored(tmp_path):
    folder = checkpoint(tmp_path, "llama3.2")
    change(
        folder,
        {
            "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
            "lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"],
        },
    )
    decoder = load_decoder(folder, mesh=one_device())
    assert decoder.lm_head.weight is None


def test_a_tied_weight_stored_under_the_heads_name_alone_is_read(tmp_path):
    """transformers ties either name to the other."""
    folder = checkpoint(tmp_path, "llama3.2")
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, {"model.embed_tokens.weight": None, "lm_head.weight": embedding})
    decoder = load_decoder(folder, mesh=one_device())
    np.testing.assert_array_equal(decoder.embed_tokens.weight[...], embedding)


@pytest.mark.parametrize("shape", [(64, 32), (65, 32)])
def test_another_head_than_the_embedding_it_is_said_to_be_is_refused(tmp_path, shape):
    """transformers warns and uses it, which a reader of config.json does not expect."""
    folder = checkpoint(tmp_path, "llama3.2")
    change(folder, {"lm_head.weight": np.ones(shape, np.float32)})
    with pytest.raises(UserError, match="set tie_word_embeddings to false in config.json"):
        load_decoder(folder, mesh=one_device())


def test_all_that_does_not_fit_is_listed_at_once(folder):
    change(
        folder,
        {
            "model.norm.weight": None,
            "model.layers.2.self_attn.q_proj.bias": None,
            "model.layers.0.mlp.up_proj.weight": np.zeros((3, 3), np.float32),
            "model.layers.0.mlp.experts.weight": np.zeros(2, np.float32),
            "model.layers.1.mlp.up_proj.weight": np.zeros((48, 32), np.int8),
        },
    )
    with pytest.raises(UserError) as error:
        load_decoder(folder, mesh=one_device())
    text = str(error.value)
    assert "missing: model.layers.2.self_attn.q_proj.bias, model.norm.weight" in text
    assert "unexpected: model.layers.0.mlp.experts.weight" in text
    assert "model.layers.0.mlp.up_proj.weight (shape [3, 3], config.json says [48, 32])" in text
    assert "model.layers.1.mlp.up_proj.weight (dtype I8" in text
    assert "\n" not in text


def test_nothing_is_read_before_everything_is_checked(folder, monkeypatch):
    change(folder, {"model.norm.weight": None})
    monkeypatch.setattr(model_files.Tensor, "read", None)
    with pytest.raises(UserError, match="missing"):
        load_decoder(folder, mesh=one_device())


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lying_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    length = (len(data) * 2).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(length + data[8:])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "model.safetensors: not a whole safetensors file"),
        (lying_header, "model.safetensors: not a whole safetensors file"),
        (only_a_pickle, "pytorch_model.bin.*can run any code"),
        (no_weights, "no model.safetensors"),
    ],
)
def test_files_that_cannot_be_trusted_are_one_clear_line(folder, damage, says):
    damage(folder)
    with pytest.raises(UserError, match=says) as error:
        load_decoder(folder, mesh=one_device())
    assert "\n" not in str(error.value)


@pytest.fixture
def sharded(tmp_path):
    save_decoder(small_decoder(), tmp_path / "sharded", max_shard_bytes=4_000)
    return tmp_path / "sharded"


def edit_index(folder: Path, edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_cannot_name_a_file_outside_its_folder(sharded, name):
    edit_index(sharded, lambda placed: placed.update({"model.norm.weight": name}))
    with pytest.raises(UserError, match="outside its folder"):
        load_decoder(sharded, mesh=one_device())


def test_missing_shards_are_named(sharded):
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"shards missing: {lost.name}"):
        load_decoder(sharded, mesh=one_device())


@pytest.mark.parametrize("count", [1, 2])
def test_shards_without_their_index_are_told_what_is_missing(sharded, count):
    (sharded / "model.safetensors.index.json").unlink()
    shards = sorted(sharded.glob("model-*.safetensors"))
    for shard in shards[1 : count + 1]:
        shard.unlink()
    absent = ", ".join(["model.safetensors.index.json", *(s.name for s in shards[1 : count + 1])])
    with pytest.raises(UserError, match=f"no index; missing: {absent}. Fetch them again"):
        load_decoder(sharded, mesh=one_device())


@pytest.mark.parametrize(("named", "stale"), [(0, -1), (-1, 0)])
def test_a_tensor_in_two_shards_is_read_from_the_one_that_the_index_names(sharded, named, stale):
    name = "model.norm.weight"
    placed = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    shards = sorted(set(placed.values()))
    right = load_file(sharded / placed[name])[name]
    for shard, tensor in ((shards[named], right), (shards[stale], right + 1)):
        save_file(load_file(sharded / shard) | {name: tensor}, sharded / shard)
    edit_index(sharded, lambda placed: placed.update({name: shards[named]}))
    decoder = load_decoder(sharded, mesh=one_device())
    np.testing.assert_array_equal(decoder.norm.weight[...], right)


def test_a_tensor_that_only_another_shard_holds_is_refused(sharded):
    name = "model.norm.weight"

    def misplace(placed):
        placed[name] = next(file for file in placed.values() if file != placed[name])

    edit_index(sharded, misplace)
    with pytest.raises(UserError, match=f"not in the shard it gives: {name} "):
        load_decoder(sharded, mesh=one_device())


def test_an_index_that_promises_too_much_is_refused(sharded):
    def promise(placed):
        placed["model.extra"] = next(iter(placed.values()))

    edit_index(sharded, promise)
    with pytest.raises(UserError, match=r"not in the shard it gives: model.extra \(model-"):
        load_decoder(sharded, mesh=one_device())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_unreadable_index_is_one_clear_line(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="index.json: (no index of shards|not JSON|must hold)"):
        load_decoder(sharded, mesh=one_device())


def test_a_loaded_decoder_computes_what_it_was_saved_as(tmp_path):
    decoder = small_decoder()
    save_decoder(decoder, tmp_path / "out")
    back = load_decoder(tmp_path / "out", mesh=one_device(), remat="layer")
    np.testing.assert_allclose(forward(back, tokens())[1], forward(decoder, tokens())[1], atol=1e-6)


def test_generation_ends_where_generation_config_says(tmp_path):
    """As in transformers: the tokens that end a turn of a chat often stand there alone."""
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["llama3"] | {"eos_token_id": 2}))
    file = tmp_path / "generation_config.json"
    for content, ends in (("{}", (2,)), ('{"eos_token_id": [3, 5]}', (3, 5))):
        file.write_text(content)
        assert read_config(tmp_path).eos_token_ids == ends
    file.write_text('{"eos_token_id": "x"}')
    with pytest.raises(UserError, match="eos_token_id is 'x'; expected a whole number"):
        read_config(tmp_path)
