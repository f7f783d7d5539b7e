"""Blocks as files, so that they can be made long before their turn and are found again after a kill."""

import json
import os
import struct
import threading
from pathlib import Path

import numpy as np
import xxhash

from scratchlm.data.blocks import Block
from scratchlm.files.whole import remove_leftovers, told_if_unwritable
from scratchlm.text.cleaning_report import Report
from scratchlm.text.lanes import Cursor

_FORMAT = "scratchlm block 1"
_ALIGNED = 64  # bytes: arrays begin where numpy likes them to
_ARRAYS = {"offsets": "<i8", "hashes": "<u8", "sizes": "<i8", "near_keys": "<u8", "ids": "<u2"}
_HASH = struct.Struct("<Q")


class BlockFiles:
    """A folder with one file for each block that was made and not yet used.

    A file is a line of JSON (where the block begins and ends in its lane, what cleaning did, the shapes of the arrays),
    the arrays one behind the other, and the XXH3 of all that. It is written beside and renamed, and not synced: what a
    power cut leaves of it does not have that hash, and counts as not there. (`numpy.savez` does much the same; it takes
    three times as long to read, in the one process that everything waits for.)
    """

    def __init__(self, folder: Path) -> None:
        """Names the folder, which `open` makes."""
        self.folder = folder

    def open(self) -> None:
        """Makes the folder, or clears an old one of what was half written."""
        with told_if_unwritable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    def write(self, source: int, lane: int, cursor: Cursor, block: Block, behind: Cursor) -> int:
        """Keeps a block; any number of threads may.

        Args:
            source: Number of its source.
            lane: Its lane.
            cursor: Where it begins there.
            block: The block.
            behind: The cursor behind it.

        Returns:
            Bytes that it takes.

        Raises:
            BrokenState: The disk is full or the folder cannot be written.
        """
        arrays = [np.asarray(getattr(block, name), dtype) for name, dtype in _ARRAYS.items()]
        header = {
            "format": _FORMAT,
            "cursor": cursor,
            "behind": behind,
            "shapes": [array.shape for array in arrays],
            "report": block.report.to_json(),
            "times": [[step.seconds, step.timed_bytes] for step in block.report.steps],
        }
        line = json.dumps(header).encode()
        line += b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"
        data = b"".join([line, *(array.tobytes() for array in arrays)])
        path = self._path(source, lane, cursor)
        temporary = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
        with told_if_unwritable(path):
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.write(_HASH.pack(xxhash.xxh3_64_intdigest(data)))
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return len(data) + _HASH.size

    def read(self, source: int, lane: int, cursor: Cursor) -> tuple[Block, Cursor] | None:
        """The block that begins at a cursor of a lane, and the cursor behind it; None where there is no whole one."""
        try:
            data = self._path(source, lane, cursor).read_bytes()
        except FileNotFoundError:
            return None
        body = memoryview(data)[: -_HASH.size]
        if len(data) <= _HASH.size or xxhash.xxh3_64_intdigest(body) != _HASH.unpack(data[-_HASH.size :])[0]:
            return None
        at = data.index(b"\n") + 1
        header = json.loads(data[:at])
        if header["format"] != _FORMAT or header["cursor"] != cursor:
            return None
        arrays = {}
        for (name, dtype), shape in zip(_ARRAYS.items(), header["shapes"], strict=True):
            n = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(data, dtype, n, at).reshape(shape)
            at += arrays[name].nbytes
        report = Report.from_json(header["report"])
        for step, (seconds, timed_bytes) in zip(report.steps, header["times"], strict=True):
            step.seconds, step.timed_bytes = seconds, timed_bytes
        return Block(**arrays, report=report), header["behind"]

    def n_bytes(self, source: int, lane: int, cursor: Cursor) -> int:
        """Bytes of a block's file."""
        return self._path(source, lane, cursor).stat().st_size

    def remove(self, source: int, lane: int, cursor: Cursor) -> None:
        """Forgets a block."""
        self._path(source, lane, cursor).unlink(missing_ok=True)

    def _path(self, source: int, lane: int, cursor: Cursor) -> Path:
        number = cursor[0] if cursor else 0  # of the blocks before it in its lane
        return self.folder / f"{source}-{lane}-{number}.block"
