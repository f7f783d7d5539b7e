"""Blocks made on a Ray cluster: by as many cores as it has, ahead of the pass that writes them, on any of its nodes.

A node needs this version of scratchlm and the sources: the hub, or files at the same paths. It does not need the bins
folder. Blocks come back through Ray's object store, and the process that owns the bins folder keeps them as files there
until their turn. Workers could write these files themselves, but then every node would have to share a file system, and
one that is cut off from a killed `prepare` could still write where the next one is at work; and the blocks, a half of
the text's size, would cross the network either way.
"""

import importlib.util
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scratchlm import __version__
from scratchlm.data.block_files import BlockFiles
from scratchlm.data.blocks import BlockMaker, Recipe
from scratchlm.data.workers import Made, n_cores
from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.text.lanes import Cursor, Lane

_MOST_DEATHS = 3  # of workers in a row, over one block or before they have begun (chosen, not tuned)
_PATIENCE_SECONDS = 10.0  # for a free core, before a line says what is waited for
_LOOK_SECONDS = 1.0  # between two looks at whether to stop
_KNOCK_SECONDS = 10.0
_STORE_BYTES = 64 << 20  # of the object store of a cluster that is started here, for each worker: two blocks and more


def require_ray() -> None:
    """Makes sure that Ray can be imported.

    Raises:
        BadValue: It is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise BadValue(
            "--executor=ray: Ray is not installed. Install it, pip install 'scratchlm[ray]' (or pip install ray), "
            "or leave --executor out."
        )


class RayWorkers:
    """Makes blocks in actors of a Ray cluster, and keeps what is ahead of its turn in files.

    A lane's next block is made as soon as there is a worker for it, asked for or not, until the lane has its share of
    `most_bytes` in files. A block whose file is there, from a `prepare` that was killed, is not made again.
    """

    def __init__(
        self,
        lanes: Sequence[Sequence[Lane]],
        recipe: Recipe,
        n_workers: int | None,
        folder: Path,
        most_bytes: int,
    ) -> None:
        """Starts nothing before the block is entered.

        Args:
            lanes: Those of each source.
            recipe: What is done to their rows.
            n_workers: Actors, each with one core; None takes a core each as far as the cluster goes.
            folder: Where blocks wait for their turn; one for one making of bins.
            most_bytes: Size to which these may grow, but for those that wait for a commit. Each lane may have one
                block ahead, however large.
        """
        self._begun = ([list(own) for own in lanes], recipe)
        self._n_lanes = sum(map(len, lanes))
        self._asked = n_workers
        self._files = BlockFiles(folder)
        self._bytes_a_lane = most_bytes // max(1, self._n_lanes)
        self._lanes: dict[tuple[int, int], _Progress] = {}
        self._collected: dict[int, list[tuple[int, int, Cursor]]] = defaultdict(list)  # whose files are there
        self._changed = threading.Condition()  # of what `_lanes` holds
        self._has_begun = self._stopped = self._owns_cluster = False
        self._fault: BaseException | None = None
        self._has_workers = False
        self.n = 0

    def __enter__(self) -> Self:
        self._files.open()
        self._owns_cluster = _connect(self._asked, self._n_lanes)
        import ray

        cores = int(ray.cluster_resources().get("CPU", 1))
        self.n = max(1, min(self._asked or cores, self._n_lanes))
        n_nodes = len(ray.nodes())
        print(f"scratchlm: {_counted(self.n, 'Ray worker')} on {_counted(n_nodes, 'node')}", file=sys.stderr)
        self._arguments = ray.put((*self._begun, os.getcwd()))
        self._threads = [
            threading.Thread(target=self._drive, args=(number,), name=f"ray-{number}", daemon=True)
            for number in range(self.n)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        del self._arguments
        if self._owns_cluster:
            ray.shutdown()

    def begin(self, source: int, lane: int, cursor: Cursor) -> None:
        """As `Workers.begin`."""
        with self._changed:
            self._lanes[source, lane] = _Progress(source, lane, cursor)
            self._changed.notify_all()

    def order(self, source: int, lane: int) -> None:
        """As `Workers.order`."""
        with self._changed:
            self._lanes[source, lane].n_ahead -= 1
            self._has_begun = True
            self._changed.notify_all()

    def collect(self, source: int, lane: int) -> Made:
        """As `Workers.collect`."""
        progress = self._lanes[source, lane]
        found = self._wait_for(progress.ready)
        if found is None:
            return None
        if isinstance(found, BaseException):
            raise found
        [cursor, n_bytes] = found
        made = self._files.read(source, lane, cursor)
        if made is None:
            raise BrokenState(f"{self._files.folder}: a block that was written there is damaged. Run again.")
        self._collected[source].append((source, lane, cursor))
        with self._changed:
            progress.n_bytes -= n_bytes
            self._changed.notify_all()
        return made

    def committed(self) -> None:
        """As `Workers.committed`."""
        for files in self._collected.values():
            for file in files[:-1]:
                self._files.remove(*file)
            del files[:-1]

    def _wait_for(self, ready: "queue.SimpleQueue[Any]") -> Any:
        start: float | None = time.monotonic()
        while True:
            with suppress(queue.Empty):
                return ready.get(timeout=_LOOK_SECONDS)
            if self._fault:
                raise self._fault
            if not self._has_workers and start and time.monotonic() - start > _PATIENCE_SECONDS:
                print("scratchlm: waiting for a free core of the Ray cluster", file=sys.stderr)
                start = None

    def _drive(self, number: int) -> None:
        """The life of a worker, seen from here: one thread waits for each."""
        try:
            worker = _Worker(self._arguments, self._is_stopped)
            try:
                worker.wait_for_core()
                self._has_workers = True
                while progress := self._take_lane(number):
                    self._go_on(progress, worker)
            finally:
                worker.kill()
        except _Stopped:
            return  # no more blocks are wanted, which is the orderly end
        except BaseException as error:  # whoever collects raises it
            self._fault = error

    def _is_stopped(self) -> bool:
        return self._stopped or self._fault is not None

    def _take_lane(self, number: int) -> "_Progress | None":
        """The lane whose block is wanted first among those that this worker should go on with; None to stop.

        A lane stays with its worker, which has its source open, unless the pass waits for it and the worker is busy.
        """
        with self._changed:
            while not self._is_stopped():
                busy = {progress.owner for progress in self._lanes.values() if progress.is_busy}
                free = [
                    progress
                    for progress in self._lanes.values()
                    if self._has_begun
                    and progress.wants_more(self._bytes_a_lane)
                    and (progress.owner in (None, number) or (progress.n_ahead < 0 and progress.owner in busy))
                ]
                if free:
                    chosen = min(free, key=lambda progress: (progress.n_ahead, progress.owner != number))
                    chosen.owner, chosen.is_busy = number, True
                    return chosen
                self._changed.wait(_LOOK_SECONDS)
        return None

    def _go_on(self, progress: "_Progress", worker: "_Worker") -> None:
        """Finds or makes the lane's next block, and puts it where `collect` finds it."""
        key, cursor = (progress.source, progress.lane), progress.cursor
        found: Any = None
        try:
            if made := self._files.read(*key, cursor):
                found = cursor, self._files.n_bytes(*key, cursor)
            elif made := worker.make(*key, cursor):
                found = cursor, self._files.write(*key, cursor, *made)
        except _Stopped:
            raise
        except Exception as error:
            made, found = None, error
        with self._changed:
            progress.is_busy = False
            progress.has_ended = made is None
            if made:
                progress.cursor = made[1]
                progress.n_ahead += 1
                progress.n_bytes += found[1]
            progress.ready.put(found)
            self._changed.notify_all()


