"""Journals survive a crash in the middle of a line and are cut back to a step."""

import json

from cogcalib_jax.training.journal import Journal


def test_lines_come_back_in_order_and_infinities_as_null(tmp_path):
    journal = Journal(tmp_path / "deep" / "metrics.jsonl")
    assert journal.read() == []
    journal.write(step=1, threshold=float("inf"), loss=0.5)
    journal.write(step=2, threshold=float("nan"), loss=0.25, note="ä")
    assert journal.read() == [
        {"step": 1, "threshold": None, "loss": 0.5},
        {"step": 2, "threshold": None, "loss": 0.25, "note": "ä"},
    ]
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: 1 / 0)


def test_a_torn_last_line_is_left_out_and_gone_after_a_cut(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write(step=1)
    journal.write(step=2)
    whole = journal.path.read_bytes()
    # Torn anywhere, even just before its newline.
    for length in range(1, len(whole) - whole.index(b"\n")):
        journal.path.write_bytes(whole[:-length])
        assert journal.read() == [{"step": 1}]
    journal.cut_to(9)
    journal.write(step=2)
    assert journal.path.read_bytes() == whole


def test_a_cut_drops_what_came_after_its_step(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in (1, 2, 2, 3):
        journal.write(step=step)
    journal.cut_to(2)
    assert [record["step"] for record in journal.read()] == [1, 2, 2]
    journal.cut_to(0)
    assert journal.read() == [] and journal.path.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_journal_that_was_never_written_can_be_cut(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.cut_to(3)
    assert journal.read() == []
