"""Checkpoints come back bit for bit, or not at all and with the reason."""

import errno
import json
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cogcalib_jax.errors import FieldError, UserError, refusal
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training import checkpoint
from cogcalib_jax.training.checkpoint import CheckpointConfig, Checkpoints

IDENTITY = {"seed": 0, "lora": {"r": 8, "target_modules": ("q_proj", "v_proj")}}


def tree(factor: float = 1.0):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    key = jax.random.key(0)
    spread = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    return {
        "lora": jax.device_put(factor * jax.random.normal(key, (40, 64)), spread),
        "half": jnp.full(3, factor / 3, jnp.bfloat16),
        "step": jnp.int32(7),
        "threshold": jnp.float32(np.inf),
        "best": jnp.float32(-np.inf),
        "denormal": jnp.float32(1e-42),
        "zero": jnp.float32(-0.0),
    }


def saved(folder, steps=(3,), **config):
    with Checkpoints(folder, CheckpointConfig(**config)) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(float(step)), IDENTITY)
    return Checkpoints(folder, CheckpointConfig(**config))


def bits(array):
    return np.asarray(array).tobytes()


def same(restored, factor):
    return {n: bits(x) for n, x in restored.items()} == {
        n: bits(x) for n, x in tree(factor).items()
    }


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_restored_tree_has_the_same_bits_and_places(tmp_path):
    restored = saved(tmp_path).restore(tree(), IDENTITY)
    assert (restored.step, restored.stopped) == (3, False)
    assert same(restored.tree, 3.0)
    for name, leaf in tree(3.0).items():
        assert restored.tree[name].dtype == leaf.dtype
        assert restored.tree[name].sharding == leaf.sharding


def test_it_goes_onto_another_mesh(tmp_path):
    everywhere = NamedSharding(make_mesh(MeshConfig(fsdp=8)), PartitionSpec())
    like = jax.tree.map(lambda leaf: jax.device_put(leaf, everywhere), tree())
    restored = saved(tmp_path).restore(like, IDENTITY).tree
    assert same(restored, 3.0)
    assert restored["lora"].sharding == everywhere


def test_the_newest_is_restored_and_only_so_many_are_kept(tmp_path):
    checkpoints = saved(tmp_path, steps=(2, 4, 9, 10), keep=2)
    assert same(checkpoints.restore(tree(), IDENTITY).tree, 10.0)
    assert steps_in(tmp_path) == ["10", "9"]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(tree(), IDENTITY) is None


def test_one_that_was_stopped_comes_before_the_whole_one_of_its_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, tree(1.0), IDENTITY, stopped=True)
        restored = checkpoints.restore(tree(), IDENTITY) if checkpoints.wait() is None else None
        assert (restored.step, restored.stopped) == (3, True)
        checkpoints.save(3, tree(2.0), IDENTITY)
    restored = Checkpoints(tmp_path).restore(tree(), IDENTITY)
    assert (restored.step, restored.stopped) == (3, False)
    assert same(restored.tree, 2.0)


def test_what_is_saved_is_the_state_at_the_save_however_late_it_is_written(tmp_path, monkeypatch):
    """The arrays are donated to an update, and overwritten, before the writer begins."""
    go, save = threading.Event(), checkpoint.ocp.save

    def late(*args, **kwargs):
        assert go.wait(60)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint.ocp, "save", late)
    update = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    state = tree(3.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, IDENTITY)
        for _ in range(5):
            state = jax.block_until_ready(update(state))
        assert not (tmp_path / "3").exists()  # training went on meanwhile
        go.set()
    assert same(Checkpoints(tmp_path).restore(tree(), IDENTITY).tree, 3.0)


def test_a_restored_tree_may_be_donated(tmp_path):
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpoints = saved(tmp_path)
    first, second = (checkpoints.restore(tree(), IDENTITY).tree for _ in range(2))
    jax.block_until_ready(jax.tree.map(update, first))
    assert same(second, 3.0)


