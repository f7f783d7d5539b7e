"""Blocks of documents: read, cleaned, hashed and encoded, each on its own, wherever there is a core for it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchlm.text import near, tokenizer
from scratchlm.text.cleaning import Cleaner, content_hash
from scratchlm.text.cleaning_report import Report
from scratchlm.text.lanes import Cursor, Lane
from scratchlm.text.parts import Row


class Recipe(NamedTuple):
    """How rows become the documents of a block; plain values, so that it can travel to another process.

    Attributes:
        cleaning: Steps, as `text.cleaning.parse_cleaning` gives them.
        whole_files: Of each source, whether its documents are whole text files.
        tokenizer: Content of tokenizer.json.
        encoder: Which library encodes; all give the same ids.
        near_duplicates: Likeness from which documents count as near copies; None does not look.
    """

    cleaning: list[dict[str, Any]]
    whole_files: list[bool]
    tokenizer: str
    encoder: str
    near_duplicates: float | None


class Block(NamedTuple):
    """The documents that cleaning kept of some rows of one lane, in their order.

    Attributes:
        ids: Of all documents, one behind the other, without ends of text; uint16.
        offsets: Where each document begins in `ids`, and where the last ends; (n + 1,) int64.
        hashes: Content hash of each document; (n,) uint64.
        sizes: UTF-8 bytes, characters and words of each document; (n, 3) int64.
        near_keys: Two documents that share one are near copies; (n, keys) uint64, without columns where not asked for.
        report: What cleaning did.
    """

    ids: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    near_keys: NDArray[np.uint64]
    report: Report


class BlockMaker:
    """Makes blocks out of the lanes of all sources; every process that works on them has one."""

    def __init__(
        self, lanes: Sequence[Sequence[Lane]], recipe: Recipe, spelled_by: tokenizer.Tokenizer | None = None
    ) -> None:
        """Opens nothing.

        Args:
            lanes: Those of each source.
            recipe: What is done to their rows.
            spelled_by: The recipe's tokenizer, where this process has it already.
        """
        self._lanes = lanes
        self._recipe = recipe
        self._tokenizer = spelled_by or tokenizer.from_json(recipe.tokenizer, recipe.encoder)
        self._streams: dict[tuple[int, int], Iterator[tuple[list[Row], Cursor]]] = {}

    def begin(self, source: int, lane: int, cursor: Cursor) -> None:
        """Sets a lane to a cursor."""
        self._streams[source, lane] = self._lanes[source][lane].blocks(cursor)

    def next(self, source: int, lane: int) -> tuple[Block, Cursor] | None:
        """The next block of a lane that has begun, with the cursor behind it; None at the lane's end.

        Raises:
            UserError: The source cannot be read on, or the tokenizer cannot spell it.
        """
        found = next(self._streams[source, lane], None)
        return found and (self._block(found[0], self._recipe.whole_files[source]), found[1])

    def _block(self, rows: Sequence[Row], whole_files: bool) -> Block:
        cleaner = Cleaner(self._recipe.cleaning, whole_files)
        if rows and not isinstance(rows[0][0], str):
            return self._block_of_ids([ids for ids, _ in rows], cleaner.report)
        kept = cleaner.clean_many([row[0] for row in rows], [row[1] for row in rows])
        ids, offsets = self._tokenizer.encode_flat(kept.texts)
        return Block(
            ids,
            offsets,
            np.array([content_hash(data) for data in kept.utf8], np.uint64),
            np.array(list(map(_sizes, kept.texts, kept.utf8)), np.int64).reshape(-1, 3),
            self._near_keys(kept.texts),
            cleaner.report,
        )

    def _block_of_ids(self, rows: Sequence[Any], report: Report) -> Block:
        """Ids stay as they are; their text is what tells copies."""
        texts = [self._tokenizer.decode(ids.tolist()) for ids in rows]
        utf8 = [text.encode() for text in texts]
        return Block(
            np.concatenate(rows),
            np.cumsum([0, *map(len, rows)]),
            np.array([content_hash(data) for data in utf8], np.uint64),
            np.array(list(map(_sizes, texts, utf8)), np.int64).reshape(-1, 3),
            self._near_keys(texts),
            report,
        )

    def _near_keys(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        if self._recipe.near_duplicates is None:
            return np.empty((len(texts), 0), np.uint64)
        return near.band_keys(texts, self._recipe.near_duplicates)


def _sizes(text: str, data: bytes) -> tuple[int, int, int]:
    """Bytes, characters, and words: what stands between blanks of ASCII."""
    is_blank = np.frombuffer(data, np.uint8) <= ord(" ")
    n_words = np.count_nonzero(is_blank[:-1] > is_blank[1:]) + (not is_blank[:1].all())
    return len(data), len(text), int(n_words)
