"""The uint16 files, their document index and manifest; nothing else knows their bytes.

A bins folder holds, for each split, `<split>.bin` (little-endian uint16 ids with no header, each document followed by
the end of text) and `<split>.docs.npy` (one record a document), then `tokenizer.json` and `manifest.json`. The manifest
is written last and removed first: a folder without it is not prepared.
"""

import hashlib
import io
import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.files.whole import sha256, told_if_unwritable, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPLIT_FILES = tuple(f"{split}.{kind}" for split in ("train", "val", "test") for kind in ("bin", "docs.npy"))
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
_PARTS = {"files": dict, "settings": dict, "card": dict, "vocab_size": int, "tokenizer_sha256": str}
MAX_VOCAB_SIZE = 1 << 16  # what uint16 can name

TOKEN = np.dtype("<u2")
DOCUMENT = np.dtype([("start", "<u8"), ("source", "u1"), ("hash", "<u8")])
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
        self._bin = _Appended(Path(folder) / f"{split}.bin", 0)
        self._index = _Appended(Path(folder) / f"{split}.docs.npy", len(_index_header(0)))
        self._ids: list[NDArray[np.uint16]] = []
        self._records = bytearray()
        self._n_waiting = 0

    def __enter__(self) -> Self:
        committed = self._committed or {"tokens": 0, "documents": 0, "sha256": ["", ""]}
        self.n_tokens, self.n_documents = committed["tokens"], committed["documents"]
        sizes = (self.n_tokens * TOKEN.itemsize, self.n_documents * DOCUMENT.itemsize)
        for file, size, hashed in zip((self._bin, self._index), sizes, committed["sha256"], strict=True):
            file.open(size, hashed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
                self._index.write_header(_index_header(self.n_documents))
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
        self._bin.append(b"".join(self._ids))
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
        return np.memmap(self._bin.path, TOKEN, mode="r", shape=(self.n_tokens,))

    @property
    def documents(self) -> NDArray[np.void]:
        """The document index so far, as a read-only memory map of the file."""
        self.flush()
        if not self.n_documents:
            return np.empty(0, DOCUMENT)
        header = len(_index_header(0))
        return np.memmap(self._index.path, DOCUMENT, mode="r", offset=header, shape=(self.n_documents,))


class _Appended:
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
                raise BrokenState(f"{self.path}: not as it was left. Make the bins anew.")
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


def _index_header(n_documents: int) -> bytes:
    """The header of an index file; numpy pads it, so that it is as long for any number of documents."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(DOCUMENT), "fortran_order": False, "shape": (n_documents,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _as_tokens(ids: NDArray[Any]) -> NDArray[np.uint16]:
    if len(ids) and (ids.min() < 0 or ids.max() >= MAX_VOCAB_SIZE):
        worst = int(ids.max() if ids.max() >= MAX_VOCAB_SIZE else ids.min())
        raise BadValue(
            f"data.tokenizer: gave the id {worst:,}, and a bin holds 0 to {MAX_VOCAB_SIZE - 1:,} (uint16). "
            f"Choose a tokenizer with at most {MAX_VOCAB_SIZE:,} ids."
        )
    return ids.astype(TOKEN)


class Bin:
    """One split, read-only. Files are mapped at first use and never travel with a pickle: a worker maps them anew."""

    def __init__(self, folder: str | Path, split: str) -> None:
        """Remembers the files; opens nothing.

        Args:
            folder: The bins folder.
            split: `train`, `val` or `test`.
        """
        self.folder, self.split = Path(folder), split
        self._tokens: NDArray[np.uint16] | None = None
        self._documents: NDArray[np.void] | None = None
        self._starts: NDArray[np.uint64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokens": None, "_documents": None, "_starts": None}

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """All ids of the split, (n_tokens,), as a read-only memory map."""
        if self._tokens is None:
            self._tokens = np.memmap(self.folder / f"{self.split}.bin", TOKEN, mode="r")
        return self._tokens

    @property
    def documents(self) -> NDArray[np.void]:
        """One record a document, in order: `start` (position of its first id), `source`, `hash`."""
        if self._documents is None:
            self._documents = np.load(self.folder / f"{self.split}.docs.npy", mmap_mode="r")
        return self._documents

    @property
    def n_tokens(self) -> int:
        """Ids in the split, ends of text included."""
        return len(self.tokens)

    def source_of(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Source of each position; an end of text belongs to the document it ends.

        Args:
            positions: Positions in the split, of any shape.

        Returns:
            Numbers of sources, of the same shape.
        """
        if self._starts is None:
            self._starts = np.ascontiguousarray(self.documents["start"])  # searchsorted would copy it at every call
        found = np.searchsorted(self._starts, positions.astype(np.uint64), side="right") - 1
        sources: NDArray[np.uint8] = self.documents["source"][found]
        return sources


def write_manifest(
    folder: str | Path,
    vocab_size: int,
    settings: dict[str, Any],
    card: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    hashes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Closes a bins folder: hashes the files in it and writes the manifest.

    Args:
        folder: The folder, with its bins and tokenizer.json in place.
        vocab_size: Ids of the tokenizer.
        settings: What shaped the bins; a later `prepare` compares its own with them.
        card: The corpus card.
        inputs: What the files that the bins were made from looked like; a later `prepare` warns where they differ.
        hashes: Name of a file to its SHA-256, where that is known and need not be computed.

    Returns:
        The manifest.
    """
    folder = Path(folder)
    files: dict[str, dict[str, Any]] = {}
    for path in sorted([*folder.glob("*.bin"), *folder.glob("*.docs.npy")]):
        n_bytes = path.stat().st_size
        files[path.name] = {"bytes": n_bytes, "sha256": (hashes or {}).get(path.name) or sha256(path)}
        if path.suffix == ".bin":
            files[path.name]["tokens"] = n_bytes // TOKEN.itemsize
    manifest = {
        "format_version": FORMAT_VERSION,
        "vocab_size": vocab_size,
        "tokenizer_sha256": sha256(folder / "tokenizer.json"),
        "files": files,
        "settings": settings,
        "inputs": inputs or {},
        "card": card,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder holds a manifest, so was written to its end."""
    return (Path(folder) / MANIFEST).exists()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a bins folder.

    Raises:
        MissingFile: There is none.
        BrokenState: It cannot be read, or another version of scratchlm wrote it.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except OSError as error:
        raise MissingFile(
            f"data.folder={folder}: no {MANIFEST} there, so no bins. Make them with scratchlm prepare."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenState(
            f"{path}: not a manifest ({error}). Make the bins anew with scratchlm prepare --fresh true -c YOUR.yaml."
        ) from error
    if version != FORMAT_VERSION:
        raise BrokenState(
            f"{path}: its format is version {version}, and this scratchlm reads version {FORMAT_VERSION}. "
            "Make the bins anew with scratchlm prepare --fresh true -c YOUR.yaml."
        )
    if lacking := [name for name, kind in _PARTS.items() if not isinstance(manifest.get(name), kind)]:
        raise BrokenState(
            f"{path}: not a manifest (no {', '.join(lacking)}). Make the bins anew with scratchlm prepare --fresh true "
            "-c YOUR.yaml."
        )
    return manifest


def check_files(folder: str | Path, manifest: dict[str, Any]) -> None:
    """The cheap check that every opening makes: files there, sizes as written, tokenizer unchanged. Bins are not read.

    Args:
        folder: The bins folder.
        manifest: Its manifest.

    Raises:
        BrokenState: A file is missing, of another size, or the tokenizer is another.
    """
    cure = "Copy the folder again, or make it anew with scratchlm prepare --fresh true -c YOUR.yaml."
    for name, written in manifest["files"].items():
        path = Path(folder) / name
        if not path.exists():
            raise BrokenState(f"{path}: missing, though {MANIFEST} names it. {cure}")
        if (n_bytes := path.stat().st_size) != written["bytes"]:
            raise BrokenState(f"{path}: {n_bytes:,} bytes, and {MANIFEST} says {written['bytes']:,}. {cure}")
    tokenizer = Path(folder) / "tokenizer.json"
    if not tokenizer.is_file():
        raise BrokenState(f"{tokenizer}: missing. {cure}")
    found, written = sha256(tokenizer), manifest["tokenizer_sha256"]
    if found != written:
        raise BrokenState(
            f"{tokenizer}: not the tokenizer of these bins (SHA-256 {found[:12]}, not {written[:12]}). {cure}"
        )
