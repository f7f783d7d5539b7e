"""Documents into bins: which comes next, which split it goes to, and the tally of what was written."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scratchlm.data.bins import BinWriter
from scratchlm.data.card import Tally
from scratchlm.data.mixture import Mixture
from scratchlm.data.supply import Encoded, Reading, Supply
from scratchlm.errors import BadValue
from scratchlm.text.cleaning import Deduplicator
from scratchlm.text.documents import Source
from scratchlm.text.tokenizer import Tokenizer


class Splits(NamedTuple):
    """Which part of a document goes where: the keys of `data:` that bear on it."""

    split: Literal["documents", "tail"]
    val_fraction: float
    test_fraction: float
    context_length: int

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that are made."""
        return ("train", "val", "test") if self.test_fraction else ("train", "val")

    @property
    def window_tokens(self) -> int:
        """Tokens of one window: its inputs and the target of the last."""
        return self.context_length + 1

    @property
    def one_window(self) -> str:
        """What a window takes, for the end of a message."""
        why = f"data.context_length={self.context_length} and the target of the last"
        return f"one window takes {self.window_tokens:,} ({why})"

    def pieces(self, document: Encoded, written: Mapping[str, int]) -> list[tuple[str, list[int]]]:
        """Cuts a document into what each split gets of it.

        Args:
            document: The document; of a repeated one only the training part is given.
            written: Tokens of its source that each split holds.

        Returns:
            Names of splits and ids, none empty.
        """
        if self.split == "documents":
            return [(self._whole(document, written), document.ids)] if document.ids else []
        n = len(document.ids)
        ends = [0, int(n * (1 - self.val_fraction - self.test_fraction)), int(n * (1 - self.test_fraction)), n]
        cut = [
            (name, document.ids[ends[i] : ends[i + 1]])
            for i, name in enumerate(self.names)
            if name == "train" or not document.pass_number
        ]
        return [(name, ids) for name, ids in cut if ids]

    def _whole(self, document: Encoded, written: Mapping[str, int]) -> str:
        if document.pass_number:
            return "train"
        for name in self.names[1:]:
            if written[name] < self.window_tokens:
                return name
        place = document.hash / 2**64
        if place < self.val_fraction:
            return "val"
        return "test" if place < self.val_fraction + self.test_fraction else "train"


