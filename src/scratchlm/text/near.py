"""Which documents are nearly the same: MinHash over runs of words, and keys that near copies are likely to share."""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from scratchlm.errors import MissingFile

_RUN_WORDS = 5  # of a shingle, as FineWeb's deduplication takes them (Penedo et al., 2024, section 3.4)
_HASHES = 128  # of a document, at most (chosen, not tuned)
_FOUND = 0.95  # part of the pairs at the threshold that share a key, at least (chosen, not tuned)
_SEED = 1
_POWERS = np.cumprod(np.full(1 << 10, 0x9E3779B97F4A7C15, np.uint64))  # a word's bytes past these count alike
_RUN_POWERS = _POWERS[np.arange(_RUN_WORDS) * 7 + 3]


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


def band_keys(texts: Sequence[str], threshold: float) -> NDArray[np.uint64]:
    """Keys of texts: two that share one are taken for near copies.

    Args:
        texts: Documents.
        threshold: See `bands`.

    Returns:
        (n_documents, `n_keys(threshold)`), the same on every machine. Case counts, and so does punctuation.
    """
    from rensa import RMinHash

    n_keys, n_hashes = bands(threshold)
    runs = [_runs(text.encode(errors="replace")) for text in texts]
    if not runs:
        return np.empty((0, n_keys), np.uint64)
    flat = np.concatenate(runs)
    offsets = np.cumsum([0, *map(len, runs)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, n_keys * n_hashes, _SEED)
    rows = np.array(matrix.to_rows(), np.uint32).reshape(len(texts), n_keys, n_hashes)
    keys = [xxhash.xxh3_64_intdigest(key.tobytes(), band) for row in rows for band, key in enumerate(row)]
    return np.array(keys, np.uint64).reshape(len(texts), n_keys)


def _runs(data: bytes) -> NDArray[np.uint64]:
    """A hash of every run of five words, or of all words where there are fewer."""
    codes = np.frombuffer(data, np.uint8)
    is_blank = codes <= ord(" ")
    begins = np.flatnonzero(~is_blank & np.concatenate([[True], is_blank[:-1]]))
    if not len(begins):
        return np.zeros(1, np.uint64)
    words = np.diff(begins, append=len(codes))
    place = np.minimum(np.arange(begins[0], len(codes)) - np.repeat(begins, words), len(_POWERS) - 1)
    values = np.where(is_blank, 0, codes.astype(np.uint64) + np.uint64(1))[begins[0] :] * _POWERS[place]
    hashed = _mixed(np.add.reduceat(values, begins - begins[0]))
    if len(hashed) < _RUN_WORDS:
        return _mixed((hashed * _RUN_POWERS[: len(hashed)]).sum(keepdims=True))
    n = len(hashed) - _RUN_WORDS + 1
    found = np.zeros(n, np.uint64)
    for word in range(_RUN_WORDS):
        found += hashed[word : word + n] * _RUN_POWERS[word]
    return _mixed(found)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads 64-bit words evenly.

    Source:
        SplitMix64's output function: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
