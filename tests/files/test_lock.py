"""A folder has one owner at a time, and says who."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scratchlm.errors import BrokenState
from scratchlm.files.lock import folder_lock

SOURCE = Path(__file__).parents[2] / "src"
HOLD = (
    "import sys, time\n"
    "from scratchlm.files.lock import folder_lock\n"
    "with folder_lock(sys.argv[1], 'run.lock'):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_second_owner_is_refused_with_the_first_ones_name_until_it_dies(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                BrokenState, match=rf"in use by process {owner.pid} on .+\. Wait for it or name another folder"
            ),
            folder_lock(tmp_path, "run.lock"),
        ):
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with folder_lock(tmp_path, "run.lock"):
            assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock").read_text()


def test_a_lock_is_free_again_after_its_block_even_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), folder_lock(tmp_path / "new", "run.lock"):
            raise ZeroDivisionError
    with folder_lock(tmp_path / "new", "run.lock"), folder_lock(tmp_path / "new", "other.lock"):
        pass


def test_a_refused_owner_leaves_the_first_ones_name(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "run.lock"):
        before = (tmp_path / "run.lock").read_text()
        with pytest.raises(BrokenState), folder_lock(tmp_path, "run.lock"):
            pass
        assert (tmp_path / "run.lock").read_text() == before


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BrokenState, match=r"file/run\.lock: cannot be written"),
        folder_lock(tmp_path / "file", "run.lock"),
    ):
        pass


def test_an_error_of_the_block_keeps_its_own_meaning(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), folder_lock(tmp_path, "run.lock"):
        raise PermissionError(13, "of the block")


def test_a_disk_too_full_for_the_owners_name_is_told_in_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from scratchlm.errors import BrokenState\n"
        "from scratchlm.files.lock import folder_lock\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    with folder_lock(sys.argv[1], 'run.lock'):\n"
        "        pass\n"
        "except BrokenState as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith(f"{tmp_path}/run.lock: no space left to write it"), done.stderr


@pytest.mark.parametrize("rubbish", [b"", b"5", b"[1]", b"\xff\0", b'{"pid": 1}'])
def test_rubbish_in_the_lock_file_hides_the_owners_name_only(tmp_path: Path, rubbish: bytes) -> None:
    with folder_lock(tmp_path, "run.lock"):
        (tmp_path / "run.lock").write_bytes(rubbish)
        with pytest.raises(BrokenState, match="in use by another process"), folder_lock(tmp_path, "run.lock"):
            pass


def test_a_child_that_outlives_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from scratchlm.files.lock import folder_lock\n"
        "with folder_lock(sys.argv[1], 'run.lock'):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        print(child, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        assert owner.wait() == -signal.SIGKILL
        try:
            with folder_lock(tmp_path, "run.lock"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(BrokenState, match=r"its file system has no locks \(.+\).*another file system"),
        folder_lock(tmp_path, "run.lock"),
    ):
        pass
