"""Text that comes as ids already, in token files of others: which ids they hold, and where documents begin in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.text.parts import Chunk, State

KINDS = (".bin", ".npy")
TOKEN = np.dtype("<u2")
Ids = NDArray[np.uint16]

_HEADER = np.dtype("<i4")
_HEADER_WORDS = 256
_MAGIC_UINT16 = 20240520
_MAGIC_UINT32 = 20240801
_MAGIC_QUESTIONS = 20240522  # of write_evalfile in the same script: questions with answers to choose from
_VERSION_UINT16 = 1
_LOOKED_AT = 1 << 16  # ids in which every second one is 0 if they are 4-byte ids; fewer than 256 tell nothing (chosen)
_WINDOW_TOKENS = 1 << 20  # looked at together (chosen, not tuned)
_LONGEST_DOCUMENT = 1 << 20  # tokens; a longer one is cut, so that memory stays flat (chosen, not tuned)


@dataclass(frozen=True)
class IdFile:
    """A token file as a part of a source; see `text.parts.Part`. Its state is the position of the next document.

    Attributes:
        key: What errors call the source, such as `data.sources.web`.
        path: The file: flat uint16, a `.npy` of them, or a `.bin` with llm.c's header.
        label: What ids of documents call the file; the same wherever it stands.
        separator_id: Id between documents, before or behind each: the tokenizer's end of text. Left out of the ids.
        vocab_size: Ids of the tokenizer that made the file.
    """

    key: str
    path: str
    label: str
    separator_id: int
    vocab_size: int

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """The documents, chunk by chunk, each named `label:position` of its first id. None is empty.

        Args:
            state: Of the last chunk that was used; None reads from the start. The documents that follow are those that
                an uninterrupted reading gives, though the chunks may be cut elsewhere.

        Raises:
            UserError: The file cannot be opened, or an id is past the vocabulary.
        """
        ids = open_ids(self.key, self.path)
        begin = position = state or 0
        while position < len(ids):
            window = ids[position : position + _WINDOW_TOKENS]
            require_below(self.key, self.path, window, position, self.vocab_size)
            rows = []
            for end in [*(np.flatnonzero(window == self.separator_id) + position).tolist(), None]:
                stop = position + len(window) if end is None else end
                while stop - begin >= _LONGEST_DOCUMENT:
                    rows.append((ids[begin : begin + _LONGEST_DOCUMENT], f"{self.label}:{begin}"))
                    begin += _LONGEST_DOCUMENT
                if end is None:
                    break
                if end > begin:
                    rows.append((ids[begin:end], f"{self.label}:{begin}"))
                begin = end + 1
            position += len(window)
            if position == len(ids) and begin < position:
                rows.append((ids[begin:], f"{self.label}:{begin}"))
                begin = position
            if rows:
                yield Chunk(rows, begin)


def open_ids(key: str, path: str | Path) -> Ids:
    """The ids of a token file as a read-only memory map, (n,).

    Args:
        key: What errors call the source of the file.
        path: Flat little-endian uint16, a `.npy` of them, or a `.bin` with llm.c's header.

    Raises:
        MissingFile: No such file.
        BadValue: It holds something else than 2-byte ids.
        BrokenState: It is empty, or cut short.

    Source:
        llm.c, `dev/data/data_common.py`, `write_datafile`: a header of 256 int32 (magic, version, number of tokens),
        then the ids, https://github.com/karpathy/llm.c.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"{key}: no file {path}. Check the path.")
    n_bytes = path.stat().st_size
    if not n_bytes:
        raise BrokenState(f"{key}: {path} is empty. Make it or copy it again.")
    ids = _of_numpy(key, path) if path.suffix == ".npy" else _of_bytes(key, path, n_bytes)
    looked_at = ids[:_LOOKED_AT]
    if len(looked_at) >= 256 and not looked_at[1::2].any() and looked_at.any():
        raise BadValue(
            f"{key}: every second id in {path} is 0, so these look like ids of 4 bytes, and an id takes 2 (uint16). "
            "Write them again with ids.astype(numpy.uint16), where none is above 65,535."
        )
    return ids


def has_header(path: str | Path) -> bool:
    """Whether a file begins with llm.c's header."""
    with Path(path).open("rb") as file:
        head = file.read(_HEADER.itemsize)
    return len(head) == _HEADER.itemsize and int(np.frombuffer(head, _HEADER)[0]) in (
        _MAGIC_UINT16,
        _MAGIC_UINT32,
        _MAGIC_QUESTIONS,
    )


