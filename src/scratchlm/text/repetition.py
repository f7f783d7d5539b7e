"""Documents that say the same again and again: lines, paragraphs and runs of words, by the rules made for Gopher."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scratchlm.text.batch import SLICE_BYTES, Batch, Drop, Positions, Step, Verdicts
from scratchlm.text.words import Words

Hashes = NDArray[np.uint64]

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse: 2 ** 64 over the golden ratio (Knuth, section 6.4)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's last step
_TOP_WORDS = 2  # the shortest run of words that `max_top_ngrams` and `max_duplicate_ngrams` begin with
_DUPLICATE_WORDS = 5


@dataclass(frozen=True)
class GopherRepetition(Step):
    """Drops documents in which lines, paragraphs or runs of words come back too often.

    All shares are of the document's UTF-8 bytes where not said otherwise, words are what white space separates, and a
    line, paragraph or run counts as a copy from its second time on. Null, or an empty list, turns a rule off.

    Attributes:
        max_duplicate_lines: Largest share of the lines that may be copies of earlier ones; empty lines do not count.
        max_duplicate_paragraphs: The same of paragraphs, which empty lines separate.
        max_duplicate_line_bytes: Largest share of the text in copied lines.
        max_duplicate_paragraph_bytes: Largest share of the text in copied paragraphs.
        max_top_ngrams: Largest share of the text that the most frequent run of 2 words may take up (the longest of
            several as frequent), then of 3, of 4, and so on. A run that occurs once is none.
        max_duplicate_ngrams: Largest share of the text in words of copied runs of 5 words, then of 6, 7, and so on;
            a word in several runs counts once. None may be larger than the one before.

    Source:
        Rae et al. 2021, Scaling Language Models (Gopher), appendix A.1.1 and table A1 (all thresholds),
        https://arxiv.org/abs/2112.11446.
    """

    max_duplicate_lines: float | None = 0.30
    max_duplicate_paragraphs: float | None = 0.30
    max_duplicate_line_bytes: float | None = 0.20
    max_duplicate_paragraph_bytes: float | None = 0.20
    max_top_ngrams: list[float] = field(default_factory=lambda: [0.20, 0.18, 0.16])
    max_duplicate_ngrams: list[float] = field(default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10])

    def faults(self) -> Iterator[str]:
        """Shares that are none, and limits that grow."""
        for name, value in vars(self).items():
            for share in value if isinstance(value, list) else [value]:
                if share is not None and not 0 <= share <= 1:
                    yield f"{name}={value!r} is no share. Give 0 to 1."
                    break
        if self.max_duplicate_ngrams != sorted(self.max_duplicate_ngrams, reverse=True):
            yield (
                f"max_duplicate_ngrams={self.max_duplicate_ngrams} grows, and a copied run of more words is one of "
                "fewer words too. Let no limit be larger than the one before."
            )

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents with too much repetition; the reason is the first rule of the list that they break."""
        verdicts: Verdicts = {}
        for index, data in enumerate(batch.utf8):
            if reason := self._copied_lines(data):
                verdicts[index] = Drop(reason)
        if self.max_top_ngrams or self.max_duplicate_ngrams:
            for reason, indices in self._repeated_words(batch):
                for index in indices:
                    verdicts.setdefault(int(index), Drop(reason))
        return verdicts

    def _copied_lines(self, data: bytes) -> str | None:
        for parts, name, max_share, max_bytes in (
            (data.split(b"\n\n"), "paragraphs", self.max_duplicate_paragraphs, self.max_duplicate_paragraph_bytes),
            (data.split(b"\n"), "lines", self.max_duplicate_lines, self.max_duplicate_line_bytes),
        ):
            parts = [stripped for part in parts if (stripped := part.strip())]
            distinct = set(parts)
            if len(distinct) == len(parts):
                continue
            if max_share is not None and len(parts) - len(distinct) > max_share * len(parts):
                return f"duplicate {name}"
            n_copied_bytes = sum(map(len, parts)) - sum(map(len, distinct))
            if max_bytes is not None and n_copied_bytes > max_bytes * len(data):
                return f"text in duplicate {name}"
        return None

    def _repeated_words(self, batch: Batch) -> Iterator[tuple[str, Positions]]:
        words = Words.of(batch)
        n_bytes = np.array([len(data) for data in batch.utf8])
        runs = _Runs(words, _word_hashes(batch, words))
        for n, max_share in enumerate(self.max_top_ngrams, _TOP_WORDS):
            yield f"top {n}-gram", np.flatnonzero(runs.top_bytes(n) > max_share * n_bytes)
        for n, max_share in enumerate(self.max_duplicate_ngrams, _DUPLICATE_WORDS):
            shares = runs.copied_bytes(n) / np.maximum(n_bytes, 1)
            yield f"duplicate {n}-grams", np.flatnonzero(shares > max_share)
            if not (shares > self.max_duplicate_ngrams[-1]).any():
                return  # copied runs of more words are in copied runs of fewer


