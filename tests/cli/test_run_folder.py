"""A run folder has one writer, and begins with its config."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import (
    choose_folder,
    holding_locks,
    lock_folder,
    make_folder,
    original_command,
    resumable,
    take_up,
)
from cogcalib_jax.cli.stored import resume_command, stored_config
from cogcalib_jax.errors import Preempted, UserError
from cogcalib_jax.files import whole_folder

REPOSITORY = Path(__file__).resolve().parents[2]
HOLDER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from cogcalib_jax.cli.run_folder import lock_folder\n"
    "lock_folder(Path(sys.argv[1]))\n"
    "print('held', flush=True)\n"
    "time.sleep(600)"
)


@pytest.fixture(scope="module")
def holder(tmp_path_factory):
    """A folder in which another process is at work, and that process."""
    folder = tmp_path_factory.mktemp("held")
    (folder / "config.yaml").write_text("seed: 0\n")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_one_is_killed(holder):
    folder, process = holder
    with pytest.raises(UserError, match="another process is at work in this folder"):
        take_up(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with holding_locks():
        take_up(folder)
        take_up(folder)  # it is this process's now


def test_two_that_chose_the_same_new_folder_do_not_share_it(tmp_path):
    place = tmp_path / "run"
    assert choose_folder(str(place), "x", False) == choose_folder(str(place), "x", False) == place
    with holding_locks():
        make_folder(place)
        (place / "config.yaml").write_text("seed: 0\n")
        make_folder(place)  # each group of an evaluation asks for it
    # The second one comes when the first has finished already.
    with holding_locks(), pytest.raises(UserError, match="exists and is not empty"):
        make_folder(place)


def test_what_was_killed_before_it_began_may_start_again(tmp_path):
    for _ in range(2):
        with holding_locks():
            place = choose_folder(str(tmp_path / "run"), "x", False)
            make_folder(place)
            assert original_command(place, "train.py", ["--seed", str(_)]).endswith(f"--seed {_}")
    (place / "config.yaml").write_text("seed: 0\n")
    assert original_command(place, "train.py", ["--resume"]).endswith("--seed 1")
    with pytest.raises(UserError, match="exists and is not empty"):
        choose_folder(str(place), "x", False)


def test_a_folder_without_config_is_not_sent_in_a_circle(tmp_path):
    """Advice to leave out --resume must not end in the advice to add it."""
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="put that back from a copy, or choose another --run-dir"):
        choose_folder(str(tmp_path), "x", True)
    with pytest.raises(UserError, match="not empty; choose another --run-dir"):
        choose_folder(str(tmp_path), "x", False)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="add --resume to continue it"):
        choose_folder(str(tmp_path), "x", False)
    assert choose_folder(str(tmp_path), "x", True) == tmp_path


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    run = tmp_path / "run"
    half = ["eval.json.partial", "checkpoints/.3.partial/a.partial"]
    for name in ("cols/adapter", "style"):
        with whole_folder(run / name) as building:
            half.append(f"{building.relative_to(run)}/a")
    for name in half:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("half")
    for name in ("config.yaml", "eval.partial.json", "cols/adapter/a"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("whole")
    (run / "plots.partial").symlink_to(run / "cols")  # the link goes, and not what it points at
    with holding_locks():
        take_up(run)
    assert not (run / "plots.partial").is_symlink()
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert left == {".lock", "config.yaml", "eval.partial.json", "cols/adapter/a"}


def test_locks_of_a_block_within_another_end_with_it(tmp_path):
    with holding_locks():
        lock_folder(tmp_path / "suite")
        with holding_locks():
            lock_folder(tmp_path / "suite" / "cell")
        done = subprocess.run(
            [sys.executable, "-c", HOLDER.replace("600", "0"), str(tmp_path / "suite" / "cell")],
            capture_output=True,
            text=True,
        )
        assert done.stdout == "held\n", done.stderr
        done = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path / "suite")], capture_output=True, text=True
        )
        assert "another process is at work" in done.stderr


@pytest.mark.parametrize("kind", [Preempted, KeyboardInterrupt])
def test_a_stop_is_told_with_the_command_that_goes_on_if_something_is_there(kind, tmp_path):
    folder = tmp_path / "my run"
    command = resume_command("train.py", folder)
    assert command == f"python train.py --resume --run-dir '{folder}'"
    with pytest.raises(kind, match=r"^saved$") as stopped, resumable(folder, command):
        raise kind("saved")
    assert getattr(stopped.value, "command", "") == ""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(kind, match=r"^saved$") as stopped, resumable(folder, command):
        raise kind("saved")
    assert stopped.value.command == command


def test_what_is_resumed_says_itself_what_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "config.yaml"
    asked = ["--resume", "--run-dir", str(file.parent)]
    with pytest.raises(UserError, match="run: nothing to resume"):
        stored_config(asked, RunConfig)
    assert stored_config([*asked, "--distributed.auto"], RunConfig) == []
    file.write_text("seed: 3\n")
    assert stored_config(asked, RunConfig) == ["--config", str(file)]
    assert stored_config([*asked, "--seed", "3"], RunConfig) == ["--config", str(file)]
    assert stored_config(asked[1:], RunConfig) == []
    assert stored_config([*asked, "--config", "mine.yaml"], RunConfig) == []
    file.unlink()
    file.symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="is a symbolic link to a file outside its folder"):
        stored_config(asked, RunConfig)


# A Windows of which only this much is known: no fcntl, and msvcrt, which locks a byte of a file.
WINDOWS = (
    "import sys, types\n"
    "sys.modules['fcntl'] = None\n"
    "taken = []\n"
    "def locking(file, mode, size):\n"
    "    if taken:\n"
    "        raise PermissionError(13, 'Permission denied')\n"
    "    taken.append(size)\n"
    "import train, eval, cogcalib_jax.distributed\n"
    # After the standard library, which takes its presence for Windows as a whole.
    "sys.modules['msvcrt'] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)\n"
    "from pathlib import Path\n"
    "from cogcalib_jax.errors import UserError\n"
    "from cogcalib_jax.cli.run_folder import lock_folder\n"
    "from cogcalib_jax.files import whole_folder\n"
    "lock_folder(Path('one'))\n"
    "try:\n"
    "    lock_folder(Path('two'))\n"
    "except UserError as error:\n"
    "    print(error)\n"
    "Path('whole').mkdir()\n"
    "with whole_folder(Path('whole')) as building:\n"
    "    (building / 'a').write_text('ours')\n"
)


def test_without_fcntl_folders_are_locked_by_what_windows_has(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "two: another process is at work in this folder; wait for its end, or choose another"
        " --run-dir\n"
    )
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["a"]