def require_below(key: str, path: str | Path, ids: Ids, position: int, vocab_size: int) -> None:
    """Refuses ids that the tokenizer has not.

    Args:
        key: What errors call the source of the file.
        path: The file, for the message.
        ids: Some of its ids.
        position: Where they stand in it.
        vocab_size: Ids of the tokenizer.

    Raises:
        BadValue: An id is past the vocabulary; the line names it and its position.
    """
    if len(ids) and int(ids.max()) >= vocab_size:
        at = int(np.argmax(ids >= vocab_size))
        raise BadValue(
            f"{key}: {path} holds the id {ids[at]:,} at position {position + at:,}, and the tokenizer has ids below "
            f"{vocab_size:,}. Name the tokenizer that made the file: data.tokenizer."
        )


def _of_numpy(key: str, path: Path) -> Ids:
    try:
        ids: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BrokenState(f"{key}: {path} is no whole .npy file ({reason}). Copy it again.") from None
    if ids.dtype != TOKEN or ids.ndim != 1:
        raise BadValue(
            f"{key}: {path} is an array of {ids.dtype} with {ids.ndim} dimensions, and ids are uint16 in one row. "
            "Write it again with numpy.save(path, ids.reshape(-1).astype(numpy.uint16)), where none is above 65,535."
        )
    if not len(ids):
        raise BrokenState(f"{key}: {path} holds no ids. Make it or copy it again.")
    return ids.view(np.ndarray)


def _of_bytes(key: str, path: Path, n_bytes: int) -> Ids:
    offset, told = 0, None
    if has_header(path):
        offset = _HEADER_WORDS * _HEADER.itemsize
        if n_bytes < offset:
            raise BrokenState(f"{key}: {path} is cut short in its header (llm.c's, {offset:,} bytes). Copy it again.")
        magic, version, told = np.fromfile(path, _HEADER, 3).tolist()
        if magic == _MAGIC_UINT32:
            raise BadValue(
                f"{key}: {path} holds ids of 4 bytes (llm.c's file for Llama 3), and a bin holds ids of 2 (uint16). "
                "Tokenize the text with a vocabulary of at most 65,536 ids."
            )
        if magic == _MAGIC_QUESTIONS:
            raise BadValue(f"{key}: {path} holds questions to score a model by (llm.c's), no text. Leave it out.")
        if version != _VERSION_UINT16:
            raise BadValue(
                f"{key}: {path} has llm.c's header in version {version}, and version {_VERSION_UINT16} can be read. "
                "Make it or copy it again."
            )
    n_ids, odd = divmod(n_bytes - offset, TOKEN.itemsize)
    if told is not None and (told != n_ids or odd):
        raise BrokenState(
            f"{key}: {path} says in its header that it holds {told:,} ids, and {n_bytes - offset:,} bytes follow. "
            "Copy it again."
        )
    if odd:
        raise BrokenState(f"{key}: {path} has {n_bytes:,} bytes, an odd number, and an id takes 2. Copy it again.")
    if not n_ids:
        raise BrokenState(f"{key}: {path} holds no ids. Make it or copy it again.")
    return np.memmap(path, TOKEN, "r", offset).view(np.ndarray)


class DocumentStarts:
    """Finds the documents in ids that come chunk by chunk: one begins at 0, and one behind every run of separators.

    Separators belong to the document that they end; those at the very beginning, to the first.
    """

    def __init__(self, separator_id: int) -> None:
        """Begins at position 0.

        Args:
            separator_id: Id between documents, such as the end of text.
        """
        self._separator_id = separator_id
        self._position, self._has_begun, self._after_separator = 0, False, False

    def add(self, ids: Ids) -> NDArray[np.int64]:
        """The positions, counted from the first id of all, at which documents begin in the next `ids`."""
        if not len(ids):
            return np.empty(0, np.int64)
        is_text = ids != self._separator_id
        follows = np.empty(len(ids), bool)
        follows[0], follows[1:] = self._after_separator, ~is_text[:-1]
        starts = np.flatnonzero(is_text & follows)
        if not self._has_begun:  # separators at the very beginning end nothing
            n_leading = int(np.argmax(is_text)) if is_text.any() else len(ids)
            starts = starts[starts > n_leading]
            self._has_begun = n_leading < len(ids)
        starts = starts + self._position
        if not self._position:
            starts = np.concatenate(([0], starts))
        self._position += len(ids)
        self._after_separator = not is_text[-1]
        return starts.astype(np.int64)


def ids_hash(ids: Ids) -> int:
    """64 bits that stand for a document of ids: XXH3 of them as little-endian uint16."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(ids, TOKEN).data)
