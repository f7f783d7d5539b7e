"""A file is there whole or not at all, whatever happens to its writer."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratchlm.errors import BrokenState, MissingFile
from scratchlm.files.whole import (
    remove_leftovers,
    require_space,
    sha256,
    unwritable,
    whole_file,
    write_json,
    write_text,
)

SOURCE = Path(__file__).parents[2] / "src"


def test_a_file_appears_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    with whole_file(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(path.parent) == ["a.bin"]


def test_after_an_error_the_old_file_stands_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import sys, time\n"
        "from scratchlm.files.whole import whole_file\n"
        "with whole_file(sys.argv[1]) as file:\n"
        "    file.write(b'new')\n"
        "    file.flush()\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(SOURCE)}) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    assert [leftover.name for leftover in remove_leftovers(tmp_path)] == [f".a.txt.partial-{writer.pid}"]
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk; it must not touch this process.
    code = (
        "import resource, signal, sys\n"
        "from scratchlm.errors import BrokenState\n"
        "from scratchlm.files.whole import whole_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with whole_file(sys.argv[1]) as file:\n"
        "        file.write(b'x' * 100_000)\n"
        "except BrokenState as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "a.bin"
    write_text(path, "old")
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert done.stdout.startswith(f"{path}: no space left to write it ("), done.stderr
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        BrokenState, match=r"file/a\.txt: cannot be written \(.*\)\. Name a folder that you may write to"
    ):
        write_text(tmp_path / "file" / "a.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BrokenState, match=r"folder: cannot be written"):
        write_text(tmp_path / "folder", "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_no_space_is_told_even_where_the_folder_is_not_there(tmp_path: Path) -> None:
    error = unwritable(tmp_path / "not" / "there" / "a", OSError(errno.ENOSPC, "full"))
    assert isinstance(error, BrokenState)
    assert "no space left" in str(error)


def test_an_error_of_the_block_keeps_its_own_meaning(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"^source: not there") as raised, whole_file(tmp_path / "a.txt"):
        raise MissingFile("source: not there")
    assert raised.value.__cause__ is None
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        (tmp_path / "nothing").read_text()


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    # Processes, as the temporary name holds the pid: each writes only its own letter, many times over.
    code = (
        "import sys\n"
        "from scratchlm.files.whole import whole_file\n"
        "for _ in range(30):\n"
        "    with whole_file(sys.argv[1]) as file:\n"
        "        for _ in range(100): file.write(sys.argv[2].encode() * 1000)\n"
    )
    path = tmp_path / "a.txt"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter], env=environment) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
        time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_are_only_what_writers_left(tmp_path: Path) -> None:
    for name in ("a.txt", ".hidden", ".a.txt.partial-12", "b.partial-12"):
        (tmp_path / name).write_text("")
    (tmp_path / ".bins.partial-7").mkdir()
    (tmp_path / ".bins.partial-7" / "train.bin").write_text("")
    assert [path.name for path in remove_leftovers(tmp_path)] == [".a.txt.partial-12", ".bins.partial-7"]
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.txt", "b.partial-12"]
    assert remove_leftovers(tmp_path / "not there") == []


def test_json_is_readable_and_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "ü", "n": 1})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "name": "ü",\n  "n": 1\n}\n'
    (tmp_path / "abc").write_bytes(b"abc")
    # Made with: printf abc | sha256sum
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_write_that_cannot_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(BrokenState, match=r"1,000,000,000,000,000,000 bytes are needed and [\d,]+ are free"):
        require_space(tmp_path / "not" / "there", 10**18)
