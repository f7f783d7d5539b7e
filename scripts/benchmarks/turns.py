"""Contestants that stay alive and take turns: each a process of its own, told over a pipe how many steps to make.

An order is a JSON object on a line, and so is its answer. Standard library only: the peers' environments read it too.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.process_tree import Failed, anon_bytes, tree

_INTERVAL_SECONDS = 0.01  # between two looks at a contestant's memory


class Orders:
    """A contestant's end."""

    def __init__(self, orders: int, answers: int) -> None:
        """Takes up the two file descriptors that the contestant was started with."""
        self._orders = os.fdopen(orders, encoding="utf-8")
        self._answers = os.fdopen(answers, "w", encoding="utf-8")

    def answer(self, **facts: Any) -> None:
        """Says what an order came to."""
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()

    def next(self) -> dict[str, Any]:
        """Waits for an order; ends this process where none will come any more."""
        line = self._orders.readline()
        if not line:
            os._exit(0)  # amid a training, without what it does at its end
        found: dict[str, Any] = json.loads(line)
        return found


class Contestant:
    """The other end: a process with its orders, its answers and its log."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, stderr: int | None = None
    ) -> None:
        """Starts it.

        Args:
            name: What the tables call it.
            command: Program and arguments; `ORDERS` and `ANSWERS` in them become the numbers of its file descriptors.
            environment: All of its environment.
            log: File for what it prints.
            stderr: File descriptor that its standard error goes to instead.
        """
        self.name, self._log = name, log
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        words = [word.replace("ORDERS", str(orders)).replace("ANSWERS", str(answers)) for word in command]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                words,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if stderr is None else stderr,
                pass_fds=(orders, answers),
                start_new_session=True,
            )
        os.close(orders)
        os.close(answers)
        self._reader = os.fdopen(self._answers, encoding="utf-8")

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer.

        Raises:
            Failed: It ended instead; the message holds the end of what it printed.
        """
        line = self._reader.readline()
        if not line:
            status = self._process.wait()
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise Failed(f"{self.name} ended with status {status}:\n{end}")
        found: dict[str, Any] = json.loads(line)
        return found

    def order(self, **order: Any) -> None:
        """Gives an order; whoever has not answered the last one takes it up after that."""
        with suppress(BrokenPipeError):  # it has ended, and `answer` says how
            os.write(self._orders, (json.dumps(order) + "\n").encode())

    def turn(self, **order: Any) -> dict[str, Any]:
        """Gives an order and waits for its answer."""
        self.order(**order)
        return self.answer()

    def watched_turn(self, **order: Any) -> tuple[dict[str, Any], int]:
        """A turn whose time means nothing, and the most anonymous memory that the process held in it (0: no /proc)."""
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(_INTERVAL_SECONDS):
                peak = max(peak, anon_bytes(self._process.pid))

        watcher = threading.Thread(target=watch)
        if Path("/proc/self/status").exists():
            watcher.start()
        try:
            return self.turn(**order), peak
        finally:
            done.set()
            if watcher.ident:
                watcher.join()

    def end(self) -> None:
        """Kills it with all that it started, also what has left its group."""
        for kill, pid in [(os.kill, pid) for pid in tree(self._process.pid)] + [(os.killpg, self._process.pid)]:
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._orders)
        self._reader.close()
