"""Where the words of a batch begin and end."""

from typing import NamedTuple

import numpy as np

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