class _Progress:
    """How far a lane has been made, and what of it has not been collected."""

    def __init__(self, source: int, lane: int, cursor: Cursor) -> None:
        self.source, self.lane = source, lane
        self.cursor = cursor  # of the next block to make
        self.ready: queue.SimpleQueue[Any] = queue.SimpleQueue()  # what the next calls of `collect` give
        self.n_ahead = 0  # blocks made, less those ordered
        self.n_bytes = 0  # of files that have not been collected
        self.owner: int | None = None  # number of the worker that has the lane open
        self.is_busy = self.has_ended = False

    def wants_more(self, most_bytes: int) -> bool:
        return not (self.is_busy or self.has_ended) and (self.n_ahead <= 0 or self.n_bytes < most_bytes)


class _Stopped(Exception):
    """No more blocks are wanted."""


class _Worker:
    """An actor, and another in its place when it or its node dies."""

    def __init__(self, arguments: Any, is_stopped: Any) -> None:
        """Starts nothing; `arguments` are a reference to those of `_Maker.open`."""
        self._arguments, self._is_stopped = arguments, is_stopped
        self._actor: Any = None
        self._node = ""

    def wait_for_core(self) -> None:
        """Waits until an actor has a core."""
        self._retried(lambda: None, "before it had begun")

    def make(self, source: int, lane: int, cursor: Cursor) -> Made:
        """As `_Maker.make`; an error is raised here."""
        made = self._retried(lambda: self._actor.make.remote(source, lane, cursor), "over one block")
        if isinstance(made, UserError) and self._node != socket.gethostname():
            raise type(made)(f"{made} (On the node {self._node}: it must see the same files as this machine.)")
        if isinstance(made, BaseException):
            raise made
        return made  # type: ignore[no-any-return]

    def kill(self) -> None:
        """Ends the actor."""
        import ray

        if self._actor is not None:
            with suppress(Exception):  # it is dead, or the cluster is
                ray.kill(self._actor)
            self._actor = None

    def _retried(self, call: Any, when: str) -> Any:
        import ray

        for number in range(1, _MOST_DEATHS + 1):
            try:
                if self._actor is None:
                    self._open()
                return self._get(reference) if (reference := call()) is not None else None
            except ray.exceptions.RayError as error:
                if self._is_stopped():
                    raise _Stopped from None
                self.kill()
                reason = _reason(error)
                if getattr(error, "actor_init_failed", False):
                    raise UserError(
                        f"--executor=ray: a worker could not begin ({reason}). Every node needs scratchlm "
                        f"{__version__} where its Python finds it."
                    ) from None
                if number < _MOST_DEATHS:
                    print(f"scratchlm: a Ray worker died ({reason}); another takes its place", file=sys.stderr)
        raise UserError(
            f"--executor=ray: {_MOST_DEATHS} workers died one after the other {when} ({reason}). Where memory was "
            "short, lower data.n_processes. Run again: it goes on from where it stopped."
        )

    def _open(self) -> None:
        import ray

        self._actor = ray.remote(num_cpus=1, max_restarts=0)(_Maker).remote()
        opened = self._get(self._actor.open.remote(self._arguments))
        if isinstance(opened, BaseException):
            raise opened
        version, self._node = opened
        if version != __version__:
            raise UserError(
                f"--executor=ray: the node {self._node} has scratchlm {version}, and this machine has {__version__}. "
                "Install the same on all."
            )

    def _get(self, reference: Any) -> Any:
        import ray

        while not ray.wait([reference], timeout=_LOOK_SECONDS)[0]:
            if self._is_stopped():
                raise _Stopped
        return ray.get(reference)


