"""Journals survive a crash in the middle of a line and are cut back to what a checkpoint knows."""

import json

from cogcalib_jax.training.storage import Journal
from tests.training.small_trainer import lines


def test_lines_come_in_order_and_infinities_as_null(tmp_path):
    journal = Journal(tmp_path / "deep" / "metrics.jsonl")
    assert journal.size() == 0
    journal.write(step=1, threshold=float("inf"), loss=0.5)
    journal.write(step=2, threshold=float("nan"), loss=0.25, note="ä")
    assert lines(tmp_path / "deep") == [
        {"step": 1, "threshold": None, "loss": 0.5},
        {"step": 2, "threshold": None, "loss": 0.25, "note": "ä"},
    ]
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: 1 / 0)
    assert journal.size() == len(journal.path.read_bytes())


def test_a_cut_drops_what_came_after_even_half_a_line(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write(step=1)
    size = journal.size()
    journal.write(step=2)
    whole = journal.path.read_bytes()
    for length in range(size, len(whole)):
        journal.path.write_bytes(whole[:length])
        journal.cut_to(size)
        journal.write(step=2)
        assert journal.path.read_bytes() == whole
    journal.cut_to(0)
    assert journal.path.read_bytes() == b""


def test_a_journal_that_was_never_written_can_be_cut(tmp_path):
    Journal(tmp_path / "metrics.jsonl").cut_to(0)
    assert list(tmp_path.iterdir()) == []


def test_it_begins_with_the_lines_of_an_earlier_phase(tmp_path):
    earlier, journal = Journal(tmp_path / "style.jsonl"), Journal(tmp_path / "metrics.jsonl")
    journal.begin(earlier)  # there was no such phase
    assert journal.path.read_bytes() == b""
    earlier.write(step=1)
    journal.write(step=9)
    journal.begin(earlier)
    journal.write(step=2)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]
    journal.begin()
    assert journal.path.read_bytes() == b""
