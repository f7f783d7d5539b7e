"""Documents that go through the steps of a chain together, as text and as UTF-8, and what a step says of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.intp]

SEPARATOR = b"\xff"  # stands between joined documents: no byte of UTF-8, and no step takes it for text
SLICE_BYTES = 1 << 18  # what numpy works on at a time: its masks stay in the second cache (1.7 times as fast as 1 MiB)


class Drop(NamedTuple):
    """What a step says of a document that goes."""

    reason: str


class Batch:
    """Some documents, none of them dropped.

    Attributes:
        texts: The documents.
        utf8: The same in UTF-8. Half of a surrogate pair, which JSON can carry and UTF-8 cannot, is in neither.
        ids: Their names.
    """

    def __init__(self, texts: list[str], utf8: list[bytes], ids: list[str]) -> None:
        """Takes the three lists as they are."""
        self.texts = texts
        self.utf8 = utf8
        self.ids = ids

    @classmethod
    def of(cls, texts: list[str], ids: list[str]) -> "Batch":
        """A batch of texts as they were found."""
        try:
            return cls(texts, [text.encode() for text in texts], ids)
        except UnicodeEncodeError:
            utf8 = [text.encode(errors="ignore") for text in texts]
            return cls([data.decode() for data in utf8], utf8, ids)

    @cached_property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(map(len, self.utf8))

    @cached_property
    def joined(self) -> bytes:
        """All documents in UTF-8, `SEPARATOR` between them."""
        return SEPARATOR.join(self.utf8)

    def slices(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """`joined`, piece by piece: where each piece begins, and its bytes with two more of the next piece's."""
        data = np.frombuffer(self.joined, np.uint8)
        for start in range(0, len(data), SLICE_BYTES):
            yield start, data[start : start + SLICE_BYTES + 2]

    def documents_at(self, places: list[Positions]) -> list[int]:
        """The documents that these places of `joined`, in their order, are in."""
        if not any(map(len, places)):
            return []
        ends = np.cumsum([len(data) + 1 for data in self.utf8])
        n_before = np.searchsorted(np.concatenate(places), ends)
        return np.flatnonzero(np.diff(n_before, prepend=0)).tolist()

    def after(self, verdicts: "Verdicts") -> "Batch":
        """The documents as these verdicts leave them."""
        if not verdicts:
            return self
        texts, utf8, ids = self.texts.copy(), self.utf8.copy(), self.ids
        for index, verdict in verdicts.items():
            if not isinstance(verdict, Drop):
                texts[index], utf8[index] = verdict, verdict.encode()
        if any(isinstance(verdict, Drop) for verdict in verdicts.values()):
            kept = [index for index in range(len(texts)) if not isinstance(verdicts.get(index), Drop)]
            texts, utf8, ids = [texts[i] for i in kept], [utf8[i] for i in kept], [ids[i] for i in kept]
        return Batch(texts, utf8, ids)


Verdicts = dict[int, str | Drop]  # a document's place in the batch to its new text, or to why it goes; the rest stay


@dataclass(frozen=True)
class Step(ABC):
    """One link of a chain. What it says of a document depends on that document alone.

    Its children are dataclasses of plain values: their fields are the arguments that YAML gives.
    """

    def faults(self) -> Iterator[str]:
        """What cannot work in these arguments, each with its cure."""
        yield from ()

    def open(self) -> None:  # noqa: B027 (most steps have nothing to load)
        """Loads what the step needs.

        Raises:
            UserError: A library is not installed, or does not do what it should.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> Verdicts:
        """What to change and what to drop."""


@dataclass(frozen=True)
class DocumentStep(Step):
    """A step that looks at one document after the other."""

    def __call__(self, batch: Batch) -> Verdicts:
        """What to change and what to drop."""
        verdicts = ((index, self.judge(text)) for index, text in enumerate(batch.texts))
        return {index: verdict for index, verdict in verdicts if verdict is not None}

    @abstractmethod
    def judge(self, text: str) -> str | Drop | None:
        """One document's new text, or why it goes; None leaves it as it is."""