class _Maker:
    """What an actor is: makes blocks of any lane, and is quickest with those it has open."""

    def open(self, arguments: tuple[list[list[Lane]], Recipe, str]) -> tuple[str, str] | Exception:
        """Gets ready.

        Args:
            arguments: The lanes and recipe of `BlockMaker`, and the folder that relative paths are seen from.

        Returns:
            The version of scratchlm here and the name of the node, or what went wrong.
        """
        os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # the other cores have workers
        lanes, recipe, folder = arguments
        with suppress(OSError):  # where paths are absolute, or the sources are on the hub, there need be none
            os.chdir(folder)
        self._cursors: dict[tuple[int, int], Cursor] = {}  # that open lanes are at
        try:
            self._maker = BlockMaker(lanes, recipe)
        except Exception as error:
            return _carried(error)
        return __version__, socket.gethostname()

    def make(self, source: int, lane: int, cursor: Cursor) -> Made | Exception:
        """The block that begins at a cursor, or what went wrong."""
        try:
            if (source, lane) not in self._cursors or self._cursors[source, lane] != cursor:
                self._maker.begin(source, lane, cursor)
            made = self._maker.next(source, lane)
        except Exception as error:
            return _carried(error)
        if made:
            self._cursors[source, lane] = made[1]
        return made


def _carried(error: Exception) -> Exception:
    if not isinstance(error, UserError):  # a bug of ours: its traceback would be lost on the way
        error.add_note(traceback.format_exc())
    return error


def _connect(n_workers: int | None, n_lanes: int) -> bool:
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine; whether it was started."""
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    # Ray says on standard error what it will change in later versions, and asks for leave to report its usage.
    for name in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _knock(address)
            ray.init(address, **quiet)
        else:
            n = min(n_workers or n_cores(), n_lanes)
            store = max(4, n) * _STORE_BYTES
            ray.init("local", num_cpus=n, include_dashboard=False, object_store_memory=store, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}: cannot be joined" if address else "--executor=ray: Ray cannot be started"
        cure = "Correct it, or unset it to start a cluster on this machine" if address else "Leave --executor out"
        raise UserError(f"{where} ({_reason(error.__cause__ or error)}). {cure}.") from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own and leaves it there; Lightning would then set none
    return not address


def _knock(address: str) -> None:
    """Finds out whether anybody listens at `host:port`; Ray itself would try for some minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _reason(error: BaseException) -> str:
    """The sentence, of the many that Ray writes about an error, that says what happened."""
    *_, last = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return last.partition(". ")[0].removesuffix(".")[:200]


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
