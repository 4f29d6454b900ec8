"""`python bench.py plan`: on simulated devices always, with the TPU's own compiler where it is."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import pytest

import bench
import cogcalib_jax
from cogcalib_jax.bench import plan as planning
from cogcalib_jax.bench.compile import OutOfMemory
from cogcalib_jax.bench.hardware import find_topology, next_larger, update_flops
from cogcalib_jax.bench.plan import (
    PlanConfig,
    architecture,
    changes_that_save,
    describe,
    plan,
    spread_mesh,
    table,
)
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.models.families import to_hf
from cogcalib_jax.report.tables import as_text
from cogcalib_jax.sharding import make_mesh
from tests.inference.tiny import TINY

CONFIGS = Path(__file__).parents[2] / "configs"
WORLD = str(CONFIGS / "world.yaml")


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    file = tmp_path_factory.mktemp("shape") / "config.json"
    file.write_text(json.dumps(to_hf(TINY)))
    return str(file)


def planned(*argv: str) -> PlanConfig:
    argv = ("--config", WORLD, *argv)
    return load_config(PlanConfig, spread_mesh(list(argv)), prog="", description="").config


@pytest.fixture(scope="module")
def estimate(shape, tmp_path_factory):
    """Figures and table of a plan for simulated devices."""
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    argv = [
        "plan",
        "--config",
        WORLD,
        "--shape",
        shape,
        "--topology",
        "h100:8",
        "--json",
        str(file),
    ]
    more = ["--mesh", "fsdp=4,tensor=2", "--tokens", "13", "--options", "8"]
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text, **_: shown.append(text))
        assert run_main(bench.main, [*argv, *more]) == 0
    return json.loads(file.read_text()), shown[-1]


def test_a_plan_says_whether_it_fits(estimate):
    figures, text = estimate
    assert figures["fits"] is True and figures["would_fit"] is None
    chip = figures["per_chip"]
    assert 0 < chip["arguments"] < chip["peak_bytes"] < chip["hbm_bytes"] == 80 * 10**9
    assert "It FITS." in text


def test_a_plan_for_gpus_is_said_to_be_an_estimate(estimate):
    figures, text = estimate
    assert figures["estimate"] is True and figures["executed"] is False
    assert "ESTIMATE" in text and "not executed" in text


def test_a_plan_is_of_the_batch_in_the_config(estimate):
    """The world's preset has batches of 32; 13 tokens are padded to 16."""
    figures, _ = estimate
    batch = {"examples": 32, "accumulation": 1, "tokens": 16, "answer_tokens": 1}
    assert figures["batch"] == batch
    assert figures["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2, "expert": 1}
    lora = planned("--topology", "h100:1").lora
    formula = update_flops(TINY, lora, [16] * 32, 32, TINY.vocab_size)
    assert figures["flops"]["formula"] == formula
    # The step's products are those of the formula and what little it leaves out.
    assert formula * 0.9 < figures["flops"]["step"] < formula * 2


@pytest.mark.slow
def test_what_does_not_fit_is_changed_until_it_does(shape, monkeypatch):
    """The compiler is made to refuse until layers are computed again and one example is left."""
    config = planned("--shape", shape, "--topology", "h100:2", "--training.batch-size", "8")
    real = planning.compile_step

    def strict(*args, shape, remat, **options):
        if remat != "layer" or shape.examples > 2:
            raise OutOfMemory(90 * 10**9, 80 * 10**9)
        return real(*args, shape=shape, remat=remat, **options)

    monkeypatch.setattr(planning, "compile_step", strict)
    figures = describe(*plan(replace(config, tokens=8)))
    assert figures["fits"] is False and figures["per_chip"]["peak_bytes"] == 90 * 10**9
    assert [one["fits"] for one in figures["tried"]] == [False, False, True]
    assert figures["would_fit"] == [
        "--model.remat layer",
        "--mesh data=1,fsdp=2,tensor=1",
        "--training.accumulation 4",
    ]
    text = as_text(table(figures))
    assert (
        "DOES NOT FIT: 90.00 GB are needed on each chip, 80.00 GB can be used" in text
        and "What would make it fit: --model.remat" in text
    )
    assert describe(*plan(replace(config, tokens=8, attempts=1)))["would_fit"] is None


def test_changes_go_from_cheap_to_dear_and_name_a_run_that_can_be():
    config = planned("--topology", "h100:4", "--mesh", "data=2,fsdp=2", "--answer-tokens", "300")
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    changes = [" ".join(words) for words, _ in changes_that_save(config, mesh)]
    remat = "--model.remat layer"
    spread = f"{remat} --mesh data=1,fsdp=4,tensor=1"
    shared = f"{remat} --mesh data=1,fsdp=1,tensor=4"
    assert changes == [
        remat,
        f"{spread} --training.accumulation 1",
        f"{spread} --training.accumulation 8",
        f"{shared} --training.accumulation 8",
        f"{shared} --training.accumulation 32",
        f"{remat} --topology h100:8 --mesh data=1,fsdp=8,tensor=1 --training.accumulation 4",
        f"{shared} --training.accumulation 32 --tokens 152 --answer-tokens 152",
        f"{shared} --training.accumulation 32 --tokens 76 --answer-tokens 76",
    ]


@pytest.mark.parametrize(
    ("name", "larger"),
    [("v5e:1x1", "v5e:2x2"), ("v5p:2x2x2", "v5p:2x2x4"), ("h100:2", "h100:4"), ("a100:8", None)],
)
def test_the_next_larger_topology(name, larger):
    assert next_larger(name) == larger


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*_v5*.yaml")), ids=lambda p: p.stem)
def test_presets_for_pods_have_a_mesh_and_a_shape(preset):
    argv = ["--config", str(preset), "--topology", "v5e:4x4"]
    config = load_config(PlanConfig, argv, prog="", description="").config
    assert architecture(config).vocab_size == 128_256
    assert config.training.batch_size % config.mesh.fsdp == 0
    assert config.evaluation.batch_size % config.mesh.fsdp == 0
    sides = preset.stem.rpartition("_")[2].split("x")
    chips = math.prod(int(side) for side in sides)
    assert config.mesh.data * config.mesh.fsdp * config.mesh.tensor == chips


def test_shapes_are_found_without_the_hub(shape):
    assert architecture(planned("--topology", "h100:1", "--shape", shape)) == TINY
    world = architecture(planned("--topology", "h100:1"))
    assert (world.hidden_size, world.num_layers) == (128, 3)
    argv = ["--config", str(CONFIGS / "qwen2.5_7b_winogrande_m.yaml"), "--topology", "v5e:4x4"]
    qwen = architecture(load_config(PlanConfig, argv, prog="", description="").config)
    assert qwen.hidden_size == 3584 and qwen.qkv_bias


def test_an_installed_package_has_the_shapes_among_its_presets(monkeypatch, tmp_path):
    models = tmp_path / "presets" / "models"
    models.mkdir(parents=True)
    (models / "tiny.json").write_text(json.dumps(to_hf(TINY) | {"_name_or_path": "who/what"}))
    monkeypatch.setattr(cogcalib_jax, "__file__", str(tmp_path / "__init__.py"))
    assert architecture(planned("--topology", "h100:1", "--model.path", "who/what")) == TINY


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "topology"),
        (["--topology", "v9:4x4"], "must be CHIP:SHAPE"),
        (["--topology", "h100:2x8"], "planned within one machine"),
        (["--topology", "h100:8", "--mesh", "fsdp"], "must be AXIS=SIZE"),
        (["--topology", "h100:8", "--mesh", "pipe=2"], "must be AXIS=SIZE"),
        (["--topology", "h100:8", "--mesh", "fsdp=3"], "mesh"),
        (["--topology", "h100:8", "--training.batch-size", "4"], "cannot be spread over"),
        (["--topology", "h100:1", "--shape", "none.json"], "none.json: cannot be read"),
        (["--topology", "h100:1", "--model.path", "who/what"], "give its config.json with --shape"),
        (["--topology", "h100:1", "--model.attention", "cudnn"], "needs an NVIDIA GPU"),
        (["--topology", "h100:1", "--run-dir", "x"], "--run-dir has no meaning"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(argv, told, capsys):
    assert run_main(bench.main, ["plan", "--config", WORLD, *argv]) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("== ")]
    assert len(lines) == 1 and told in lines[0]


def test_without_libtpu_a_tpu_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'cogcalib-jax\\[tpu\\]'"):
        find_topology("v5e:4x4")


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:1x1", 1), ("v5e:4x4", 16), ("v4:2x2x1", 4), ("v5p:4x4x4", 64)]
)
def test_real_topologies_have_a_device_for_every_chip(name, chips):
    pytest.importorskip("libtpu", reason="libtpu (extra tpu) is not installed")
    topology = find_topology(name)
    assert len(topology.devices) == chips and not topology.simulated
    assert topology.devices[0].device_kind in topology.chip.device_kinds


def test_the_step_compiles_for_a_real_tpu_topology(shape):
    pytest.importorskip("libtpu", reason="libtpu (extra tpu) is not installed")
    config = planned("--shape", shape, "--topology", "v5e:2x2", "--mesh", "fsdp=4")
    figures = describe(*plan(replace(config, tokens=16)))
    assert figures["fits"] and not figures["estimate"]
    assert figures["per_chip"]["hbm_bytes"] == 16 * 2**30
    assert not figures["kernels_not_counted"]
    assert figures["flops"]["step"] > 0.9 * figures["flops"]["formula"]
