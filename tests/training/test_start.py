"""Terms that compare with the start: its beliefs are cached once and are those of the start."""

from dataclasses import replace

import numpy as np
import pytest

from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.training import state
from cogcalib_jax.training.finetune import finetune, style_phase
from cogcalib_jax.training.state import start_beliefs
from tests.inference.tiny import VOCAB, full_logits, log_softmax
from tests.training.small_trainer import lines, lora, same_bits, splits, trainer


def beliefs(spec, space, folder):
    method = MethodConfig(term=spec, gate="all", space=space).build()
    return start_beliefs(trainer().trainable, method, lora(), splits()["train"], 8, lambda: folder)


def test_beliefs_are_those_of_the_start_at_the_right_answers(tmp_path):
    decoder = trainer().trainable.model.merge(lora())
    over_options = beliefs("kl", "options", tmp_path)
    full = beliefs(f"kl(top={VOCAB})", "vocab", tmp_path)
    few = beliefs("kl(top=3)", "vocab", tmp_path)
    for i, row in enumerate(splits()["train"]):
        logits = full_logits(decoder, row.prompt_ids)[-1]
        options = [ids[0] for ids in row.completion_ids]
        wanted = log_softmax(logits[options])
        np.testing.assert_allclose(over_options.log_p[i, 0, :4], wanted, rtol=1e-4, atol=1e-5)
        wanted = log_softmax(logits)
        found = np.empty(VOCAB)
        found[full.ids[i, 0]] = full.log_p[i, 0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert full.rest[i, 0] < -1e29  # there are no others
        assert set(few.ids[i, 0]) == set(np.argsort(-wanted)[:3])
        rest = np.log(1 - np.exp(np.sort(wanted)[-3:]).sum())
        assert few.rest[i, 0] == pytest.approx(rest, rel=1e-3)


def test_terms_that_do_not_ask_cost_nothing(tmp_path):
    assert beliefs("ls", "vocab", tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_large_arrays_lie_in_files_and_are_the_same(tmp_path, monkeypatch):
    in_memory = beliefs("kl(top=3)", "vocab", tmp_path)
    monkeypatch.setattr(state, "IN_MEMORY", 100)
    on_disk = beliefs("kl(top=3)", "vocab", tmp_path / "start")
    assert isinstance(on_disk.log_p, np.memmap) and (tmp_path / "start" / "ids.npy").is_file()
    assert same_bits(in_memory, on_disk)


@pytest.mark.slow
def test_kl_to_the_start_holds_the_model_where_it_was(tmp_path):
    """Its first value is zero, for the model is the start; a large weight keeps it smaller."""
    made = replace(trainer(), trainable=replace(trainer().trainable, dropout=False))
    start = style_phase(made, lora(), tmp_path / "style")
    sizes = {}
    for name in ("kl=0.01", "kl=30"):
        method = MethodConfig(
            term="kl", gate="all", weight=float(name[3:]), space="options", normalise=True
        )
        folder = tmp_path / name
        finetune(made, method.resolve(), start, tmp_path / "style", folder)
        terms = [line["cal"] for line in lines(folder, phase="finetune")]
        assert terms[0] == pytest.approx(0.0, abs=1e-5)
        sizes[name] = np.mean(terms[1:])
    assert sizes["kl=30"] < sizes["kl=0.01"]


def test_methods_that_differ_in_numbers_share_one_compiled_update(tmp_path):
    """Five weights, margins and gammas, and a soft gate's width: three programs in all."""
    made = replace(trainer(), trainable=replace(trainer().trainable, steps={}))
    start = style_phase(made, lora(), tmp_path / "style")
    made.trainable.steps.clear()
    specs = [f"mbls(margin={m})@soft(width={w})" for m, w in ((1, 0.2), (2, 0.5), (3, 1.0))]
    specs += [f"focal(gamma={g})@all" for g in (0.5, 1, 2)] + ["ls@all", "ls@all"]
    for i, spec in enumerate(specs):
        term, gate = spec.split("@")
        method = MethodConfig(term=term, gate=gate, weight=0.1 * (1 + i), space="options")
        finetune(made, method.resolve(), start, tmp_path / "style", tmp_path / str(i))
    (step,) = made.trainable.steps.values()
    assert step._cache_size() == 3
