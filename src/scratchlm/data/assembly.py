"""Documents into bins: which comes next, which split it goes to, and the tally of what was written."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scratchlm.data.card import Tally
from scratchlm.data.mixture import Mixture
from scratchlm.data.supply import Document, Supply
from scratchlm.data.writer import BinWriter
from scratchlm.errors import BadValue
from scratchlm.text.documents import Source

_SHOWN_TOKENS = 1 << 15  # between two looks of the bar at its clock: they take as long as writing a document
COMMIT_SECONDS = 1.0  # between two commits; a kill costs the work of so long (chosen, not tuned)


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

    def of_whole(self, hash_: int, written: Mapping[str, int]) -> str:
        """The split that a whole document goes to.

        Args:
            hash_: Of its text.
            written: Tokens of its source that each split holds.
        """
        for name in self.names[1:]:
            if written[name] < self.window_tokens:
                return name
        place = hash_ / 2**64
        if place < self.val_fraction:
            return "val"
        return "test" if place < self.val_fraction + self.test_fraction else "train"

    def for_training(self, document: Document) -> NDArray[np.uint16]:
        """The part of a document that is trained on; of a repeated one, all that there is."""
        if self.split == "documents" or document.pass_number:
            return document.ids
        return document.ids[: self._ends(document)[0]]

    def held_out(self, document: Document) -> list[tuple[str, NDArray[np.uint16]]]:
        """What validation and test get of a document's end, none of it empty; nothing where whole ones go."""
        if self.split == "documents" or document.pass_number:
            return []
        ends = self._ends(document)
        cut = [(name, document.ids[ends[i] : ends[i + 1]]) for i, name in enumerate(self.names[1:])]
        return [(name, ids) for name, ids in cut if len(ids)]

    def _ends(self, document: Document) -> list[int]:
        n = len(document.ids)
        return [int(n * (1 - self.val_fraction - self.test_fraction)), int(n * (1 - self.test_fraction)), n]


