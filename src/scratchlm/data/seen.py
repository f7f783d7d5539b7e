"""Which 64-bit keys have been seen: an open-addressing table in one numpy array."""

import numpy as np
from numpy.typing import NDArray

_MOST_FULL = 0.8  # of the places; the table then grows by half: 10 to 15 bytes a key
_GROWTH = 1.5
_FEWEST_PLACES = 1 << 12
_EMPTY = np.uint64(0)
_FOR_EMPTY = np.uint64(0x9E3779B97F4A7C15)  # stands for the key 0, which marks a free place


class Seen:
    """A set of keys that are spread evenly over 64 bits, as hashes are."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._places = np.zeros(_FEWEST_PLACES, np.uint64)
        self.n = 0

    @property
    def n_bytes(self) -> int:
        """Memory of the table."""
        return self._places.nbytes

    def add(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Takes keys in.

        Args:
            keys: (n,).

        Returns:
            Which of them were not there before, nor earlier in `keys`; (n,).
        """
        is_new = np.zeros(len(keys), bool)
        if not len(keys):
            return is_new
        distinct, first = np.unique(np.where(keys == _EMPTY, _FOR_EMPTY, keys), return_index=True)
        self._make_room(len(distinct))
        is_new[first] = self._insert(distinct)
        return is_new

    def _make_room(self, n_more: int) -> None:
        n_places = len(self._places)
        while self.n + n_more > _MOST_FULL * n_places:
            n_places = int(n_places * _GROWTH)
        if n_places > len(self._places):
            old = self._places
            self._places = np.zeros(n_places, np.uint64)
            self.n = 0
            for start in range(0, len(old), 1 << 20):  # in pieces, for each makes arrays several times its size
                keys = old[start : start + (1 << 20)]
                self._insert(keys[keys != _EMPTY])

    def _insert(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Puts distinct keys in; which of them were not there."""
        is_new = np.zeros(len(keys), bool)
        left = np.arange(len(keys))
        places = keys % np.uint64(len(self._places))
        while len(left):
            found = self._places[places]
            free = found == _EMPTY
            self._places[places[free]] = keys[left[free]]  # where two want one place, the last has it
            found = self._places[places]
            settled = found == keys[left]
            is_new[left[settled & free]] = True
            left = left[~settled]
            places = (places[~settled] + np.uint64(1)) % np.uint64(len(self._places))
        self.n += int(is_new.sum())
        return is_new