class _Runs:
    """All runs of n words of a batch, none over two documents."""

    def __init__(self, words: Words, hashes: Hashes) -> None:
        self.words = words
        self.hashes = hashes
        self.lengths = words.ends - words.starts
        self.document = np.repeat(np.arange(len(words.firsts) - 1), words.per_document)
        self.salt = _mixed(self.document.astype(np.uint64) + np.uint64(1))

    def _grouped(self, n: int) -> tuple[Positions, Positions, Positions]:
        """Runs that occur more than once: their first words, grouped; where each group begins, and its size."""
        n_runs = len(self.hashes) - n + 1
        if n_runs < 1:
            return (np.empty(0, np.intp),) * 3
        keys = self.salt[:n_runs].copy()
        for k in range(n):
            keys += self.hashes[k : k + n_runs] * np.uint64(pow(_FACTOR, 2 * k + 1, 2**64))
        inside = np.flatnonzero(self.document[:n_runs] == self.document[n - 1 :])
        keys = keys[inside]
        order = np.argsort(keys)
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True] * bool(len(keys)), keys[1:] != keys[:-1])))
        sizes = np.diff(np.concatenate((starts, [len(keys)])))
        repeated = sizes > 1
        member = np.repeat(repeated, sizes)
        sizes = sizes[repeated]
        return inside[order[member]], np.cumsum(sizes) - sizes, sizes

    def top_bytes(self, n: int) -> Positions:
        """For each document the bytes of its most frequent run, a byte between words, times its number."""
        places, starts, sizes = self._grouped(n)
        firsts = places[starts]
        before = np.concatenate(([0], np.cumsum(self.lengths)))
        lengths = before[firsts + n] - before[firsts] + n - 1
        best = np.zeros(len(self.words.firsts) - 1, np.int64)
        np.maximum.at(best, self.document[firsts], (sizes << 32) + lengths)  # by number, then by length
        top: Positions = (best >> 32) * (best & 0xFFFFFFFF)
        return top

    def copied_bytes(self, n: int) -> Positions:
        """For each document the bytes of words in runs that came before in it."""
        places, starts, sizes = self._grouped(n)
        edges = np.zeros(len(self.hashes) + n + 1, np.int64)
        if len(places):
            earliest = np.repeat(np.minimum.reduceat(places, starts), sizes)
            copies = places[places != earliest]
            np.add.at(edges, copies, 1)
            np.add.at(edges, copies + n, -1)
        is_copied = np.cumsum(edges)[: len(self.hashes)] > 0
        return self.words.totals(self.lengths * is_copied)


def _word_hashes(batch: Batch, words: Words) -> Hashes:
    """64 bits for each word, a polynomial of its bytes: the same for the same word."""
    data = np.frombuffer(batch.joined, np.uint8)
    hashes = np.empty(len(words.starts), np.uint64)
    done = 0
    while done < len(hashes):  # some words at a time, so that the powers are few
        start = words.starts[done]
        last = max(done + 1, int(np.searchsorted(words.ends, start + SLICE_BYTES, "right")))
        end = words.ends[last - 1]
        powers, inverses = _powers(int(end - start))
        starts = words.starts[done:last] - start
        terms = (data[start:end].astype(np.uint64) + np.uint64(1)) * powers
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms)))
        hashes[done:last] = (sums[words.ends[done:last] - start] - sums[starts]) * inverses[starts]
        done = last
    return _mixed(hashes)


def _powers(n: int) -> tuple[Hashes, Hashes]:
    """The first n powers of `_FACTOR` and of its inverse."""
    powers, inverses = _enough_powers(max(SLICE_BYTES, 1 << n.bit_length()))
    return powers[:n], inverses[:n]


@lru_cache(1)
def _enough_powers(n: int) -> tuple[Hashes, Hashes]:
    factors = np.full(n, _FACTOR, np.uint64), np.full(n, pow(_FACTOR, -1, 2**64), np.uint64)
    return np.cumprod(factors[0]), np.cumprod(factors[1])


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(33))) * _MIX
    return values ^ (values >> np.uint64(29))
