"""How the files of a split come to be: in place, in order, and so that a killed writer can be taken over from."""

import hashlib
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from scratchlm.data.bins import DOCUMENT, MAX_VOCAB_SIZE, TOKEN, index_header
from scratchlm.errors import BadValue, BrokenState
from scratchlm.files.whole import told_if_unwritable

# The same bytes as DOCUMENT: packing one record takes a tenth of a numpy assignment's time.
_RECORD = struct.Struct("<QBQ")
_BUFFER_TOKENS = 1 << 19  # written at once (chosen, not tuned)


class BinWriter:
    """Writes one split, in place and in order; what `commit` has confirmed, a later writer can go on from.

    Memory does not grow with the documents: ids and records go straight to the disk.
    """

    def __init__(
        self, folder: str | Path, split: str, end_of_text_id: int, committed: dict[str, Any] | None = None
    ) -> None:
        """Remembers where the split goes; files are opened on entering the block.

        Args:
            folder: The bins folder; made if missing.
            split: `train`, `val` or `test`.
            end_of_text_id: Id that follows every document.
            committed: What `commit` gave, to go on from there; None begins anew.
        """
        self.split = split
        self.n_tokens, self.n_documents = 0, 0
        self._end_of_text = np.array([end_of_text_id], TOKEN)
        self._committed = committed
        self._bin = Appended(Path(folder) / f"{split}.bin", 0)
        self._index = Appended(Path(folder) / f"{split}.docs.npy", len(index_header(0)))
        self._ids: list[NDArray[np.uint16]] = []
        self._records = bytearray()
        self._n_waiting = 0

    def __enter__(self) -> Self:
        committed = self._committed or {"tokens": 0, "documents": 0, "sha256": ["", ""]}
        self.n_tokens, self.n_documents = committed["tokens"], committed["documents"]
        sizes = (self.n_tokens * TOKEN.itemsize, self.n_documents * DOCUMENT.itemsize)
        try:
            for file, size, hashed in zip((self._bin, self._index), sizes, committed["sha256"], strict=True):
                file.open(size, hashed)
        except BaseException:
            self._bin.close()
            self._index.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
                self._index.write_header(index_header(self.n_documents))
                self._bin.sync()
                self._index.sync()
        finally:
            self._bin.close()
            self._index.close()

    def add(self, ids: Sequence[int] | NDArray[Any], source: int, content_hash: int) -> None:
        """Appends one document and the end of text.

        Args:
            ids: The document's ids, without an end of text.
            source: Number of its source, below 256.
            content_hash: 64-bit hash of its text.

        Raises:
            BadValue: An id does not fit uint16.
            BrokenState: The disk is full.
        """
        array = np.asarray(ids)
        if array.dtype != TOKEN:
            array = _as_tokens(array)
        self._records += _RECORD.pack(self.n_tokens, source, content_hash)
        self._ids.append(array)
        self._ids.append(self._end_of_text)
        n = len(array) + 1
        self.n_tokens += n
        self.n_documents += 1
        self._n_waiting += n
        if self._n_waiting >= _BUFFER_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Hands all documents so far to the operating system, so that a kill of this process cannot lose them.

        Raises:
            BrokenState: The disk is full.
        """
        self._bin.append(np.concatenate(self._ids).tobytes() if self._ids else b"")
        self._index.append(bytes(self._records))
        self._ids.clear()
        self._records.clear()
        self._n_waiting = 0

    def commit(self) -> dict[str, Any]:
        """Flushes, and gives plain values from which a later writer of these files can go on."""
        self.flush()
        return {
            "tokens": self.n_tokens,
            "documents": self.n_documents,
            "sha256": [self._bin.sha256, self._index.sha256],
        }

    @property
    def sha256(self) -> str:
        """SHA-256 of the bin so far, in hexadecimal: it was hashed as it was written."""
        return self._bin.sha256

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """All ids so far, as a read-only memory map of the file."""
        self.flush()
        if not self.n_tokens:
            return np.empty(0, TOKEN)
        return np.memmap(self._bin.path, TOKEN, mode="r", shape=(self.n_tokens,))

    @property
    def documents(self) -> NDArray[np.void]:
        """The document index so far, as a read-only memory map of the file."""
        self.flush()
        if not self.n_documents:
            return np.empty(0, DOCUMENT)
        header = len(index_header(0))
        return np.memmap(self._index.path, DOCUMENT, mode="r", offset=header, shape=(self.n_documents,))


class Appended:
    """A file behind a header, written from its front to its end and hashed on the way; the header is not hashed."""

    def __init__(self, path: Path, header_bytes: int) -> None:
        self.path, self._header_bytes = path, header_bytes
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def open(self, n_bytes: int, sha256: str) -> None:
        """Goes on behind the first `n_bytes`, which must have this hash; nought of them begins anew.

        Raises:
            BrokenState: They are not there or not the same, or the folder cannot be written.
        """
        with told_if_unwritable(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if n_bytes and not self.path.exists():
                raise BrokenState(f"{self.path}: not there any more.")
            self._file = self.path.open("r+b" if n_bytes else "w+b")
            if not n_bytes:
                self._file.write(bytes(self._header_bytes))
                return
            self._file.seek(self._header_bytes)
            left = n_bytes
            while left and (data := self._file.read(min(left, 1 << 20))):
                self._hash.update(data)
                left -= len(data)
            if left or self.sha256 != sha256:
                raise BrokenState(f"{self.path}: not as it was left.")
            self._file.truncate(self._file.tell())

    def append(self, data: bytes) -> None:
        assert self._file is not None
        with told_if_unwritable(self.path):
            self._file.write(data)
            self._file.flush()
        self._hash.update(data)

    def write_header(self, header: bytes) -> None:
        assert self._file is not None
        with told_if_unwritable(self.path):
            self._file.seek(0)
            self._file.write(header)

    def sync(self) -> None:
        assert self._file is not None
        with told_if_unwritable(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # the disk is full: what could not be written was said
                self._file.close()
            self._file = None

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _as_tokens(ids: NDArray[Any]) -> NDArray[np.uint16]:
    if len(ids) and (ids.min() < 0 or ids.max() >= MAX_VOCAB_SIZE):
        worst = int(ids.max() if ids.max() >= MAX_VOCAB_SIZE else ids.min())
        raise BadValue(
            f"data.tokenizer: gave the id {worst:,}, and a bin holds 0 to {MAX_VOCAB_SIZE - 1:,} (uint16). "
            f"Choose a tokenizer with at most {MAX_VOCAB_SIZE:,} ids."
        )
    return ids.astype(TOKEN)
