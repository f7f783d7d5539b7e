"""The command, again and again, in forks of one process that has imported everything: a run without its start.

As a script, python -m tests.preloaded, it is that process; `Preloaded` starts and asks it.
"""

import atexit
import importlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

IMPORTED = ("scratchlm.run", "scratchlm.cli", "wandb", "torch._inductor", "torch._dynamo", "tests.wrecking")


@dataclass
class Run:
    """One start of the command, and how it went."""

    pid: int
    _lines: list[tuple[float, str]]
    _reader: threading.Thread
    _wait: Callable[[int], int]
    _status: int | None = None

    def status(self) -> int:
        """Waits for the end; minus the signal's number where one ended it."""
        if self._status is None:
            self._status = self._wait(self.pid)
            self._reader.join(5)
        return self._status

    @property
    def said(self) -> str:
        """What it has written on stdout and stderr so far."""
        return "".join(line for _, line in self._lines)

    def said_at(self, words: str) -> float:
        """When the first line with these words came, by time.monotonic."""
        return next(seconds for seconds, line in self._lines if words in line)

    def wait_until(self, is_time: Callable[[], object]) -> None:
        """Returns as soon as something holds."""
        deadline = time.monotonic() + 60
        while not is_time():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)


class Preloaded:
    """Starts the command in forks of a process that it begins at the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._n_runs = 0
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WANDB_MODE": "disabled"}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.preloaded"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder, text=True
        )

    def start(self, *words: str, wrecked: str = "", **environment: str | None) -> Run:
        """Starts `scratchlm ...` in the folder.

        Args:
            words: The command line.
            wrecked: Python to run in that process before, with the functions of `tests.wrecking` at hand.
            environment: Variables to set, or, where None, to take away.
        """
        self._n_runs += 1
        said = self.folder / f".said-{self._n_runs}"  # no file, whose size a test may limit
        os.mkfifo(said)
        lines: list[tuple[float, str]] = []

        def read() -> None:
            with said.open(errors="replace") as file:
                lines.extend((time.monotonic(), line) for line in file)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        asked = {"words": words, "wrecked": wrecked, "environment": environment, "said": str(said)}
        return Run(self._ask(asked), lines, reader, lambda pid: self._ask({"pid": pid}))

    def run(self, *words: str, wrecked: str = "", **environment: str | None) -> Run:
        """Starts and waits for the end."""
        run = self.start(*words, wrecked=wrecked, **environment)
        run.status()
        return run

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: dict[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def main() -> None:
    """Serves."""
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        if "pid" in asked:
            _, status = os.waitpid(asked["pid"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if not child:
            _command(asked)
        print(child, flush=True)


def _command(asked: dict) -> NoReturn:
    from tests import wrecking

    from scratchlm.cli import main as command

    log = os.open(asked["said"], os.O_WRONLY)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(i, "w", buffering=1, closefd=False) for i in (1, 2))  # noqa: SIM115
    for name, value in asked["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.argv = ["scratchlm", *asked["words"]]
    status: object = 0
    try:
        exec(asked["wrecked"], vars(wrecking).copy())
        command()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not as Python ends: a fork that frees what its parent imported copies page after page of it, for seconds.
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
