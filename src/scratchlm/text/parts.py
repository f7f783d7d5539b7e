"""What a source is read in: independent parts, each of which can be left at any chunk and taken up there again."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

Row = tuple[Any, str]  # text, or uint16 ids where the source has those; name inside the source
State = Any  # plain JSON values, known to the part that made them alone


class Chunk(NamedTuple):
    """Rows in their order, and the state from which reading goes on behind the last of them."""

    rows: list[Row]
    state: State


class Part(Protocol):
    """A piece of a source that is read from its start, without the others; it can be pickled, and opens nothing before
    it is read.
    """

    @property
    def label(self) -> str:
        """What ids and messages call it: the same wherever the source stands."""

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """Its rows, chunk by chunk.

        Args:
            state: Of the last chunk that was used; None reads from the start. The rows that follow are those that an
                uninterrupted reading gives, though the chunks may be cut elsewhere.

        Raises:
            UserError: It cannot be opened or read on.
        """
