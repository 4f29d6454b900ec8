import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.adapter import load_adapter, save_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import random_decoder
from cogcalib_jax.sharding import MeshConfig, make_mesh
from tests.models.small import SMALL, one_device, small_decoder

LORA = LoraConfig(
    r=3, lora_alpha=4.5, target_modules=("q_proj", "down_proj", "lm_head"), lora_dropout=0.1
)


@pytest.fixture(scope="module")
def decoder():
    return small_decoder(lora=LORA)


@pytest.fixture
def folder(decoder, tmp_path):
    save_adapter(tmp_path / "adapter", decoder, "org/base")
    return tmp_path / "adapter"


def lora_parameters(decoder):
    return jax.device_get(nnx.to_pure_dict(nnx.state(decoder, nnx.LoRAParam)))


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, **changes):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def test_an_adapter_is_read_back_bit_for_bit_on_any_mesh(decoder, folder):
    other = small_decoder(lora=LORA, mesh=make_mesh(MeshConfig(1, 4, 2)))
    graphdef, lora, base = nnx.split(other, nnx.LoRAParam, ...)
    other = nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, lora), base)
    load_adapter(folder, other)
    jax.tree.map(np.testing.assert_array_equal, lora_parameters(other), lora_parameters(decoder))


def test_names_and_settings_are_pefts(folder):
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.lm_head.lora_B.weight" in names
    assert len(names) == 2 * (2 * SMALL.num_layers + 1)
    raw = json.loads((folder / "adapter_config.json").read_text())
    assert (raw["r"], raw["lora_alpha"], raw["peft_type"]) == (3, 4.5, "LORA")
    assert raw["base_model_name_or_path"] == "org/base"


def test_settings_come_from_the_file(folder):
    assert read_lora_config(folder) == LORA


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        ("all-linear", LoraConfig(target_modules=("all-linear",)).modules),
        (["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"], {"q_proj"}),
    ],
)
def test_pefts_ways_to_write_targets_are_understood(folder, targets, modules):
    edit_config(folder, target_modules=targets)
    assert read_lora_config(folder).modules == modules


def test_names_of_layers_that_the_model_lacks_are_left_out_as_in_peft(folder, decoder):
    edit_config(folder, target_modules=["q_proj", "down_proj", "lm_head", "c_attn", "x.query"])
    assert read_lora_config(folder) == LORA
    load_adapter(folder, decoder)


def only_layer(folder, kept):
    """Remove all tensors of layers but `kept`."""
    names = load_file(folder / "adapter_model.safetensors")
    edit_tensors(folder, **{n: None for n in names if "layers" in n and f"layers.{kept}." not in n})


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_to_transform": [1]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"exclude_modules": ["layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]},
        {
            "target_modules": [
                *("1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"),
            ]
        },
    ],
)
def test_layers_without_an_adapter_have_one_that_adds_nothing(decoder, folder, settings):
    edit_config(folder, **settings)
    only_layer(folder, 1)
    other = small_decoder(lora=read_lora_config(folder))
    load_adapter(folder, other)
    before, after = lora_parameters(decoder), lora_parameters(other)
    np.testing.assert_equal(after["lm_head"], before["lm_head"])
    stacked = zip(jax.tree.leaves(before["layers"]), jax.tree.leaves(after["layers"]), strict=True)
    for theirs, ours in stacked:
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert not ours[0].any()


def test_a_layer_that_the_settings_name_must_be_there(decoder, folder):
    edit_config(folder, layers_to_transform=[0, 1])
    with pytest.raises(UserError, match=r"its modules, ranks or alphas by layer are others"):
        load_adapter(folder, decoder)
    only_layer(folder, 1)
    with pytest.raises(UserError, match=r"missing: .*layers\.0"):
        load_adapter(folder, small_decoder(lora=read_lora_config(folder)))


