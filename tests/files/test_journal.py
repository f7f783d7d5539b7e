"""A journal keeps every line that was appended, whenever its writer was killed."""

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