class Assembly:
    """One writing of the bins out of all sources; the only place that writes documents, one after the other."""

    def __init__(
        self,
        supplies: Sequence[Supply],
        sources: Sequence[Source],
        splits: Splits,
        writers: Mapping[str, BinWriter],
        progress: "Progress",
        state: dict[str, Any] | None = None,
    ) -> None:
        """Opens nothing.

        Args:
            supplies: Documents of each source.
            sources: The sources.
            splits: What goes where.
            writers: An open writer for each split.
            progress: Told of every token written.
            state: What `state` gave, to go on from there.
        """
        self._supplies, self._sources, self._splits = supplies, sources, splits
        self._writers, self._progress = writers, progress
        self._mixture = Mixture([source.weight for source in sources])
        self.tallies = [Tally() for _ in sources]
        if state:
            self._mixture.restore(state["mixture"])
            self.tallies = [Tally.from_json(tally) for tally in state["tallies"]]

    def state(self) -> dict[str, Any]:
        """Plain values from which another `Assembly` goes on."""
        return {"mixture": self._mixture.state(), "tallies": [tally.to_json() for tally in self.tallies]}

    def run(self, total_tokens: int | None, commit: Callable[[], None]) -> None:
        """Writes everything.

        Args:
            total_tokens: Stop at the first document that brings train.bin to this many; None: when all sources are dry.
            commit: Notes how far everything is; called about once a second.

        Raises:
            BadValue: A source is too short for every split.
        """
        mixture, train = self._mixture, self._writers["train"]
        if not train.n_tokens:
            first = [self._next(number) for number in range(len(self._supplies))]
            _refuse(self._fault_at_start(number) for number, document in enumerate(first) if document is None)
        last = time.perf_counter()
        while (total_tokens is None or train.n_tokens < total_tokens) and (number := mixture.next()) is not None:
            document = self._next(number)
            if document is None:
                mixture.close(number)
                continue
            mixture.add(number, self._put("train", number, document, self._splits.for_training(document)))
            self._put_held_out(number, document)
            self._supplies[number].advance()
            if time.perf_counter() - last > COMMIT_SECONDS:
                commit()
                last = time.perf_counter()
        _refuse(self._faults_at_end())

    def _next(self, number: int) -> Document | None:
        """The next document of a source to train on; those of validation and test are written on the way."""
        supply, written = self._supplies[number], self.tallies[number].tokens
        while document := supply.current():
            if document.pass_number:
                return document
            if self._splits.split == "documents":
                split = self._splits.of_whole(document.hash, written)
                if split == "train":
                    return document
                self._put(split, number, document, document.ids)
            else:
                if len(self._splits.for_training(document)):
                    return document
                self._put_held_out(number, document)
            supply.advance()
        return None

    def _put_held_out(self, number: int, document: Document) -> None:
        for split, ids in self._splits.held_out(document):
            self._put(split, number, document, ids)

    def _put(self, split: str, number: int, document: Document, ids: NDArray[np.uint16]) -> int:
        self._writers[split].add(ids, number, document.hash)
        n_tokens = len(ids) + 1
        self.tallies[number].add(split, n_tokens, document.pass_number)
        if split == "train" or self._splits.split == "documents":
            self.tallies[number].add_text(document.n_bytes, document.n_characters, document.n_words)
        self._progress.add(split, n_tokens, document.n_bytes)
        return n_tokens

    def _fault_at_start(self, number: int) -> str:
        source, supply, tally = self._sources[number], self._supplies[number], self.tallies[number]
        if not tally.documents:
            return nothing_left(source, supply.all_dropped())
        n_documents, dropped = tally.documents.total(), supply.all_dropped()
        why = "".join(f", {n:,} {reason}" for reason, n in dropped.items())
        return (
            f"{source.key}: {n_documents:,} document{'s' * (n_documents != 1)} with {tally.tokens.total():,} tokens in "
            f"all{f' (dropped: {why[2:]})' if why else ''}. "
            f"The first go to {' and '.join(self._splits.names[1:])} until it holds one window, and none is left for "
            f"training: {self._splits.one_window}. Set data.split=tail to take validation from each document's end, or "
            "add text, or lower data.context_length."
        )

    def _faults_at_end(self) -> list[str]:
        splits, faults = self._splits, []
        for name in splits.names[1:]:
            for source, tally in zip(self._sources, self.tallies, strict=True):
                if tally.tokens[name] < splits.window_tokens:
                    faults.append(
                        f"{source.key}: {name}.bin would hold {tally.tokens[name]:,} of its "
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


def nothing_left(source: Source, dropped: Mapping[str, int]) -> str:
    """The line for a source of which cleaning leaves no document."""
    why = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
    if dropped.get("near copy"):
        which = "data.near_duplicates"
    else:
        which = "the step length (min_characters) of data.cleaning" if dropped.get("too short") else "data.cleaning"
    return (
        f"{source.key}: no document left to train on ({f'dropped: {why}' if why else 'it is empty'}). "
        f"Add text, or let {which} drop less."
    )


def _refuse(faults: Any) -> None:
    if lines := list(faults):
        raise BadValue("\n".join(lines))


class Progress:
    """A bar on standard error with tokens and megabytes a second, and the time left where the end is known."""

    def __init__(self, total_tokens: int | None, text_bytes: int | None, n_tokens: int = 0) -> None:
        """Shows nothing before the block is entered.

        Args:
            total_tokens: Tokens of train.bin that were asked for.
            text_bytes: Else, bytes of all text; the tokens in them are guessed from those seen.
            n_tokens: Tokens of train.bin that an earlier process has written.
        """
        self._total_tokens, self._text_bytes, self._initial = total_tokens, text_bytes, n_tokens
        self._n_bytes = self._n_waiting = 0

    def __enter__(self) -> Self:
        self._bar = bar("tokens", " tokens", self._total_tokens, self._initial)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        if kind is None:
            self._bar.total = self._bar.n
            self._show_megabytes()
        self._bar.close()

    def add(self, split: str, n_tokens: int, n_bytes: int) -> None:
        """Books a document."""
        self._n_bytes += n_bytes
        if split == "train" or not self._total_tokens:
            self._n_waiting += n_tokens
            if self._n_waiting >= _SHOWN_TOKENS:
                self._show()

    def _show(self) -> None:
        n_tokens, self._n_waiting = self._n_waiting, 0
        if self._text_bytes and self._n_bytes and not self._total_tokens:
            n_read = self._bar.n + n_tokens - self._initial
            self._bar.total = max(self._bar.n + n_tokens, round(n_read * self._text_bytes / self._n_bytes))
        if self._bar.update(n_tokens):  # it has drawn itself
            self._show_megabytes()

    def _show_megabytes(self) -> None:
        seconds = time.perf_counter() - self._start
        self._bar.set_postfix_str(f"{self._n_bytes / 1e6 / seconds:.2f} MB/s", refresh=False)


def bar(what: str, unit: str, total: int | None, initial: int = 0) -> Any:
    """A tqdm bar; where standard error is no terminal, it writes a line every ten seconds only."""
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, mininterval=seconds, initial=initial)
