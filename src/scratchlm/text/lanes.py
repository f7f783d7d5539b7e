"""The order in which a source is read: its parts in a few lanes, each lane in blocks that can be made side by side."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchlm.text.parts import Part, Row

Cursor = list[Any] | None  # where a lane's next block begins, in plain JSON values; None is its start

N_LANES = 8  # read side by side; more open more files at once and hold more in memory (chosen, not tuned)
_BLOCK_CHARACTERS = 8 << 20  # bounds the memory of a block where documents are long (chosen, not tuned)
_BLOCK_DOCUMENTS = 10_000  # of a source that is not shuffled


class Lane:
    """Some parts of a source, one behind the other, cut into blocks; can be pickled, and opens nothing before it is
    read.
    """

    def __init__(self, parts: Sequence[Part], shuffle_documents: int, key: Sequence[int]) -> None:
        """Made by `lanes`.

        Args:
            parts: The parts in their order.
            shuffle_documents: Documents of a block, permuted among themselves; 0 keeps their order.
            key: Two words below 2**64 that tell this lane's permutations from every other's.
        """
        self.parts = list(parts)
        self.shuffle_documents = shuffle_documents
        self.key = list(key)

    def blocks(self, cursor: Cursor = None) -> Iterator[tuple[list[Row], Cursor]]:
        """The blocks from `cursor` on, each with the cursor behind it.

        A block ends with `shuffle_documents` rows, or once it holds 8 Mi characters, or with the lane.

        Raises:
            UserError: A part cannot be opened or read on.
        """
        number, first, state, skip = cursor or (0, 0, None, 0)
        rows: list[Row] = []
        n_characters = 0
        limit = self.shuffle_documents or _BLOCK_DOCUMENTS
        for index in range(first, len(self.parts)):
            for chunk in self.parts[index].read(state):
                for place in range(skip, len(chunk.rows)):
                    row = chunk.rows[place]
                    rows.append(row)
                    n_characters += len(row[0])
                    if len(rows) == limit or n_characters >= _BLOCK_CHARACTERS:
                        number += 1
                        yield self._shuffled(rows, number), [number, index, state, place + 1]
                        rows, n_characters = [], 0
                state, skip = chunk.state, max(0, skip - len(chunk.rows))
            state, skip = None, 0
        if rows:
            number += 1
            yield self._shuffled(rows, number), [number, len(self.parts), None, 0]

    def _shuffled(self, rows: list[Row], number: int) -> list[Row]:
        if not self.shuffle_documents:
            return rows
        return [rows[index] for index in permutation(len(rows), [*self.key, number])]


def lanes(name: str, parts: Sequence[Part], seed: int, shuffle_documents: int) -> list[Lane]:
    """Deals the parts of a source to lanes.

    Args:
        name: Name of the source.
        parts: Its parts in their order.
        seed: Seed of the order.
        shuffle_documents: Documents permuted among themselves at a time, after the parts are permuted and dealt to up
            to 8 lanes, whose blocks are taken in turn. 0 keeps every order, with one lane.

    Returns:
        The lanes, none without a part. They depend on the arguments alone.
    """
    source = zlib.crc32(name.encode())
    if not shuffle_documents:
        return [Lane(parts, 0, [seed, source])] if parts else []
    order = permutation(len(parts), [seed, source, 0])
    n = min(N_LANES, len(parts))
    dealt = ([parts[index] for index in order[number::n]] for number in range(n))
    return [Lane(mine, shuffle_documents, [seed, source << 32 | number]) for number, mine in enumerate(dealt)]


def permutation(n: int, key: Sequence[int]) -> list[int]:
    """The numbers below `n` in the order that a key of three words gives, the same on every machine and in every numpy.

    Args:
        n: How many.
        key: A seed and two words below 2**64.
    """
    # The raw stream of Philox is the same in every numpy; that of Generator.permutation need not be.
    seed, place, number = key
    words = np.array([seed & ((1 << 64) - 1), place], np.uint64)
    philox = np.random.Philox(key=words, counter=np.array([0, 0, 0, number], np.uint64))
    order: list[int] = np.argsort(philox.random_raw(n), kind="stable").tolist()
    return order
