"""Text that comes as ids already: where its documents begin, and the hash that stands for one."""

import numpy as np
import xxhash
from numpy.typing import NDArray

TOKEN = np.dtype("<u2")


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

    def add(self, ids: NDArray[np.uint16]) -> NDArray[np.int64]:
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


def ids_hash(ids: NDArray[np.uint16]) -> int:
    """64 bits that stand for a document of ids: XXH3 of them as little-endian uint16."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(ids, TOKEN).data)
