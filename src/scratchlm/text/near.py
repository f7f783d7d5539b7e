"""Which documents are nearly the same: MinHash over runs of words, and keys that near copies are likely to share."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from scratchlm.errors import MissingFile

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_RUN_WORDS = 5  # of a shingle, as FineWeb's deduplication takes them (Penedo et al., 2024, section 3.4)
_HASHES = 128  # of a document, at most (chosen, not tuned)
_FOUND = 0.95  # part of the pairs at the threshold that share a key, at least (chosen, not tuned)
_SEED = 1
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse: 2 ** 64 over the golden ratio (Knuth, section 6.4)
_PIECE_BYTES = 1 << 18  # hashed at a time, of one long text or of several short ones (64 KiB to 512 KiB are as fast)


def bands(threshold: float) -> tuple[int, int]:
    """How many keys a document gets, and out of how many hashes each is made.

    Two documents that have the part s of their runs of words in common share a key with the probability
    1 - (1 - s ** hashes) ** keys: the more hashes a key, the steeper this rises around the threshold.

    Args:
        threshold: Part of the runs of words in common from which two documents count as near copies.

    Returns:
        (keys, hashes): the steepest that finds 95% of the pairs at the threshold with 128 hashes.

    Source:
        Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
    """
    for n_hashes in range(_HASHES, 1, -1):
        n_keys = _HASHES // n_hashes
        if 1 - (1 - threshold**n_hashes) ** n_keys >= _FOUND:
            return n_keys, n_hashes
    return _HASHES, 1


def n_keys(threshold: float) -> int:
    """Keys of a document; see `bands`."""
    return bands(threshold)[0]


def require_library() -> None:
    """Makes sure that `band_keys` can work.

    Raises:
        MissingFile: rensa is not installed.
    """
    try:
        import rensa  # noqa: F401
    except ImportError:
        raise MissingFile(
            "data.near_duplicates: needs the package rensa. Run: pip install 'scratchlm[near]', or set it to null."
        ) from None


def band_keys(texts: Sequence[str], threshold: float) -> Hashes:
    """Keys of texts: two that share one are taken for near copies.

    Args:
        texts: Documents.
        threshold: See `bands`.

    Returns:
        (n_documents, `n_keys(threshold)`), the same on every machine. Case counts, and so does punctuation.
    """
    from rensa import RMinHash

    n_keys, n_hashes = bands(threshold)
    keys = np.empty((len(texts), n_keys), np.uint64)
    for start, end in _pieces(texts):
        runs, offsets = _runs([text.encode(errors="replace") for text in texts[start:end]])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets, n_keys * n_hashes, _SEED)
        hashes = np.array(matrix.to_rows(), np.uint64).reshape(end - start, n_keys, n_hashes)
        mixed = np.broadcast_to(np.arange(n_keys, dtype=np.uint64), (end - start, n_keys))
        for place in range(n_hashes):
            mixed = _mixed(mixed + hashes[:, :, place])
        keys[start:end] = mixed
    return keys


def _pieces(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where to cut so that a piece has about `_PIECE_BYTES`."""
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text) + 1
        if size >= _PIECE_BYTES:
            yield start, end
            start, size = end, 0
    if start < len(texts):
        yield start, len(texts)


def _runs(documents: list[bytes]) -> tuple[Hashes, Hashes]:
    """A hash of every run of five words, or of all words where there are fewer, and where each document's begin."""
    words, ends = _words(documents)
    n_words = np.diff(ends, prepend=0)
    n_runs = np.maximum(n_words - _RUN_WORDS + 1, 1)
    offsets = np.concatenate(([0], np.cumsum(n_runs)))
    runs = np.empty(offsets[-1], np.uint64)
    is_long = n_words >= _RUN_WORDS
    if is_long.any():
        of_five = _joined([words[place : len(words) - _RUN_WORDS + 1 + place] for place in range(_RUN_WORDS)])
        is_inside = np.arange(len(of_five)) + _RUN_WORDS <= np.repeat(ends, n_words)[: len(of_five)]
        runs[np.repeat(is_long, n_runs)] = of_five[is_inside]
    for count in range(_RUN_WORDS):
        few = np.flatnonzero(n_words == count)
        columns = [words[ends[few] - count + place] for place in range(count)]
        runs[offsets[few]] = _joined([np.full(len(few), count, np.uint64), *columns])
    return runs, offsets.astype(np.uint64)


def _joined(columns: list[Hashes]) -> Hashes:
    """One hash for each row."""
    joined = columns[0]
    for column in columns[1:]:
        joined = joined * np.uint64(_FACTOR) + column
    return _mixed(joined)


def _words(documents: list[bytes]) -> tuple[Hashes, Places]:
    """Hashes of the words of all documents, and where each document's end."""
    data = np.frombuffer(b" ".join([b"", *documents, b""]), np.uint8)
    sums = _Sums()
    found = [sums.words_to(data[start : start + _PIECE_BYTES]) for start in range(0, len(data), _PIECE_BYTES)]
    begins = np.concatenate([begins for _, begins in found])
    document_ends = np.cumsum([len(document) + 1 for document in documents])
    return np.concatenate([hashes for hashes, _ in found]), np.searchsorted(begins, document_ends)


class _Sums:
    """The sum of bytes times powers of `_FACTOR` up to each place, of a text that comes in pieces, modulo 2 ** 64.

    A word's hash is what its bytes add to the sum, divided by the power at its first byte: the same wherever it stands.
    """

    def __init__(self) -> None:
        self.start = 0
        self._total, self._power, self._inverse = np.uint64(0), np.uint64(1), np.uint64(1)
        self._is_open = False
        # Of a word that goes on in the next piece: the sum before it, its first byte's inverse power and place.
        self._open_sum, self._open_inverse = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._open_place = np.empty(0, np.int64)

    def words_to(self, codes: NDArray[np.uint8]) -> tuple[Hashes, Places]:
        """The hashes of the words that end in the next piece, and where they begin."""
        powers, inverses = _powers()
        is_word = (codes > ord(" ")).view(np.int8)
        edges = np.flatnonzero(np.diff(is_word, prepend=np.int8(self._is_open)))
        sums = np.empty(len(codes) + 1, np.uint64)
        sums[0] = 0
        np.cumsum(codes * powers[: len(codes)], out=sums[1:])
        before = np.concatenate((self._open_sum, self._total + self._power * sums[edges]))
        inverse = np.concatenate((self._open_inverse, self._inverse * inverses[edges]))
        places = np.concatenate((self._open_place, self.start + edges))
        n_closed = len(places) // 2 * 2
        self._is_open = bool(is_word[-1])
        self._open_sum, self._open_inverse = before[n_closed:], inverse[n_closed:]
        self._open_place = places[n_closed:]
        with np.errstate(over="ignore"):
            self._total += self._power * sums[-1]
            self._power *= powers[-1]
            self._inverse *= inverses[-1]
        self.start += len(codes)
        return _mixed((before[1:n_closed:2] - before[:n_closed:2]) * inverse[:n_closed:2]), places[:n_closed:2]


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """The powers of `_FACTOR` and of its inverse, modulo 2 ** 64, for a piece and one byte more."""
    powers, inverses = (np.full(_PIECE_BYTES + 1, factor, np.uint64) for factor in (_FACTOR, pow(_FACTOR, -1, 1 << 64)))
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


def _mixed(words: Hashes) -> Hashes:
    """Spreads 64-bit words evenly.

    Source:
        SplitMix64's output function: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
