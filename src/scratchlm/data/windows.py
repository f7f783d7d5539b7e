"""(seed, number of the sequence) -> which window of the bin. Pure arithmetic: no state, O(1) memory."""

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_Words = NDArray[np.uint64]

_ROUNDS = (
    6  # of the Feistel network; 4 make it a pseudo-random permutation (Luby and Rackoff, 1988), two more as margin
)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def n_windows(n_tokens: int, context_length: int, stride_tokens: int | None = None) -> int:
    """Windows that one epoch visits: as many as fit whatever the epoch's phase.

    Args:
        n_tokens: Tokens in the bin.
        context_length: Inputs of a window; it takes one token more, the target of the last.
        stride_tokens: Distance between neighbouring windows; None is the context length: no overlap.

    Returns:
        At least 1, for any bin of at least `context_length + 1` tokens.
    """
    stride = stride_tokens or context_length
    return max(1, (n_tokens - 1 - context_length - (stride - 1)) // stride + 1)


def window_starts(
    sequences: NDArray[np.int64],
    n_tokens: int,
    context_length: int,
    seed: int,
    mode: Literal["shuffled", "random"] = "shuffled",
    stride_tokens: int | None = None,
) -> NDArray[np.int64]:
    """Where the window of each sequence begins.

    `shuffled`: epoch = sequence // n; the windows of an epoch come in the order of a permutation keyed with seed and
    epoch, each once, and the cut is shifted by a keyed phase in [0, stride), so that text seen again is cut elsewhere.
    `random`: any start, uniform, with replacement.

    Args:
        sequences: Numbers of sequences, from 0, in any order and number.
        n_tokens: Tokens in the bin, at least `context_length + 1`.
        context_length: Inputs of a window.
        seed: Key of the whole order.
        mode: `shuffled` or `random`.
        stride_tokens: Distance between neighbouring windows of `shuffled`; None is the context length.

    Returns:
        Positions of first tokens, each at most `n_tokens - context_length - 1`, of the same shape.
    """
    sequences = np.asarray(sequences, np.int64)
    n_starts = n_tokens - context_length
    if mode == "random":
        return _below(_hash(sequences.astype(np.uint64), seed), n_starts)
    stride = stride_tokens or context_length
    n = n_windows(n_tokens, context_length, stride)
    epochs = (sequences // n).astype(np.uint64)
    phases = _below(_hash(epochs, seed), min(stride, n_starts))
    return _permuted((sequences % n).astype(np.uint64), n, _hash(epochs, seed + 1)).astype(np.int64) * stride + phases


def _permuted(numbers: _Words, n: int, keys: _Words) -> _Words:
    """Each number below n under its key's permutation of range(n): a Feistel network, walked until back below n.

    Source:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, section 3 (cycle walking).
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    numbers = numbers.copy()
    outside = np.ones(numbers.shape, bool)
    while outside.any():  # the domain is below 4 n, so that fewer than 4 walks are expected
        numbers[outside] = _feistel(numbers[outside], keys[outside], half_bits)
        outside = numbers >= n
    return numbers


def _feistel(numbers: _Words, keys: _Words, half_bits: int) -> _Words:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> shift, numbers & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_hash(right ^ keys, number) & mask)
    return (left << shift) | right


def _hash(words: _Words, seed: int) -> _Words:
    """64 well-mixed bits of each word and the seed.

    Source:
        SplitMix64's output function: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    return _mix(words + _key(seed))


@cache
def _key(seed: int) -> _Words:
    return _mix(np.array([seed % (1 << 64)], np.uint64) + _GOLDEN)


def _mix(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


def _below(words: _Words, n: int) -> NDArray[np.int64]:
    """Words brought below n; the bias of the remainder is under n / 2**64."""
    remainders: NDArray[Any] = words % np.uint64(n)
    return remainders.astype(np.int64)
