"""Where the words of a batch begin and end."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchlm.text.batch import SEPARATOR, SLICE_BYTES, Batch, Positions

_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[[*b"\t\n\x0b\x0c\r ", *SEPARATOR]] = True


class Words(NamedTuple):
    """The words of a batch, in their order: what ASCII white space separates.

    Attributes:
        starts: Place of each word's first byte in `Batch.joined`.
        ends: The place behind its last.
        firsts: For each document the first of its words, and at the end the number of all words.
    """

    starts: Positions
    ends: Positions
    firsts: Positions

    @classmethod
    def of(cls, batch: Batch) -> "Words":
        """All words of a batch."""
        edges = [np.empty(0, np.intp)]
        was_space = True  # before the first byte
        for start, data in batch.slices():
            is_space = _IS_SPACE[data[:SLICE_BYTES]]
            if is_space[0] != was_space:
                edges.append(np.array([start]))
            edges.append(start + 1 + np.flatnonzero(is_space[1:] != is_space[:-1]))
            was_space = bool(is_space[-1])
        if not was_space:
            edges.append(np.array([len(batch.joined)]))
        found = np.concatenate(edges)
        bounds = np.cumsum([0, *(len(data) + 1 for data in batch.utf8)])
        return cls(found[::2], found[1::2], np.searchsorted(found[::2], bounds))

    @property
    def per_document(self) -> Positions:
        """How many words each document has."""
        return np.diff(self.firsts)

    def totals(self, values: Positions) -> Positions:
        """The sum over each document's words of a value for each word."""
        before = np.concatenate(([0], np.cumsum(values)))
        totals: Positions = np.diff(before[self.firsts])
        return totals

    def pieces(self, batch: Batch) -> Iterator[tuple[slice, int, NDArray[np.uint8]]]:
        """Some words at a time, so that what is computed of their bytes stays small.

        Returns:
            Which words, where the bytes begin in `Batch.joined`, and the bytes from the first of these words to the
            end of the last: about `SLICE_BYTES`, more only for a longer word.
        """
        data = np.frombuffer(batch.joined, np.uint8)
        first = 0
        while first < len(self.starts):
            start = int(self.starts[first])
            last = max(first + 1, int(np.searchsorted(self.ends, start + SLICE_BYTES, "right")))
            yield slice(first, last), start, data[start : self.ends[last - 1]]
            first = last
