"""`python bench.py eval`: what it measures, what it writes and what it refuses."""

import contextlib
import io
import json

import numpy as np
import pytest

import bench
from cogcalib_jax.bench.evaluation import work_of
from cogcalib_jax.bench.hardware import forward_flops
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.errors import run_main
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.models.lora import LoraConfig
from tests.bench.test_train_step import WORLD, base  # noqa: F401  (a fixture)
from tests.inference.tiny import TINY, questions

LORA = LoraConfig(target_modules=("q_proj",))


@pytest.fixture(scope="module")
def preset(base):  # noqa: F811
    run = RunConfig(world=WORLD, model=ModelConfig(path=str(base)), lora=LORA, compare=("sft",))
    file = base.parent / "tiny_eval.yaml"
    file.write_text(to_yaml(run))
    return file


def bench_eval(*argv):
    """(exit code, stdout, stderr)"""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_main(bench.main, ["eval", *map(str, argv)])
    return code, out.getvalue(), err.getvalue()


def test_the_table_says_what_the_json_holds(preset, tmp_path):
    file = tmp_path / "deep" / "eval.json"
    code, out, err = bench_eval("--config", preset, "--repeats", 2, "--json", file)
    assert code == 0, err
    figures = json.loads(file.read_text())
    assert figures["questions"] == WORLD.test and len(figures["seconds"]) == 2
    assert figures["first_pass_s"] > figures["compile_s"] > 0
    rate = np.median(WORLD.test / np.array(figures["seconds"]))
    assert figures["questions_per_s"] == pytest.approx(rate)
    rows, tokens = figures["batch_shape"]
    assert figures["padded_tokens"] == figures["batches"] * rows * tokens > figures["tokens"]
    for shown in (f"{rate:,.1f} [", f"{figures['tokens']:,} real of", "Peak memory"):
        assert shown in out
    assert figures["command"].startswith("python bench.py eval --config")
    assert figures["phases"]["passes"]["peak_host_bytes"] > 0


def test_operations_count_every_prompt_once_or_once_an_option():
    rows = questions(20, tokens=3)
    work = work_of(rows, TINY, LORA)
    lengths = [(len(e.prompt_ids), [len(ids) for ids in e.completion_ids]) for e in rows]
    once = sum(p + sum(n - 1 for n in options) for p, options in lengths)
    repeated = sum(p + n - 1 for p, options in lengths for n in options)
    assert (work["tokens"], work["tokens_row_per_option"]) == (once, repeated)

    # Token by token: what it costs to read the t-th token of a text, and to score a position.
    def up_to(t):
        return forward_flops(TINY, LORA, [t], 0, TINY.vocab_size)

    score = forward_flops(TINY, LORA, [1], 1, TINY.vocab_size) - up_to(1)
    shared = sum(
        up_to(p) + score + sum(up_to(p + n - 1) - up_to(p) + (n - 1) * score for n in options)
        for p, options in lengths
    )
    assert work["flop"] == pytest.approx(shared)
    alone = sum(up_to(p + n - 1) + n * score for p, options in lengths for n in options)
    assert work["flop_row_per_option"] == pytest.approx(alone)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--compare", "ls"], "--compare has no meaning for a benchmark"),
        (["--repeats", "0"], "repeats"),
        (["--json", "."], "cannot be written"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_loaded(preset, argv, message):
    code, out, err = bench_eval("--config", preset, *argv)
    assert code == 2 and message in err and not out
    assert len(err.strip().splitlines()) == 1