class Assembly:
    """One writing of the bins out of all sources; the only place that writes documents, one after the other."""

    def __init__(
        self,
        sources: Sequence[Source],
        reading: Reading,
        tokenizer: Tokenizer,
        max_passes: int,
        splits: Splits,
        writers: Mapping[str, BinWriter],
        progress: "Progress",
    ) -> None:
        """Opens nothing.

        Args:
            sources: What to read, in the order of their numbers.
            reading: How to read it.
            tokenizer: Spells the documents.
            max_passes: Passes over each source in all.
            splits: What goes where.
            writers: An open writer for each split.
            progress: Told of every token written.
        """
        self._splits, self._writers, self._progress = splits, writers, progress
        seen = Deduplicator()
        self._supplies = [
            Supply(source, reading, tokenizer, max_passes, seen, lambda n=number: self._trained_on(n))  # type: ignore[misc]
            for number, source in enumerate(sources)
        ]
        self._documents = [iter(supply) for supply in self._supplies]
        self._reading = reading
        self.tallies = [Tally() for _ in sources]

    def run(self, total_tokens: int | None) -> None:
        """Writes everything.

        Args:
            total_tokens: Stop at the first document that brings train.bin to this many; None: when all sources are dry.

        Raises:
            BadValue: A source is too short for every split.
        """
        waiting = [self._next(number) for number in range(len(self._supplies))]
        _refuse(self._fault_at_start(number) for number, first in enumerate(waiting) if first is None)
        mixture = Mixture([supply.source.weight for supply in self._supplies])
        train = self._writers["train"]
        while (total_tokens is None or train.n_tokens < total_tokens) and (number := mixture.next()) is not None:
            document = waiting[number] or self._next(number)
            waiting[number] = None
            if document is None:
                mixture.close(number)
            else:
                mixture.add(number, self._put("train", number, document, document.ids))
        for supply, tally in zip(self._supplies, self.tallies, strict=True):
            tally.dropped = supply.dropped
        _refuse(self._faults_at_end())

    def _next(self, number: int) -> Encoded | None:
        """The next document of a source to train on; those of validation and test are written on the way."""
        for document in self._documents[number]:
            for_training = None
            for split, ids in self._splits.pieces(document, self.tallies[number].tokens):
                if split == "train":
                    for_training = document._replace(ids=ids)
                else:
                    self._put(split, number, document, ids)
            if for_training:
                return for_training
        return None

    def _put(self, split: str, number: int, document: Encoded, ids: list[int]) -> int:
        self._writers[split].add(ids, number, document.hash)
        n_tokens = len(ids) + 1
        self.tallies[number].add(split, n_tokens, document.pass_number)
        if not document.pass_number and (split == "train" or self._splits.split == "documents"):
            self.tallies[number].n_bytes += document.n_bytes
            self.tallies[number].n_characters += document.n_characters
        self._progress.add(split, n_tokens, document.n_bytes)
        return n_tokens

    def _trained_on(self, number: int) -> NDArray[np.uint64]:
        documents = self._writers["train"].documents
        hashes: NDArray[np.uint64] = documents["hash"][documents["source"] == number]
        return hashes

    def _fault_at_start(self, number: int) -> str:
        supply, tally = self._supplies[number], self.tallies[number]
        if not tally.documents:
            return self._reading.nothing_left(supply.source, supply.dropped)
        return (
            f"{supply.source.key}: {tally.documents.total():,} documents with {tally.tokens.total():,} tokens in all. "
            f"The first go to {' and '.join(self._splits.names[1:])} until it holds one window, and none is left for "
            f"training: {self._splits.one_window}. Set data.split=tail to take validation from each document's end, or "
            "add text, or lower data.context_length."
        )

    def _faults_at_end(self) -> list[str]:
        splits, faults = self._splits, []
        for name in splits.names[1:]:
            for supply, tally in zip(self._supplies, self.tallies, strict=True):
                if tally.tokens[name] < splits.window_tokens:
                    faults.append(
                        f"{supply.source.key}: {name}.bin would hold {tally.tokens[name]:,} of its "
                        f"{tally.tokens.total():,} tokens, and {splits.one_window}. "
                        f"Add text, raise data.{name}_fraction or lower data.context_length."
                    )
        n_tokens = self._writers["train"].n_tokens
        if not faults and n_tokens < splits.window_tokens:
            faults.append(
                f"data.sources: train.bin would hold {n_tokens:,} tokens, and {splits.one_window}. "
                "Add text, or lower data.context_length."
            )
        return faults


def _refuse(faults: Any) -> None:
    if lines := list(faults):
        raise BadValue("\n".join(lines))


class Progress:
    """A bar on standard error with tokens and megabytes a second, and the time left where the end is known."""

    def __init__(self, total_tokens: int | None, text_bytes: int | None) -> None:
        """Shows nothing before the block is entered.

        Args:
            total_tokens: Tokens of train.bin that were asked for.
            text_bytes: Else, bytes of all text; the tokens in them are guessed from those seen.
        """
        self._total_tokens, self._text_bytes = total_tokens, text_bytes
        self._n_bytes = 0

    def __enter__(self) -> Self:
        self._bar = bar("tokens", " tokens", self._total_tokens)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._bar.total = self._bar.n
            self._show_megabytes()
        self._bar.close()

    def add(self, split: str, n_tokens: int, n_bytes: int) -> None:
        """Books a document."""
        self._n_bytes += n_bytes
        if self._total_tokens and split != "train":
            return
        if self._text_bytes:
            self._bar.total = max(
                self._bar.n + n_tokens, round((self._bar.n + n_tokens) * self._text_bytes / self._n_bytes)
            )
        if self._bar.update(n_tokens):  # it has drawn itself
            self._show_megabytes()

    def _show_megabytes(self) -> None:
        seconds = time.perf_counter() - self._start
        self._bar.set_postfix_str(f"{self._n_bytes / 1e6 / seconds:.2f} MB/s", refresh=False)


def bar(what: str, unit: str, total: int | None) -> Any:
    """A tqdm bar; where standard error is no terminal, it writes a line every ten seconds only."""
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, mininterval=seconds)
