"""Runs a command and measures it with all the processes it starts: seconds, CPU seconds, anonymous memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_INTERVAL_SECONDS = 0.025
_TICKS = os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float
    peak_anon_bytes: int | None  # None where there is no /proc (macOS)
    peak_processes: int | None


class Failed(Exception):
    """A command that was measured did not end with 0; the message holds the end of what it printed."""


def measure(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    tick: Callable[[float, int], None] = lambda seconds, anon: None,
) -> Measured:
    """Runs a command to its end.

    Args:
        command: The program and its arguments.
        environment: All of its environment.
        log: File for what it prints.
        tick: Called about once a second, from another thread, with the seconds so far and the bytes held now.

    Raises:
        Failed: It ended with another status than 0.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        watch = _Watch(process.pid, began, tick)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Failed(f"{' '.join(command)}\nended with status {process.returncode}:\n{end}")
    # wait4 counts only children that were waited for; the watch sees the others, but no one's last interval.
    cpu_seconds = max(usage.ru_utime + usage.ru_stime, watch.cpu_seconds)
    return Measured(seconds, cpu_seconds, watch.peak_anon_bytes, watch.peak_processes)


def anon_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process now: what it allocated, without the files it has mapped; 0 once it is gone.

    Raises:
        FileNotFoundError: This system has no /proc.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self/status").exists():
            raise
        return 0
    _, found, rest = status.partition(b"RssAnon:")
    return int(rest.split(None, 1)[0]) * 1024 if found else 0  # kB in the file; a process that is ending has none


class _Watch(threading.Thread):
    def __init__(self, pid: int, began: float, tick: Callable[[float, int], None]) -> None:
        super().__init__(daemon=True)
        self.pid, self.began, self.tick = pid, began, tick
        has_proc = sys.platform == "linux" and Path("/proc/self/task").exists()
        self.peak_anon_bytes: int | None = 0 if has_proc else None
        self.peak_processes: int | None = 0 if has_proc else None
        self._cpu_seconds: dict[int, float] = {}
        self._ended = threading.Event()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu_seconds.values())

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        told = self.began
        while not self._ended.wait(_INTERVAL_SECONDS):
            now = 0
            if self.peak_anon_bytes is not None and self.peak_processes is not None:
                pids = tree(self.pid)
                now = sum(map(anon_bytes, pids))
                self.peak_anon_bytes = max(self.peak_anon_bytes, now)
                self.peak_processes = max(self.peak_processes, len(pids))
                self._cpu_seconds |= {pid: seconds for pid in pids if (seconds := _cpu_seconds(pid))}
            if time.perf_counter() - told >= 1:
                told = time.perf_counter()
                self.tick(told - self.began, now)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it; without /proc the process alone."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as children:
                    waiting += map(int, children.read().split())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()  # the name in brackets may hold blanks
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime, numbers 14 and 15 in proc(5)
