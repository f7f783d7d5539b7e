"""Steps of the cleaning chain that drop documents, or mask a part of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from scratchlm.text.batch import Batch, Drop, Step, Verdicts


@dataclass(frozen=True)
class Length(Step):
    """Drops documents with too few or too many characters.

    Attributes:
        min_characters: Shorter documents go.
        max_characters: Longer documents go; None lets any length pass. The longest novels have 5 to 9 million
            characters; what is longer is a log or a dump as a rule. A source whose documents are whole text files has
            no such limit.
    """

    min_characters: int = 64
    max_characters: int | None = 10_000_000

    def faults(self) -> Iterator[str]:
        """Limits that leave nothing."""
        if self.min_characters < 0:
            yield f"min_characters={self.min_characters} is negative. Give 0 or more."
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            yield f"max_characters={self.max_characters} lets nothing through. Raise it, or set it to null."

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents outside the limits."""
        lengths = list(map(len, batch.texts))
        verdicts: Verdicts = {i: Drop("too short") for i, length in enumerate(lengths) if length < self.min_characters}
        if self.max_characters is not None and batch.n_bytes > self.max_characters:
            verdicts |= {i: Drop("too long") for i, length in enumerate(lengths) if length > self.max_characters}
        return verdicts