def test_another_config_is_refused_by_field(tmp_path):
    checkpoints = saved(tmp_path, steps=(2, 3))
    other = {"seed": 0, "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    with pytest.raises(UserError, match=r"lora\.r is 4 but it was started with 8"):
        checkpoints.restore(tree(), other)
    with pytest.raises(UserError, match="phase"):
        checkpoints.restore(tree(), IDENTITY | {"phase": "style"})
    assert steps_in(tmp_path) == ["2", "3"]


def test_another_format_is_refused(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(UserError, match=r"its format is 3 and this program's 4"):
        checkpoints.restore(tree(), IDENTITY)


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def files(place):
    """The largest file of each name: array data, Orbax's metadata, and the manifest."""
    largest = {}
    for path in sorted(place.rglob("*"), key=lambda p: p.stat().st_size):
        if path.is_file() and path.stat().st_size:
            largest[path.parent if path.parent.name == "d" else path.name] = path
    return list(largest.values())


DAMAGE = {
    "flipped bit": flip,
    "flipped first": lambda p: flip(p, 0),
    "cut": cut,
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_told_and_the_one_before_it_used(damage, tmp_path, capfd):
    """Whatever file is damaged, Orbax's own or the manifest: a line, and no traceback of Orbax."""
    saved(tmp_path / "whole", steps=(2, 3))
    names = [p.relative_to(tmp_path / "whole") for p in files(tmp_path / "whole" / "3")]
    assert len(names) >= 5
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        DAMAGE[damage](folder / name)
        capfd.readouterr()
        restored = Checkpoints(folder).restore(tree(), IDENTITY)
        assert restored.step == 2 and same(restored.tree, 2.0)
        (line,) = capfd.readouterr().err.splitlines()
        assert "checkpoint 3 is damaged" in line and "checkpoint 2 is used" in line
        assert steps_in(folder) == ["2", "3-damaged"]
        # Training that comes to that step again writes it anew.
        saved(folder, steps=(3,))
        assert same(Checkpoints(folder).restore(tree(), IDENTITY).tree, 3.0)


def test_a_bit_that_orbax_does_not_notice_is_noticed(tmp_path, monkeypatch):
    """Also where the files were written wrong: leaves have checksums of their own."""
    saved(tmp_path, steps=(3,))
    state = tmp_path / "3" / "state"
    whole = checkpoint.file_checksums(state)
    monkeypatch.setattr(checkpoint, "file_checksums", lambda folder: whole)
    data = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    for at in np.linspace(0.2, 0.9, 6):
        flip(data, at)
        with pytest.raises(UserError, match="damaged"):
            Checkpoints(tmp_path).restore(tree(), IDENTITY)
        flip(data, at)
    assert Checkpoints(tmp_path).restore(tree(), IDENTITY).step == 3


def test_where_none_is_whole_it_says_what_to_do(tmp_path):
    saved(tmp_path, steps=(2, 3))
    for step in ("2", "3"):
        (tmp_path / step / "manifest.json").unlink()
    with pytest.raises(UserError) as told:
        Checkpoints(tmp_path).restore(tree(), IDENTITY)
    assert re.search(
        r"checkpoint 3 is damaged \(manifest.json is missing\); checkpoint 2 .*delete this folder",
        str(told.value),
    )
    assert steps_in(tmp_path) == ["2", "3"]


def test_a_changed_identity_is_damage_and_no_other_run(tmp_path):
    saved(tmp_path, steps=(2, 3))
    file = tmp_path / "3" / "manifest.json"
    content = json.loads(file.read_text())
    content["identity"]["lora"]["r"] = 9
    file.write_text(json.dumps(content))
    assert Checkpoints(tmp_path).restore(tree(), IDENTITY).step == 2


@pytest.mark.parametrize("renamed", ["99", "4-stopped"])
def test_one_under_another_name_is_damage(renamed, tmp_path, capfd):
    """Updates that were never made would count as made, or a refit that was done as missing."""
    saved(tmp_path, steps=(2, 3))
    (tmp_path / "3").rename(tmp_path / renamed)
    assert Checkpoints(tmp_path).restore(tree(), IDENTITY).step == 2
    assert f"checkpoint {renamed} is damaged (it was saved as 3)" in capfd.readouterr().err
    assert steps_in(tmp_path) == ["2", f"{renamed}-damaged"]


@pytest.mark.parametrize("key", ["name", "identity", "journals", "leaves", "files"])
@pytest.mark.parametrize("value", [None, [], 3])
def test_a_manifest_of_other_kinds_is_damage(key, value, tmp_path):
    """Also where its own checksum is right."""
    content = dict.fromkeys(("identity", "journals", "leaves", "files"), {})
    content |= {"name": "3"}
    checkpoint.write_manifest(tmp_path, content)
    assert checkpoint.read_manifest(tmp_path).items() >= content.items()
    checkpoint.write_manifest(tmp_path, content | {key: value})
    with pytest.raises(checkpoint.DamageError, match=key):
        checkpoint.read_manifest(tmp_path)
    if value is None:
        del content[key]
        checkpoint.write_manifest(tmp_path, content)
        with pytest.raises(checkpoint.DamageError, match=key):
            checkpoint.read_manifest(tmp_path)


def with_journal(folder):
    """Checkpoints after one line and after two of a journal that has three."""
    journal = folder / "metrics.jsonl"
    with Checkpoints(folder / "c") as checkpoints:
        for step in (1, 2, 3):
            with journal.open("a") as file:
                file.write(f'{{"step": {step}}}\n')
            if step < 3:
                checkpoints.save(step, tree(step), IDENTITY, {journal: 12 * step})
    return journal


def restored_with(journal):
    return Checkpoints(journal.parent / "c").restore(tree(), IDENTITY, [journal])


def test_it_says_how_far_its_journals_had_come(tmp_path):
    restored = restored_with(with_journal(tmp_path))
    assert (restored.step, restored.journals) == (2, {"metrics.jsonl": 24})


JOURNAL_DAMAGE = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:15]), "has 15 of the 24 bytes"),
    "a line taken out": (lambda p: p.write_bytes(p.read_bytes()[:12] + p.read_bytes()[24:] * 2),
                         "has changed in the 24 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("damage", JOURNAL_DAMAGE)
def test_where_a_journal_has_a_gap_the_one_before_it_is_used(damage, tmp_path, capfd):
    journal = with_journal(tmp_path)
    change, told = JOURNAL_DAMAGE[damage]
    change(journal)
    restored = restored_with(journal)
    assert (restored.step, restored.journals) == (1, {"metrics.jsonl": 12})
    (line,) = capfd.readouterr().err.splitlines()
    assert f"checkpoint 2 is damaged (metrics.jsonl {told}" in line
    assert "checkpoint 1 is used" in line


def test_where_a_journal_is_gone_it_says_what_to_do(tmp_path):
    journal = with_journal(tmp_path)
    journal.unlink()
    with pytest.raises(UserError, match=r"metrics.jsonl has 0 of the 12 bytes.*put back what is"):
        restored_with(journal)
    assert steps_in(tmp_path / "c") == ["1", "2"]


def test_journals_are_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(
        checkpoint.os, "fsync", lambda file: flushed.append(steps_in(tmp_path / "c"))
    )
    with_journal(tmp_path)
    assert flushed == [[".1.partial"], [".2.partial", "1"]]


def test_a_file_in_the_place_of_its_folder_is_no_empty_folder(tmp_path):
    (tmp_path / "c").write_text("")
    with pytest.raises(NotADirectoryError):
        Checkpoints(tmp_path / "c").restore(tree(), IDENTITY)


def test_what_a_killed_writer_left_is_no_checkpoint_and_swept_away(tmp_path):
    saved(tmp_path, steps=(2, 3))
    (tmp_path / "3").rename(tmp_path / ".3.partial")
    assert Checkpoints(tmp_path).restore(tree(), IDENTITY).step == 2
    assert steps_in(tmp_path) == ["2"]


FULL = (
    'RESOURCE_EXHAUSTED: Failed writing: "x": Failed to write 6631424 bytes to file 19: No space'
    " left on device [os_error_code='28']"
)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(FULL), "No space left on device; make room"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; choose a place"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; change its perm"),
    ],
)
def test_a_writer_that_is_refused_is_told_at_the_next_save(error, told, tmp_path, monkeypatch):
    saved(tmp_path, steps=(2,))

    def refused(path, *args, **kwargs):
        path.mkdir()
        (path / "half").write_text("written")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "save", refused)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(3, tree(3.0), IDENTITY)
        with pytest.raises(UserError, match=told) as caught:
            checkpoints.save(4, tree(4.0), IDENTITY)
        assert "checkpoint 2 is whole" in str(caught.value) and str(tmp_path) in str(caught.value)
        with pytest.raises(UserError, match=told), Checkpoints(tmp_path) as last:
            last.save(3, tree(3.0), IDENTITY)
    assert steps_in(tmp_path) == ["2"]
    assert same(Checkpoints(tmp_path).restore(tree(), IDENTITY).tree, 2.0)


def test_a_bug_in_the_writer_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint.ocp, "save", broken)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, tree(3.0), IDENTITY)


def test_a_file_in_the_way_of_a_damaged_one_is_named(tmp_path):
    saved(tmp_path, steps=(2, 3))
    (tmp_path / "3" / "manifest.json").unlink()
    (tmp_path / "3-damaged").write_text("mine")
    with pytest.raises(NotADirectoryError) as caught:
        Checkpoints(tmp_path).restore(tree(), IDENTITY)
    assert refusal(caught.value) == (
        f"{tmp_path}/3-damaged: Not a directory; a file lies where a folder belongs: move it away"
    )


@pytest.mark.parametrize(("field", "value"), [("every", 0), ("keep", 0)])
def test_impossible_settings_are_refused_by_field(field, value):
    with pytest.raises(FieldError, match=field):
        CheckpointConfig(**{field: value})
