"""Append-only lines of JSON, readable after a kill at any moment."""

import json
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import orjson

from scratchlm.errors import BrokenState
from scratchlm.files.whole import told_if_unwritable


class Journal:
    """A file of JSON objects, one a line, only ever appended to.

    A process killed while writing leaves at most one broken last line: readers pass over it, the next writer cuts it.
    """

    def __init__(self, path: str | Path) -> None:
        """Remembers where the lines go; the file is made at the first append.

        Args:
            path: The file; its folder is made if missing.
        """
        self.path = Path(path)
        self._file: IO[bytes] | None = None

    def append(self, entry: dict[str, Any]) -> None:
        """Writes one line and hands it to the operating system, so that a kill of this process cannot lose it.

        Raises:
            BrokenState: The disk is full or the folder cannot be written.
        """
        with told_if_unwritable(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _cut_broken_end(self.path)
                self._file = self.path.open("ab")
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_journal(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a journal, oldest first; none where there is no file.

    Raises:
        BrokenState: A line before the last is damaged, which no kill of a writer does.
    """
    entries, damaged = whole_lines(path)
    if damaged:
        raise BrokenState(f"{path}: line {damaged[0]:,} is damaged. Remove that line, or move the file away.")
    return entries


def whole_lines(path: str | Path) -> tuple[list[dict[str, Any]], list[int]]:
    """What can be read of a journal, for a reader that would rather show some of it than nothing.

    Args:
        path: The journal; without that file there are no lines.

    Returns:
        The whole lines, oldest first, and the numbers of those that are damaged, the unfinished last one left out.
    """
    entries: list[dict[str, Any]] = []
    damaged: list[int] = []
    if not Path(path).exists():
        return entries, damaged
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            entry = _parsed(line)
            if isinstance(entry, dict):
                entries.append(entry)
            else:
                damaged.append(number)
    return entries, damaged


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)  # gives a million lines the same keys, not each its own
    except ValueError:
        with suppress(ValueError):
            return json.loads(line)  # which knows NaN and Infinity
    return None


def _cut_broken_end(path: Path) -> None:
    if path.exists() and (end := path.read_bytes()) and not end.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(end.rfind(b"\n") + 1)


def read_marked(path: str | Path, **marks: type) -> list[dict[str, Any]]:
    """All whole lines of a journal of which each must hold some keys.

    Args:
        path: The journal; without that file there are no lines.
        **marks: Key -> type of its value.

    Raises:
        BrokenState: A line is damaged, or lacks one of them.
    """
    entries = read_journal(path)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in marks.items()):
            raise BrokenState(
                f"{path}: line {number:,} is damaged: it is to hold {' and '.join(marks)}. Remove that line, or move "
                "the file away."
            )
    return entries
