"""Documents that say the same again and again: lines, paragraphs and runs of words, by the rules made for Gopher."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from scratchlm.text.batch import SLICE_BYTES, Batch, Drop, Positions, Step, Verdicts
from scratchlm.text.words import Words

Flags = NDArray[np.bool_]
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
        n_bytes = np.array([len(data) for data in batch.utf8])
        all_runs = _Runs.of(batch)
        runs, longest = all_runs, all_runs.longest(_TOP_WORDS + len(self.max_top_ngrams) - 1)
        for n, max_share in enumerate(self.max_top_ngrams, _TOP_WORDS):
            n_times, top_bytes = runs.most_frequent(n)
            yield f"top {n}-gram", np.flatnonzero(n_times * top_bytes > max_share * n_bytes)
            # A longer run comes no more often than the shorter one in it: few documents need a look.
            runs = runs.only(n_times * longest > min(self.max_top_ngrams) * n_bytes)
        runs = all_runs
        for n, max_share in enumerate(self.max_duplicate_ngrams, _DUPLICATE_WORDS):
            copied_bytes = runs.copied(n)
            yield f"duplicate {n}-grams", np.flatnonzero(copied_bytes > max_share * n_bytes)
            runs = runs.only(copied_bytes > self.max_duplicate_ngrams[-1] * n_bytes)


@dataclass(frozen=True)
class _Runs:
    """The words of a batch, or of some of its documents, and their runs; none goes over two documents."""

    n_documents: int
    document: Positions
    n_bytes: Positions
    hashes: Hashes

    @classmethod
    def of(cls, batch: Batch) -> "_Runs":
        words = Words.of(batch)
        n_documents = len(batch.utf8)
        document = np.repeat(np.arange(n_documents), words.per_document)
        return cls(n_documents, document, words.ends - words.starts, _word_hashes(batch, words))

    def only(self, is_wanted: Flags) -> "_Runs":
        """The words of these documents."""
        if is_wanted.all():
            return self
        kept = is_wanted[self.document]
        return _Runs(self.n_documents, self.document[kept], self.n_bytes[kept], self.hashes[kept])

    def _lengths(self, firsts: Positions, n: int) -> Positions:
        """Bytes of the runs of n words that begin with these, one byte between words."""
        before = np.concatenate(([0], np.cumsum(self.n_bytes)))
        lengths: Positions = before[firsts + n] - before[firsts] + n - 1
        return lengths

    def longest(self, n: int) -> Positions:
        """For each document no less than the bytes of its longest run of n words or fewer."""
        longest = np.zeros(self.n_documents, np.int64)
        if len(self.document):
            before = np.concatenate(([0], np.cumsum(self.n_bytes)))
            lengths = before[np.minimum(np.arange(n, n + len(self.document)), len(self.document))] - before[:-1]
            starts = np.flatnonzero(np.diff(self.document, prepend=-1))
            longest[self.document[starts]] = np.maximum.reduceat(lengths, starts) + n - 1
        return longest

    def _repeated(self, n: int) -> tuple[Positions, Positions, Positions]:
        """Runs of n words that occur more than once: their first words in groups, each group's start and its size."""
        n_runs = max(0, len(self.document) - n + 1)
        firsts = np.flatnonzero(self.document[:n_runs] == self.document[n - 1 :])
        keys = _mixed(np.arange(1, self.n_documents + 1, dtype=np.uint64))[self.document[:n_runs]]
        for k in range(n):
            keys += self.hashes[k : k + n_runs] * np.uint64(pow(_FACTOR, 2 * k + 1, 2**64))
        keys = keys[firsts]
        order = np.argsort(keys)
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))[: len(keys)])
        sizes = np.diff(starts, append=len(keys))
        is_member = np.repeat(sizes > 1, sizes)
        sizes = sizes[sizes > 1]
        return firsts[order[is_member]], np.cumsum(sizes) - sizes, sizes

    def most_frequent(self, n: int) -> tuple[Positions, Positions]:
        """For each document how often its most frequent run of n words occurs (0: none comes twice), and its bytes."""
        firsts, starts, sizes = self._repeated(n)
        firsts = firsts[starts]
        best = np.zeros(self.n_documents, np.int64)
        np.maximum.at(best, self.document[firsts], (sizes << 32) + self._lengths(firsts, n))
        return best >> 32, best & 0xFFFFFFFF

    def copied(self, n: int) -> Positions:
        """For each document the bytes of the words in runs of n that it has had before."""
        firsts, starts, sizes = self._repeated(n)
        is_copied = np.zeros(len(self.document), bool)
        if len(firsts):
            copies = firsts[firsts != np.repeat(np.minimum.reduceat(firsts, starts), sizes)]
            for k in range(n):
                is_copied[copies + k] = True
        totals = np.bincount(self.document[is_copied], self.n_bytes[is_copied], self.n_documents)
        return totals.astype(np.intp)


def _word_hashes(batch: Batch, words: Words) -> Hashes:
    """64 bits for each word, a polynomial of its bytes: the same for the same word."""
    hashes = np.empty(len(words.starts), np.uint64)
    powers, inverses = _powers()
    for some, start, data in words.pieces(batch):
        if len(data) > SLICE_BYTES:  # one word
            hashes[some] = xxhash.xxh3_64_intdigest(data.tobytes())
            continue
        starts = words.starts[some] - start
        terms = (data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)]
        before = np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms)))
        hashes[some] = (before[words.ends[some] - start] - before[starts]) * inverses[starts]
    return _mixed(hashes)


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of `_FACTOR` and of its inverse, as many as a piece of words has bytes."""
    powers = np.full((2, SLICE_BYTES), [[_FACTOR], [pow(_FACTOR, -1, 2**64)]], np.uint64)
    powers.cumprod(axis=1, out=powers)
    return powers[0], powers[1]


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(33))) * _MIX
    return values ^ (values >> np.uint64(29))
