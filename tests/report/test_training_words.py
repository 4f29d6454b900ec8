"""What went wrong in training reaches the reader: the text that a run ends with, and the page."""

import json

import numpy as np
import pytest

from cogcalib_jax.report.load_run import Method, Predictions, RunResults
from cogcalib_jax.report.report import training_notes, write_report
from tests.report.synthetic import write_comparison

STYLE_END = 10
ONE = np.ones(1)
GUESS = float(np.log(4))


def notes(*steps, key="cols", guess=GUESS, keep="last"):
    predictions = {"world": Predictions(("q0",), ONE > 0, ONE, ONE, ONE, guess)}
    method = Method(key, {"world": {}}, predictions, tuple(steps), (), "config.yaml", None)
    configs = {"config.yaml": f"training: {{keep: {keep}}}"}
    return training_notes(
        RunResults(None, (method, method), ("world",), STYLE_END, configs, 15, {})
    )


def updates(losses):
    return [
        {"step": STYLE_END + i, "phase": "finetune", "ce": ce} for i, ce in enumerate(losses, 1)
    ]


def validations(nll):
    return [
        {"step": STYLE_END + i, "phase": "validation", "nll": one, "epoch": float(i)}
        for i, one in enumerate(nll)
    ]


def test_skipped_updates_are_counted_by_phase_and_examples_named():
    def skipped(step, during, *examples, terms=("ce",)):
        line = {"step": step, "phase": "nonfinite", "during": during, "terms": list(terms)}
        return line | {"examples": list(examples), "skipped": 1}

    lines = [{"step": i, "phase": "style"} for i in range(1, 11)]
    lines += [skipped(4, "style", "a"), *updates([1.0] * 20)]
    lines += [skipped(15, "finetune", *"bcd"), skipped(25, "finetune", *"bcdefgh", terms=["cal"])]
    style, finetune = notes(*lines)
    assert style.startswith(
        "Style adaptation: 1 of 10 updates skipped; not finite: cross-entropy ("
    )
    assert finetune.startswith("CoLS: 2 of 20 updates skipped; not finite: the term, cross-entropy")
    assert "(examples b, c, d, e, f and 2 more;" in finetune


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (np.linspace(1.0, 3.0, 30), True),
        (np.linspace(1.0, 0.2, 30), False),
        # Twice a small loss is still small.
        (np.linspace(0.1, 0.4, 30), False),
        ([*np.linspace(1.0, 0.2, 29), None, 0.2], False),
    ],
)
def test_a_loss_far_above_its_start_is_called_divergence(losses, said):
    found = notes(*updates(losses))
    assert len(found) == said
    if said:
        assert "CoLS diverged" in found[0] and "1.07 to 2.93" in found[0]


@pytest.mark.parametrize(
    ("nll", "above"),
    [
        ([1.3, 1.5, 1.6, 1.7], 3),
        ([1.3, 1.3, 1.5, 1.6], 2),
        ([1.5, 1.6, 1.7, 1.3], None),
        ([1.3, 1.3, 1.3, 1.6], None),
        ([1.5, 1.6], None),
    ],
)
def test_a_validation_nll_above_guessing_for_long_is_said(nll, above):
    found = notes(*validations(nll))
    assert len(found) == (above is not None)
    if above:
        assert f"last {above} of 4 validations" in found[0] and "1.39 nats" in found[0]
    assert not notes(*validations(nll), guess=None)


def test_a_kept_best_epoch_is_said_and_not_advised():
    kept, *others = notes(*validations([1.2, 1.3, 1.25, 1.5, 1.6]), key="sft", keep="best")
    assert kept.startswith("SFT: its weights are those of its best validation epoch, 2.0 of 4.0 (")
    # The last two are above guessing, and not what was kept.
    assert not others
    _, above = notes(*validations([1.2, 1.5, 1.6, 1.7, 1.8]), keep="best")
    assert above.endswith("say less than none would: lower training.learning_rate.")
    assert not notes(*validations([1.2]), keep="best"), "no validation, no best one"


def test_a_calibration_split_of_one_class_is_said_where_the_gate_depends_on_it():
    note = "all 40 calibration answers are correct: every example counts as known"
    lines = [
        {"step": STYLE_END + i, "phase": "refit", "threshold": None, "note": text}
        for i, text in enumerate((note, "", note))
    ]
    (found,) = notes(*lines)
    assert found == f"CoLS: at 2 of 3 fits of the threshold {note}."
    for key in ("sft", "ls", "ls-oracle", "sft_temperature"):
        assert not notes(*lines, key=key)


def test_they_stand_in_the_closing_text_and_in_the_page(tmp_path):
    write_comparison(tmp_path, {"sft": 2.0, "cols": 1.2}, n=200)
    note = "all 40 calibration answers are <b>correct</b>"
    with (tmp_path / "cols" / "metrics.jsonl").open("a") as file:
        line = {"step": 330, "phase": "refit", "threshold": None, "note": note}
        file.write(json.dumps(line) + "\n")
    text = " ".join(write_report(tmp_path).split())
    assert f"fits of the threshold {note}" in text
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "calibration answers are &lt;b&gt;correct&lt;/b&gt;" in page
