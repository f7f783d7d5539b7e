"""A journal keeps every line that was appended, whenever its writer was killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scratchlm.errors import BrokenState
from scratchlm.files.journal import Journal, read_journal

ENTRIES = [
    {"step": 1, "loss": 2.5},
    {"step": 2, "text": "two\nlines, ü"},
    {"step": 3, "nested": {"a": [1, None, True]}},
]


def write(path: Path) -> None:
    journal = Journal(path)
    for entry in ENTRIES:
        journal.append(entry)
    journal.close()


def test_what_is_appended_is_read_back_in_order_also_by_a_later_writer(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    assert read_journal(path) == []
    write(path)
    write(path)
    assert read_journal(path) == ENTRIES * 2


def test_a_line_can_be_read_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    for n, entry in enumerate(ENTRIES, 1):
        journal.append(entry)
        assert read_journal(tmp_path / "a.jsonl") == ENTRIES[:n]
    journal.close()


def test_at_whatever_byte_a_writer_was_killed_whole_lines_stay_and_the_next_writer_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "whole.jsonl")
    data = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    for n_bytes in range(len(data) + 1):
        path.write_bytes(data[:n_bytes])
        whole = ENTRIES[: data[:n_bytes].count(b"\n")]
        assert read_journal(path) == whole
        journal = Journal(path)
        journal.append({"step": 4})
        journal.close()
        assert read_journal(path) == [*whole, {"step": 4}]


def test_a_closed_journal_opens_again_at_the_next_append(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.append(ENTRIES[0])
    journal.close()
    journal.close()
    journal.append(ENTRIES[1])
    journal.close()
    assert read_journal(tmp_path / "a.jsonl") == ENTRIES[:2]


def test_a_damaged_line_in_the_middle_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\xff\n{"step": 3}\n')
    with pytest.raises(BrokenState, match=r"a\.jsonl: line 2 is damaged"):
        read_journal(path)


def test_a_journal_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokenState, match=r"file/a\.jsonl: cannot be written"):
        Journal(tmp_path / "file" / "a.jsonl").append({})


@pytest.mark.parametrize("damage", [b"\0" * 5000, b"\0" * 50 + b"\n", b'{"st\xff\n', b'{"a": 1}x\n{"b"\n\0\0'])
def test_an_end_damaged_by_a_power_cut_is_passed_over_and_cut_by_the_next_writer(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    assert read_journal(path) == ENTRIES
    write(path)
    assert path.read_bytes() == whole * 2


def test_cutting_a_broken_end_takes_no_memory_for_the_file(tmp_path: Path, run_alone: Callable[..., list[int]]) -> None:
    path = tmp_path / "large.jsonl"
    write(path)
    with path.open("r+b") as file:
        file.truncate(300_000_000)  # zeros, which take no room on the disk
    script = """
import resource, sys
from scratchlm.files.journal import Journal
used = int(re.search(r"VmData:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 50_000_000,) * 2)
Journal(sys.argv[1]).append({"step": 4})
"""
    run_alone(script, str(path))
    assert read_journal(path) == [*ENTRIES, {"step": 4}]


def test_a_line_that_finds_no_room_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    code = (
        "import resource, sys\n"
        "from scratchlm.errors import BrokenState\n"
        "from scratchlm.files.journal import Journal\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 5},) * 2)\n"
        "try:\n"
        "    Journal(sys.argv[1]).append({'step': 4})\n"
        "except BrokenState as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.check_output(command, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert said.startswith(f"{path}: no space left to write it (")
    assert path.read_bytes() == whole


def test_a_journal_removed_amid_a_run_begins_anew_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    journal = Journal(tmp_path / "run" / "a.jsonl")
    journal.append(ENTRIES[0])
    journal.path.unlink()
    journal.append(ENTRIES[1])
    assert read_journal(journal.path) == ENTRIES[1:2]
    assert "a.jsonl: was removed; going on in a new one" in capsys.readouterr().err
    journal.path.unlink()
    journal.path.parent.rmdir()
    with pytest.raises(BrokenState, match=r"run: was removed while it was written to"):
        journal.append(ENTRIES[2])
    assert not journal.path.parent.exists()
