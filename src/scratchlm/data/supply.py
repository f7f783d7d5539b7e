"""The documents of one source as they come to the mixture: cleaned, without copies, encoded, pass after pass."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchlm.text.cleaning import Cleaner, Deduplicator, content_hash
from scratchlm.text.documents import Source, Stream
from scratchlm.text.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 256  # encoded at once, on all cores (chosen, not tuned)
_BATCH_CHARACTERS = 1 << 20  # or fewer documents, where they are long: bounds the memory of a batch (chosen, not tuned)


class Encoded(NamedTuple):
    """A document in ids, with what the splits and the card need to know of it."""

    ids: list[int]
    hash: int
    pass_number: int
    n_bytes: int
    n_characters: int


class Reading(NamedTuple):
    """How documents are read: the keys of `data:` that bear on it."""

    seed: int
    shuffle_documents: int
    min_document_characters: int
    normalize: bool

    def texts(self, source: Source, pass_number: int = 0, cleaner: Cleaner | None = None) -> Iterator[str]:
        """One pass over the cleaned texts of a source; `cleaner`, where given, counts what it drops."""
        cleaner = cleaner or self.cleaner()
        for document in Stream(source, self.seed, self.shuffle_documents, pass_number):
            text = cleaner.clean(document.text)
            if text is not None:
                yield text

    def nothing_left(self, source: Source, dropped: Mapping[str, int]) -> str:
        """The line for a source of which cleaning leaves no document."""
        why = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
        return (
            f"{source.key}: no document left to train on ({f'dropped: {why}' if why else 'it is empty'}). "
            f"Add text, or lower data.min_document_characters={self.min_document_characters}."
        )

    def cleaner(self) -> Cleaner:
        """A cleaner by these rules that has counted nothing yet."""
        return Cleaner(self.min_document_characters, self.normalize)


class Supply:
    """The encoded documents of one source, and then, as often as allowed, those it trains on once more."""

    def __init__(
        self,
        source: Source,
        reading: Reading,
        tokenizer: Tokenizer,
        max_passes: int,
        seen: Deduplicator,
        trained_on: Callable[[], NDArray[np.uint64]],
    ) -> None:
        """Opens nothing before iteration.

        Args:
            source: What to read.
            reading: How to read it.
            tokenizer: Spells the documents.
            max_passes: Passes over the source in all.
            seen: The hashes of all sources, so that a copy is dropped wherever it stands.
            trained_on: Hashes of this source's documents in train.bin. Asked once for each repeated pass, when the
                first is over and its last document written; such a pass gives these documents and no others.
        """
        self.source = source
        self._reading, self._tokenizer, self._max_passes = reading, tokenizer, max_passes
        self._seen, self._trained_on = seen, trained_on
        self._cleaner = reading.cleaner()
        self._n_copies = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Documents of the first pass that were dropped so far, by reason."""
        dropped = Counter(self._cleaner.dropped)
        dropped["copy"] = self._n_copies
        return {reason: n for reason, n in sorted(dropped.items()) if n}

    def __iter__(self) -> Iterator[Encoded]:
        for pass_number in range(self._max_passes):
            if pass_number:
                texts = self._reading.texts(self.source, pass_number)
                is_wanted = _once_each(self._trained_on())
            else:
                texts = self._reading.texts(self.source, 0, self._cleaner)
                is_wanted = self._is_new
            hashed = ((text, content_hash(text)) for text in texts)
            for batch in _batches(pair for pair in hashed if is_wanted(pair[1])):
                encoded = self._tokenizer.encode_many([text for text, _ in batch])
                for (text, hash_), ids in zip(batch, encoded, strict=True):
                    yield Encoded(ids, hash_, pass_number, len(text.encode(errors="replace")), len(text))

    def _is_new(self, hash_: int) -> bool:
        is_copy = self._seen.is_copy(hash_)
        self._n_copies += is_copy
        return not is_copy


def _once_each(hashes: NDArray[np.uint64]) -> Callable[[int], bool]:
    """True the first time that it is asked about one of `hashes`, else false; 9 bytes of memory a hash."""
    hashes = np.unique(hashes)
    taken = np.zeros(len(hashes), bool)

    def is_wanted(hash_: int) -> bool:
        place = int(np.searchsorted(hashes, np.uint64(hash_)))
        if place == len(hashes) or int(hashes[place]) != hash_ or taken[place]:
            return False
        taken[place] = True
        return True

    return is_wanted


def _batches(texts: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    batch: list[tuple[str, int]] = []
    n_characters = 0
    for text, hash_ in texts:
        batch.append((text, hash_))
        n_characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or n_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch
