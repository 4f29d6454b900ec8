"""A folder that is written as a whole: others' files stay, and what was killed is cleared away."""

import re

import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.folders import whole_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_others_put_there_meanwhile_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="out: cannot be written .Directory not empty.; choose"):  # noqa: SIM117
        with whole_folder(out) as building:
            (building / "a").write_text("ours")
            out.mkdir()
            (out / "notes.txt").write_text("theirs")
    assert names(tmp_path) == ["out"] and names(out) == ["notes.txt"]


def test_an_empty_folder_and_one_to_be_replaced_are_taken(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b"):
        with whole_folder(out, replace=name == "b") as building:
            (building / name).write_text("ours")
        assert names(out) == [name]
    assert names(tmp_path) == ["out"]


def test_a_link_is_not_followed_to_where_it_leads(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="out: is a link"), whole_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as building:
        killed = building.with_name(re.sub("-.{8}", "-abcd_123", building.name))
        others = [tmp_path / name for name in (".out-settings", ".output-abcd_123.partial")]
        for folder in (killed, *others):
            folder.mkdir()
            (folder / "a").write_text("half")
        with whole_folder(tmp_path / "out"):
            pass
        assert building.is_dir() and not killed.exists()
    assert names(tmp_path) == sorted(["out", *(folder.name for folder in others)])