RENAMED = {
    "name of the adapter": (r"(lora_.)\.weight", r"\1.default.weight"),
    "no first prefix": (r"^base_model\.model\.", ""),
    "text half": (r"model\.layers", "model.language_model.layers"),
    "text half of transformers 4": (r"base_model\.model\.", "base_model.model.language_model."),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_names_that_other_programs_write_are_understood(decoder, folder, rename, tmp_path):
    file = folder / "adapter_model.safetensors"
    names = {name: re.sub(*rename, name) for name in load_file(file)}
    save_file({names[name]: tensor for name, tensor in load_file(file).items()}, file)
    other = small_decoder(lora=read_lora_config(folder))
    nnx.update(other, jax.tree.map(jnp.zeros_like, nnx.state(other, nnx.LoRAParam)))
    load_adapter(folder, other)
    jax.tree.map(np.testing.assert_array_equal, lora_parameters(other), lora_parameters(decoder))
    save_adapter(tmp_path / "again", other, "org/base")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    multimodal = "text half" in str(rename) or "language_model" in rename[1]
    assert again.keys() == (set(names.values()) if multimodal else names.keys())


def test_two_adapters_in_one_file_are_refused(folder):
    names = load_file(folder / "adapter_model.safetensors")
    other = {n.replace(".weight", ".other.weight"): t for n, t in names.items()}
    edit_tensors(folder, **other)
    with pytest.raises(UserError, match="holds several adapters"):
        read_lora_config(folder)


def test_biases_that_were_trained_are_refused_and_a_setting_without_them_is_read(folder):
    edit_config(folder, bias="all")
    assert read_lora_config(folder) == LORA
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
    edit_tensors(folder, **{name: np.zeros(32, np.float32)})
    with pytest.raises(UserError, match=r"bias is not supported .*q_proj"):
        read_lora_config(folder)


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal"])
def test_however_a_plain_adapter_was_begun_it_is_read(folder, start):
    edit_config(folder, init_lora_weights=start)
    assert read_lora_config(folder) == LORA


def test_saving_again_replaces_the_adapter(decoder, folder):
    (folder / "stale.txt").write_text("old")
    save_adapter(folder, decoder, "org/other")
    assert not (folder / "stale.txt").exists()
    assert "org/other" in (folder / "adapter_config.json").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank_pattern": {"q_proj": 4}}, "r is 4, but .*q_proj.lora_A"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is .*expected ranks from 1"),
        ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern\['q_proj'\] is '4', must be a whole"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is .*expected a JSON object"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern is .*expected positive numbers"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern is '\(' ?; expected a regular expression"),
        ({"modules_to_save": ["norm"]}, "modules_to_save names norm; expected embed_tokens or"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices is .*expected lists of token"),
        ({"trainable_token_indices": [3, 3]}, "trainable_token_indices trains a row twice"),
        ({"peft_type": "IA3"}, "not a LoRA adapter"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; expected true or false"),
        ({"rank_pattern": {"(?i)x": 2}}, "rank_pattern is .*global flags"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'; expected CAUSAL_LM"),
        ({"target_modules": "*q_proj"}, "target_modules is .*expected a regular expression"),
        ({"target_modules": ".*c_attn"}, r"\.\*c_attn matches none"),
        ({"target_modules": ".*(q_proj|embed_tokens)"}, "LoRA on the embedding is not supported"),
        ({"init_lora_weights": "mica"}, "'mica' is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported .layers of the base"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is not supported"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters is not supported"),
        ({"lora_bias": True}, "lora_bias is not supported .B has a bias.; merge it with PEFT"),
        ({"megatron_config": {"x": 1}}, "megatron_config is not supported"),
        ({"target_modules": ["query"]}, "query matches none"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on the embedding is not supported"),
        ({"r": None}, "r is None, must be a whole number"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base's own weights"),
        ({"init_lora_weights": "OLoRA"}, "'OLoRA' changes the base's own weights"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_name(folder, changes, says):
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=says):
        read_lora_config(folder)


def test_another_rank_alpha_or_targets_are_all_named(folder):
    lora = LoraConfig(r=2, lora_alpha=16.0, target_modules=("q_proj",))
    wanted = "r is 3 .* 2; lora_alpha is 4.5 .* 16.0; target_modules is"
    with pytest.raises(UserError, match=wanted):
        load_adapter(folder, small_decoder(lora=lora))


def test_a_model_without_lora_cannot_take_an_adapter(folder):
    with pytest.raises(UserError, match="needs a model with LoRA"):
        load_adapter(folder, small_decoder())


def test_an_adapter_for_a_base_of_another_shape_is_refused(folder):
    wider = replace(SMALL, hidden_size=32, num_layers=3, sliding_windows=(), layer_ropes=())
    with pytest.raises(UserError, match=r"missing: .*layers\.2.*; misshapen: .*\[3, 16\]"):
        load_adapter(folder, small_decoder(wider, lora=LORA))


def test_unexpected_tensors_are_named(decoder, folder):
    edit_tensors(folder, **{"base_model.model.score.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="unexpected: base_model.model.score.weight"):
        load_adapter(folder, decoder)


def test_the_copy_of_the_head_that_peft_adds_tells_another_base(folder):
    model = random_decoder(SMALL, lora=LORA, mesh=one_device(), seed=0)
    name = "base_model.model.lm_head.base_layer.weight"
    head = np.asarray(model.lm_head.weight[...])
    edit_tensors(folder, **{name: head})
    load_adapter(folder, model)
    edit_tensors(folder, **{name: head + 0.1})
    with pytest.raises(UserError, match="with other values than the base: it belongs"):
        load_adapter(folder, model)


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_head.base_layer.weight"])
def test_a_vocabulary_that_was_resized_for_training_is_named_as_such(folder, name):
    model = small_decoder(lora=LORA)
    head = np.asarray(model.lm_head.weight[...])
    edit_tensors(folder, **{f"base_model.model.{name}": np.concatenate([head, head[:1]])})
    with pytest.raises(UserError, match=f"carries {name} with 41 rows, the base has 40: .*resized"):
        load_adapter(folder, model)


def test_a_copy_of_the_head_beside_an_adapter_elsewhere_is_compared(tmp_path):
    lora = LoraConfig(r=2, target_modules=("q_proj",))
    model = small_decoder(lora=lora)
    save_adapter(tmp_path / "adapter", model, "org/base")
    copies = {
        "base_model.model.lm_head.weight": np.asarray(model.lm_head.weight[...]),
        "base_model.model.model.embed_tokens.weight": np.asarray(model.embed_tokens.weight[...]),
    }
    edit_tensors(tmp_path / "adapter", **copies)
    load_adapter(tmp_path / "adapter", model)
    name = "base_model.model.lm_head.weight"
    edit_tensors(tmp_path / "adapter", **{name: copies[name] + 0.1})
    with pytest.raises(UserError, match=r"carries lm_head.weight with other values than the base"):
        load_adapter(tmp_path / "adapter", model)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layers_to_transform": ["0"]}, "layers_to_transform is .*expected whole numbers"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "unexpected: .*layers.0"),
        ({"exclude_modules": ".*mlp.*"}, "unexpected: .*layers.0.mlp"),
        (
            {"layers_to_transform": [9], "target_modules": ["q_proj", "down_proj"]},
            "names no layer of this model",
        ),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_by_name(folder, settings, says):
    edit_config(folder, **settings)
    with pytest.raises(UserError, match=says):
        load_adapter(folder, small_decoder(lora=read_lora_config(folder)))


def test_a_failed_load_leaves_the_model_as_it_was(folder):
    model = small_decoder(lora=LORA)
    before = lora_parameters(model)
    edit_tensors(folder, **{"base_model.model.lm_head.lora_A.weight": None})
    with pytest.raises(UserError, match="missing: base_model.model.lm_head.lora_A.weight"):
        load_adapter(folder, model)
    jax.tree.map(np.testing.assert_array_equal, lora_parameters(model), before)


def test_a_pickled_adapter_is_refused(decoder, folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.bin: is a pickle.*write it with PEFT"):
        load_adapter(folder, decoder)
