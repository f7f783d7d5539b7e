"""Which source gives the next document, so that the ratio of tokens holds at every point."""

import math
from collections.abc import Sequence


class Mixture:
    """Chooses the source furthest below its share of the tokens.

    The law: at every document boundary since a source last ran dry, each open source is off its share of the tokens
    since then by at most (open sources - 1) times the longest document. Nothing is drawn at random.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Opens all sources at zero tokens.

        Args:
            weights: One positive number a source; only their ratio counts.
        """
        self._weights = list(weights)
        self._tokens = dict.fromkeys(range(len(weights)), 0)
        self._begin()

    def _begin(self) -> None:
        weight = sum(self._weights[source] for source in self._tokens)
        self._shares = {source: self._weights[source] / weight for source in self._tokens}
        self._total = sum(self._tokens.values())

    @property
    def open_sources(self) -> list[int]:
        """Numbers of the sources that have not run dry."""
        return list(self._tokens)

    def next(self) -> int | None:
        """The open source furthest below its share, the first among equals; None when all are dry."""
        total, tokens = self._total, self._tokens
        furthest, most = None, -math.inf
        for source, share in self._shares.items():  # once for every document: plain steps, no calls
            if (below := share * total - tokens[source]) > most:
                furthest, most = source, below
        return furthest

    def add(self, source: int, n_tokens: int) -> None:
        """Books a document.

        Args:
            source: The source that gave it.
            n_tokens: Its tokens, the end of text included.
        """
        self._tokens[source] += n_tokens
        self._total += n_tokens

    def close(self, source: int) -> None:
        """Takes a dry source out; from here on the others share all tokens in their ratio, counted anew."""
        del self._tokens[source]
        self._tokens = dict.fromkeys(self._tokens, 0)
        self._begin()

    def state(self) -> dict[str, int]:
        """Tokens of each open source since one last ran dry, in plain values."""
        return {str(source): n_tokens for source, n_tokens in self._tokens.items()}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on where `state` was taken."""
        self._tokens = {int(source): n_tokens for source, n_tokens in state.items()}
        self._begin()
