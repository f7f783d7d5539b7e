"""The documents of one source as they come to the mixture: block after block, without copies, pass after pass."""

import base64
from collections import Counter, deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchlm.data.blocks import Block
from scratchlm.data.seen import Seen
from scratchlm.data.workers import Workers
from scratchlm.data.writer import Appended, BinWriter
from scratchlm.text.cleaning_report import Report
from scratchlm.text.lanes import Cursor, permutation

_AHEAD = 2  # orders beyond those that are worked on, so that nobody waits for the next (chosen, not tuned)
_KEYS = 1 << 17  # taken in at once when going on (chosen, not tuned)
_OF_PASSES = 1 << 63  # keeps the permutations of passes apart from those of lanes


class Document(NamedTuple):
    """A document in ids, with what the splits and the card need to know of it.

    Attributes:
        ids: Without an end of text; uint16.
        hash: Of its text.
        n_bytes: UTF-8 bytes of its text; 0 for one that is repeated, as the next two.
        n_characters: Characters of its text.
        n_words: Words of its text.
        pass_number: 0 when it comes for the first time.
    """

    ids: NDArray[np.uint16]
    hash: int
    n_bytes: int
    n_characters: int
    n_words: int
    pass_number: int


class Copies:
    """The hashes, and where asked for the near keys, of all documents so far, over all sources."""

    def __init__(self, log: Path, near_keys: int) -> None:
        """Starts with nothing seen.

        Args:
            log: File that keeps what the bins' index does not tell, where near copies are looked for.
            near_keys: Near keys of a document; 0 looks for whole copies alone.
        """
        self._hashes, self._near = Seen(), Seen()
        self._log, self._width = Appended(log, 0), 1 + near_keys
        self._n_logged = 0

    def new(self, block: Block, dropped: Counter[str]) -> NDArray[np.int64]:
        """Places of the documents of a block that are no copies; counts the others by reason."""
        is_new = self._hashes.add(block.hashes)
        dropped["copy"] += len(is_new) - int(is_new.sum())
        places = np.flatnonzero(is_new)
        if self._width == 1:
            return places
        # A near copy's own keys count too: what is near to it goes with it.
        is_far = self._near.add(block.near_keys[places].ravel()).reshape(-1, self._width - 1).all(axis=1)
        dropped["near copy"] += len(places) - int(is_far.sum())
        rows = np.column_stack([block.hashes[places], block.near_keys[places]])
        self._log.append(rows.tobytes())
        self._n_logged += rows.nbytes
        return places[is_far]

    def commit(self) -> list[Any]:
        """Plain values that tell `open` how much of the log is whole."""
        return [self._n_logged, self._log.sha256]

    def open(self, writers: Iterable[BinWriter], committed: list[Any] | None = None) -> None:
        """Goes on where a process stopped: takes in all that it has written, and its log.

        Args:
            writers: Of all splits.
            committed: What `commit` gave; None begins anew.

        Raises:
            BrokenState: The log is not as it was left, or cannot be written.
        """
        for writer in writers:
            hashes = writer.documents["hash"]
            for start in range(0, len(hashes), _KEYS):
                self._hashes.add(np.ascontiguousarray(hashes[start : start + _KEYS]))
        if self._width == 1:
            return
        self._n_logged, sha256 = committed or (0, "")
        self._log.open(self._n_logged, sha256)
        with self._log.path.open("rb") as file:
            while data := file.read(_KEYS * 8 * self._width):
                rows = np.frombuffer(data, np.uint64).reshape(-1, self._width)
                self._hashes.add(rows[:, 0])
                self._near.add(rows[:, 1:].ravel())

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Takes in documents that are kept and not yet written."""
        self._hashes.add(hashes)

    def close(self) -> None:
        """Closes the log, which stays for whoever goes on."""
        self._log.close()


class Supply:
    """The new documents of one source, and then, as often as allowed, those of train.bin once more.

    Can be left after any document, and taken up there again by another process.
    """

    def __init__(
        self,
        number: int,
        n_lanes: int,
        workers: Workers,
        copies: Copies,
        train: BinWriter,
        max_passes: int,
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Orders nothing before the first document is asked for.

        Args:
            number: Number of the source.
            n_lanes: Its lanes.
            workers: Make its blocks.
            copies: Shared by all sources, so that a copy is dropped wherever it stands.
            train: Writes train.bin; a repeated pass reads the source's documents there.
            max_passes: Passes over the source in all.
            seed: Seed of the order of repeated passes.
            state: What `state` gave, to go on from there.
        """
        self._number, self._workers, self._copies, self._train = number, workers, copies, train
        self._max_passes, self._seed = max_passes, seed
        self.dropped: Counter[str] = Counter()
        self.report: Report | None = None
        self.pass_number = 0
        self._n_first = 0  # documents in train.bin when the first pass ended
        self._lanes: deque[tuple[int, Cursor]] = deque((lane, None) for lane in range(n_lanes))
        self._ordered: set[int] = set()
        self._open: tuple[int, Cursor] | None = None  # the block in hand: its lane, and the cursor before it
        self._block: Block | None = None
        self._kept = np.empty(0, np.int64)
        self._at = 0
        if state:
            self._take_up(state)
        else:
            for lane in range(n_lanes):
                workers.begin(number, lane, None)

    def current(self) -> Document | None:
        """The document whose turn it is; None when the source is dry. It stays the same until `advance`."""
        while self._at == len(self._kept):
            if not (self._open_block() if not self.pass_number else self._begin_pass()):
                return None
        place = int(self._kept[self._at])
        if self.pass_number:
            start, stop = self._starts[place], self._stops[place]
            return Document(self._tokens[start:stop], int(self._hashes[place]), 0, 0, 0, self.pass_number)
        assert self._block is not None
        start, stop = self._offsets[place], self._offsets[place + 1]
        n_bytes, n_characters, n_words = self._sizes[place]
        return Document(self._block.ids[start:stop], self._block_hashes[place], n_bytes, n_characters, n_words, 0)

    def advance(self) -> None:
        """Goes to the next document: the current one has been written."""
        self._at += 1

    def all_dropped(self) -> dict[str, int]:
        """Documents dropped so far, by reason: by a step of cleaning, or as copies."""
        found = (Counter(self.report.dropped) if self.report else Counter[str]()) + self.dropped
        return dict(sorted(found.items()))

    def state(self) -> dict[str, Any]:
        """Plain values from which another `Supply` goes on with the current document."""
        is_kept = np.zeros(len(self._block.hashes) if self._block else 0, bool)
        if self._block:
            is_kept[self._kept] = True
        return {
            "lanes": list(self._lanes),
            "open": self._open,
            "kept": base64.b64encode(np.packbits(is_kept).tobytes()).decode(),
            "at": self._at,
            "pass_number": self.pass_number,
            "n_first": self._n_first,
            "dropped": dict(self.dropped),
            "report": self.report and self.report.to_json(),
        }

    def _take_up(self, state: dict[str, Any]) -> None:
        self.dropped = Counter(state["dropped"])
        self.report = state["report"] and Report.from_json(state["report"])
        self.pass_number, self._n_first = state["pass_number"], state["n_first"]
        self._lanes = deque((lane, cursor) for lane, cursor in state["lanes"])
        for lane, cursor in self._lanes:
            self._workers.begin(self._number, lane, cursor)
        if self.pass_number:
            self._read_train()
        elif state["open"]:
            lane, cursor = self._open = state["open"]
            self._workers.begin(self._number, lane, cursor)
            self._workers.order(self._number, lane)
            made = self._workers.collect(self._number, lane)
            assert made
            self._use(made[0])
            packed = np.frombuffer(base64.b64decode(state["kept"]), np.uint8)
            self._kept = np.flatnonzero(np.unpackbits(packed, count=len(made[0].hashes)))
            self._copies.add(made[0].hashes[self._kept])
        self._at = state["at"]

    def _open_block(self) -> bool:
        """Takes the next block of the lane whose turn it is; whether there was one, or another pass can begin."""
        while self._lanes:
            for lane, _ in islice(self._lanes, self._workers.n + _AHEAD):
                if lane not in self._ordered:
                    self._workers.order(self._number, lane)
                    self._ordered.add(lane)
            lane, cursor = self._lanes.popleft()
            self._ordered.remove(lane)
            if made := self._workers.collect(self._number, lane):
                block, behind = made
                self._lanes.append((lane, behind))
                self._open = (lane, cursor)
                self._use(block)
                self._kept = self._copies.new(block, self.dropped)
                if self.report:
                    self.report.merge(block.report)
                else:
                    self.report = block.report
                return True
        self._block = self._open = None
        self._kept, self._at = np.empty(0, np.int64), 0
        return self._begin_pass()

    def _use(self, block: Block) -> None:
        self._block, self._at = block, 0
        # Plain numbers: taking one out of an array costs more than all else that is done with a document.
        self._offsets, self._block_hashes = block.offsets.tolist(), block.hashes.tolist()
        self._sizes = block.sizes.tolist()

    def _begin_pass(self) -> bool:
        if self.pass_number + 1 >= self._max_passes:
            return False
        if not self.pass_number:
            self._n_first = self._train.n_documents
        self.pass_number += 1
        self._read_train()
        return len(self._kept) > 0

    def _read_train(self) -> None:
        """Finds the source's documents of the first pass in train.bin, and their order in this one."""
        documents = self._train.documents
        mine = np.flatnonzero(documents["source"][: self._n_first] == self._number)
        self._tokens = self._train.tokens
        self._starts = documents["start"][mine].astype(np.int64)
        following = np.minimum(mine + 1, len(documents) - 1)
        self._stops = documents["start"][following].astype(np.int64) - 1
        if len(mine) and mine[-1] + 1 == len(documents):
            self._stops[-1] = self._train.n_tokens - 1
        self._hashes = documents["hash"][mine]
        self._kept = np.array(permutation(len(mine), [self._seed, self._number, _OF_PASSES + self.pass_number]))
        self._at = 0
