"""Who makes the blocks: this process, or others beside it. What they make does not depend on who they are."""

import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, Self

from scratchlm.data.blocks import Block, BlockMaker, Recipe
from scratchlm.errors import UserError
from scratchlm.text.lanes import Cursor, Lane
from scratchlm.text.tokenizer import Tokenizer

Made = tuple[Block, Cursor] | None  # a block and the cursor behind it; None where the lane has ended
_LOOK_SECONDS = 0.5  # between two looks at whether the process that gives the orders lives (chosen, not tuned)
_Order = tuple[int, int, bool, Cursor]  # source, lane, whether to begin at the cursor or go on


class Workers(Protocol):
    """Makes blocks to order: a lane's come back in the order in which they were ordered."""

    n: int  # orders that are worked on at the same time

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, source: int, lane: int, cursor: Cursor) -> None:
        """Sets a lane to a cursor; before its first order."""

    def order(self, source: int, lane: int) -> None:
        """Asks for the next block of a lane."""

    def collect(self, source: int, lane: int) -> Made:
        """The block of the lane's oldest order.

        Raises:
            UserError: As `BlockMaker.next`, or a process was killed.
        """

    def committed(self) -> None:
        """Hears that of the blocks collected so far, only the last of each source can be asked for again."""


class Here:
    """Makes blocks in this process, when they are collected."""

    n = 1

    def __init__(self, lanes: Sequence[Sequence[Lane]], recipe: Recipe, spelled_by: Tokenizer | None = None) -> None:
        """Opens nothing; arguments as those of `BlockMaker`."""
        self._maker = BlockMaker(lanes, recipe, spelled_by)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, source: int, lane: int, cursor: Cursor) -> None:
        """As `Workers.begin`."""
        self._maker.begin(source, lane, cursor)

    def order(self, source: int, lane: int) -> None:
        """As `Workers.order`."""

    def collect(self, source: int, lane: int) -> Made:
        """As `Workers.collect`."""
        return self._maker.next(source, lane)

    def committed(self) -> None:
        """As `Workers.committed`; nothing was kept."""


class Processes:
    """Makes blocks in processes of their own, each with some of the lanes.

    Two processes are this one and another, each with half of the lanes: a third would only wait for a core. Of more,
    this one only gives the orders and takes the blocks, which is what all the others wait for in the end.
    """

    def __init__(
        self,
        lanes: Sequence[Sequence[Lane]],
        recipe: Recipe,
        n_processes: int,
        spelled_by: Tokenizer | None = None,
    ) -> None:
        """Starts nothing before the block is entered.

        Args:
            lanes: As those of `BlockMaker`.
            recipe: Likewise.
            n_processes: In all, this one included; 2 or more.
            spelled_by: Likewise.
        """
        self.n = n_processes
        self._here = BlockMaker(lanes, recipe, spelled_by) if n_processes == 2 else None
        self._begun = (list(map(list, lanes)), recipe)
        self._made: dict[tuple[int, int], queue.SimpleQueue[Any]] = defaultdict(queue.SimpleQueue)
        self._cursors: dict[tuple[int, int], Cursor] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> Self:
        # Ctrl-C reaches all processes; this one ends the others, which inherit that they are not to look at it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for _ in range(self.n - 1):
                self._start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for ours in self._connections:
            with suppress(OSError):  # it has been killed already, which its first order will find out
                ours.send(self._begun)
            # Without someone who takes blocks off the pipe at once, a process would wait there instead of working.
            threading.Thread(target=self._receive, args=(ours,), daemon=True).start()
        return self

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        # Not multiprocessing's own processes: a fork would copy locks that other threads hold, and a spawn would run
        # the user's script again.
        code = f"import sys; sys.path[:] = {sys.path!r}; from scratchlm.data.workers import work; work"
        command = [sys.executable, "-c", f"{code}({theirs.fileno()}, {os.getpid()})"]
        self._processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
        theirs.close()
        self._connections.append(ours)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # it holds nothing that could be left half-written
        for process in self._processes:
            process.wait()

    def _maker_of(self, source: int, lane: int) -> int | None:
        """Number of the other process that has the lane; None where it is this one's."""
        if self._here:
            return 0 if (source + lane) % 2 else None
        return (source + lane) % (self.n - 1)

    def begin(self, source: int, lane: int, cursor: Cursor) -> None:
        """As `Workers.begin`."""
        if self._here and self._maker_of(source, lane) is None:
            self._here.begin(source, lane, cursor)
        else:
            self._cursors[source, lane] = cursor

    def order(self, source: int, lane: int) -> None:
        """As `Workers.order`."""
        if (number := self._maker_of(source, lane)) is None:
            return
        begins = (source, lane) in self._cursors
        order: _Order = (source, lane, begins, self._cursors.pop((source, lane), None))
        try:
            self._connections[number].send(order)
        except OSError:
            self._made[source, lane].put(_killed())

    def collect(self, source: int, lane: int) -> Made:
        """As `Workers.collect`."""
        if self._here and self._maker_of(source, lane) is None:
            return self._here.next(source, lane)
        made = self._made[source, lane].get()
        if isinstance(made, BaseException):
            raise made
        return made  # type: ignore[no-any-return]

    def committed(self) -> None:
        """As `Workers.committed`; nothing was kept."""

    def _receive(self, connection: Connection) -> None:
        try:
            while True:
                key, made = connection.recv()
                self._made[key].put(made)
        except (EOFError, OSError):
            number = self._connections.index(connection)
            for source, lanes in enumerate(self._begun[0]):
                for lane in range(len(lanes)):
                    if self._maker_of(source, lane) == number:
                        self._made[source, lane].put(_killed())


def _killed() -> UserError:
    return UserError(
        "data.n_processes: a process that was preparing text has been killed, most likely for want of memory. "
        "Lower data.n_processes and run again: it goes on from where it stopped."
    )


def work(descriptor: int, parent: int) -> None:
    """The life of a process: one order after the other, until the process that gives them is gone.

    Args:
        descriptor: Of the connection that they come by; first comes what `BlockMaker` takes.
        parent: Process id of the one that gives them.
    """
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # the other cores have processes
    connection = Connection(descriptor)
    try:
        _follow_orders(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # nobody reads what an orderly end would say


def _follow_orders(connection: Connection) -> None:
    maker = BlockMaker(*connection.recv())
    while True:
        source, lane, begins, cursor = connection.recv()
        try:
            if begins:
                maker.begin(source, lane, cursor)
            made: Any = maker.next(source, lane)
        except Exception as error:
            made = error if isinstance(error, UserError) else _fit_to_travel(error)
        connection.send(((source, lane), made))


def _fit_to_travel(bug: Exception) -> Exception:
    """An error of ours with its traceback, which would be lost on the way."""
    told = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(bug))
    except Exception:  # not every error can be made again out of its text
        bug = RuntimeError(f"{type(bug).__name__}: {bug}")
    bug.add_note(told)
    return bug


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(
    lanes: Sequence[Sequence[Lane]], recipe: Recipe, n_processes: int, spelled_by: Tokenizer | None = None
) -> Workers:
    """The right ones for a number of processes: 1 is this one alone."""
    if n_processes == 1:
        return Here(lanes, recipe, spelled_by)
    return Processes(lanes, recipe, n_processes, spelled_by)
